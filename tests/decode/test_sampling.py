"""The draw: invariances, log-probabilities, frequencies, one compilation."""

import dataclasses
import functools
import random

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.decode.rows import append, init_history, stack_rows
from llm.decode.sampling import (
  DEFAULT_ORDER,
  argmax,
  distribution,
  draw,
  run_stages,
  sample_rows,
)
from llm.decode.sampling_params import SamplingParams
from llm.errors import UserError

V = 320
STEPS = 12


def params(**fields):
  return SamplingParams(**fields)


EVERYTHING = params(
  temperature=0.9,
  top_k=40,
  top_p=0.9,
  min_p=0.01,
  typical_p=0.9,
  epsilon=0.001,
  eta=0.001,
  repetition_penalty=1.2,
  presence_penalty=0.3,
  frequency_penalty=0.2,
  no_repeat_ngram=2,
  logit_bias={5: 2.0},
  forbidden_ids=(7,),
  min_new_tokens=4,
  dry_multiplier=0.8,
  xtc_probability=0.5,
  seed=3,
)
MIXED = [
  EVERYTHING,
  params(temperature=0.0),
  params(seed=5),
  params(top_k=20, seed=6),
  params(top_p=0.7, seed=7, temperature=1.4),
  params(typical_p=0.6, seed=8, repetition_penalty=1.5),
  params(min_p=0.1, seed=9, no_repeat_ngram=1),
  params(allowed_ids=(2, 5, 9), seed=10, dry_multiplier=1.0),
]


def model(rows):
  """Logits float32[rows, V] of as many made-up models."""
  rng = np.random.default_rng(11)
  return jnp.asarray(rng.normal(0.0, 2.5, (rows, V)).astype(np.float32))


def start(rows, width=4):
  prompt = jnp.arange(rows * width).reshape(rows, width) % 11
  return init_history(prompt, jnp.arange(rows) % width + 1, V, 32)


@jax.jit
def decode(logits, rows, history):
  """Scans over steps: tokens int32[steps, B] and their SampleInfo."""

  def step(history, _):
    # Something of the past moves the logits, as in a model.
    last = history.tokens[jnp.arange(len(logits)), history.length - 1]
    now = jnp.roll(logits, 1, axis=1) + (jnp.arange(V) == last[:, None])
    token, info = sample_rows(now, rows, history, top_n=2)
    return append(history, token, jnp.ones(token.shape, bool)), (token, info)

  return lax.scan(step, history, length=STEPS)[1]


def take(tree, which):
  return jax.tree.map(lambda x: x[np.asarray(which)], tree)


@functools.cache
def decoded_eight():
  rows = stack_rows(MIXED, vocab_size=V, eos_ids=(2,))
  return decode(model(8), rows, start(8))


def test_tokens_of_a_seed_stay_what_they_are():
  # One line a row of MIXED, written down before the sampler was taken apart.
  # fmt: off
  assert np.asarray(decoded_eight()[0]).T.tolist() == [
    [316, 304, 256, 316, 113, 156, 248, 158, 118, 159, 118, 304],
    [5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5],
    [88, 201, 4, 182, 24, 259, 233, 233, 204, 260, 198, 259],
    [245, 112, 174, 112, 103, 51, 134, 174, 134, 112, 112, 112],
    [275, 33, 63, 157, 150, 196, 244, 196, 80, 227, 244, 0],
    [125, 46, 46, 294, 220, 109, 313, 296, 217, 174, 22, 227],
    [261, 7, 227, 147, 22, 41, 241, 113, 151, 266, 122, 235],
    [5, 5, 2, 5, 5, 5, 5, 5, 5, 2, 2, 5],
  ]
  # fmt: on


# Each stage alone, then all together.
ALONE = [
  [
    params(logit_bias={9: 4.0}, seed=31),
    params(repetition_penalty=1.8, seed=32),
    params(presence_penalty=1.5, seed=33),
    params(frequency_penalty=1.5, seed=34),
    params(dry_multiplier=2.0, dry_allowed_length=1, seed=35),
    params(no_repeat_ngram=1, seed=36),
    params(min_new_tokens=9, seed=37),
    params(allowed_ids=(2, 3), no_repeat_ngram=1, seed=38),
  ],
  [
    params(temperature=1.6, seed=41),
    params(top_k=3, seed=42),
    params(top_p=0.5, seed=43),
    params(min_p=0.2, seed=44),
    params(typical_p=0.4, seed=45),
    params(epsilon=0.02, seed=46),
    params(eta=0.02, seed=47),
    params(xtc_probability=0.5, xtc_threshold=0.05, seed=48),
  ],
  MIXED,
  [params(seed=s) for s in range(8)],
  [params(temperature=0.0, top_k=2)] * 8,
]


@jax.jit
def drawn_twice(logits, rows, history):
  """Tokens of `sample_rows`, those of `draw`, and the distribution."""
  token, info = sample_rows(logits, rows, history)
  logprobs = distribution(logits, rows, history)
  return token, draw(logprobs, rows.key, history.length), logprobs, info


@pytest.mark.parametrize('batch', range(len(ALONE)))
def test_drawing_from_the_distribution_is_sampling(batch):
  rows = stack_rows(ALONE[batch], vocab_size=V, eos_ids=(2,))
  history, logits = start(8), model(8)
  for _ in range(8):
    token, again, logprobs, info = drawn_twice(logits, rows, history)
    np.testing.assert_array_equal(token, again)
    at_token = np.asarray(logprobs)[np.arange(8), token]
    np.testing.assert_allclose(at_token, info.logprob_filtered, atol=1e-6)
    total = np.exp(np.asarray(logprobs, np.float64)).sum(axis=-1)
    np.testing.assert_allclose(total, 1.0, atol=1e-5)
    history = append(history, token, jnp.ones(8, bool))


def test_a_greedy_row_is_certain_beside_a_sampled_one():
  rows = [params(temperature=0.0), params(top_k=2)]
  stacked = stack_rows(rows, vocab_size=4)
  logits = jnp.array([[2.0, 0.0, 1.0, -1.0]] * 2)
  history = init_history(jnp.zeros((2, 1), jnp.int32), jnp.ones(2), 4, 8)
  # The trace in the docstring of the module: log(e^2 + e^1) = 2.3133.
  np.testing.assert_allclose(
    distribution(logits, stacked, history),
    [[0.0, -np.inf, -np.inf, -np.inf], [-0.3133, -np.inf, -1.3133, -np.inf]],
    atol=1e-4,
  )


@pytest.mark.parametrize('which', [(0,), (4,), (3, 0, 6), (7, 1, 5)])
def test_a_row_does_not_depend_on_its_neighbours(which):
  tokens, info = decoded_eight()
  rows = stack_rows([MIXED[i] for i in which], vocab_size=V, eos_ids=(2,))
  alone, alone_info = decode(
    model(8)[np.array(which)], rows, take(start(8), which)
  )
  np.testing.assert_array_equal(alone, tokens[:, np.array(which)])
  for name in ('logprob', 'logprob_processed', 'logprob_filtered'):
    np.testing.assert_allclose(
      getattr(alone_info, name),
      getattr(info, name)[:, np.array(which)],
      atol=1e-5,
    )


def test_rows_of_one_seed_agree_whatever_the_slot():
  rows = stack_rows([EVERYTHING] * 8, vocab_size=V, eos_ids=(2,))
  logits = jnp.broadcast_to(model(1), (8, V))
  history = jax.tree.map(lambda x: jnp.broadcast_to(x[2], x.shape), start(8))
  tokens, _ = decode(logits, rows, history)
  assert (np.asarray(tokens) == np.asarray(tokens)[:, :1]).all()


def test_settings_share_one_compilation():
  rng = random.Random(0)
  logits, history = model(8), start(8)
  before = decode._cache_size()
  decoded_eight()
  for _ in range(5):
    rows = [
      dataclasses.replace(
        rng.choice(MIXED), seed=rng.randrange(99), top_k=rng.randrange(9)
      )
      for _ in range(8)
    ]
    decode(logits, stack_rows(rows, vocab_size=V, eos_ids=(2,)), history)
  assert decode._cache_size() <= before + 1


def test_scan_is_a_python_loop():
  tokens, info = decoded_eight()
  rows = stack_rows(MIXED, vocab_size=V, eos_ids=(2,))
  history, logits = start(8), model(8)
  for i in range(3):
    last = history.tokens[jnp.arange(8), history.length - 1]
    now = jnp.roll(logits, 1, axis=1) + (jnp.arange(V) == last[:, None])
    token, one = sampler()(now, rows, history)
    np.testing.assert_array_equal(token, tokens[i])
    np.testing.assert_allclose(one.logprob, info.logprob[i], atol=1e-6)
    history = append(history, token, jnp.ones(8, bool))


def test_greedy_top_k_one_and_tiny_p_take_the_best():
  greedy = [
    params(temperature=0.0, top_k=5, xtc_probability=1.0),
    params(top_k=1, seed=4),
    params(top_p=1e-9, seed=5),
    params(temperature=1e-4, seed=6),
    params(min_p=1.0, seed=7),
    params(epsilon=0.999, seed=8),
    params(temperature=0.0),
    params(typical_p=1e-9, top_k=1),
  ]
  logits = model(8)
  tokens, info = sample(greedy, logits)
  np.testing.assert_array_equal(tokens, np.argmax(logits, axis=-1))
  logp = np.asarray(jax.nn.log_softmax(logits))
  best = logp.max(axis=-1)
  np.testing.assert_allclose(info.logprob, best, atol=1e-5)
  np.testing.assert_array_equal(np.asarray(info.logprob_filtered), np.zeros(8))
  warm = [0, 1, 2, 4, 5, 6, 7]
  np.testing.assert_allclose(
    np.asarray(info.surviving_mass)[warm], np.exp(best)[warm], rtol=1e-5
  )
  # Of equals the first.
  assert argmax(jnp.array([[1.0, 3.0, 3.0]])).tolist() == [1]


stage = jax.jit(run_stages, static_argnums=0)


@functools.cache
def sampler(order=DEFAULT_ORDER):
  return jax.jit(functools.partial(sample_rows, order=order, top_n=2))


def sample(rows, logits, history=None, order=DEFAULT_ORDER):
  stacked = stack_rows(rows, vocab_size=V, eos_ids=(2,))
  return sampler(order)(logits, stacked, history or start(len(rows)))


def test_three_log_probabilities_and_the_surviving_mass():
  rows = [
    params(seed=1),
    params(temperature=0.7, seed=2),
    params(temperature=0.7, top_k=5, seed=3),
    params(top_p=0.6, repetition_penalty=1.3, seed=4),
    params(temperature=0.0, frequency_penalty=1.0),
    params(forbidden_ids=(1, 2, 3), seed=5),
    params(typical_p=0.5, seed=6),
    params(temperature=2.0, min_p=0.2, seed=7),
  ]
  logits, history = model(8), start(8)
  history = append(history, jnp.full(8, 9), jnp.ones(8, bool))
  tokens, info = sample(rows, logits, history)
  stacked = stack_rows(rows, vocab_size=V, eos_ids=(2,))
  keys = stacked.key
  cold = [
    dataclasses.replace(one, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0)
    for one in rows
  ]
  cold = stack_rows(cold, vocab_size=V, eos_ids=(2,))
  processed = stage(DEFAULT_ORDER, logits, cold, history, keys)
  filtered = stage(DEFAULT_ORDER, logits, stacked, history, keys)
  for i in range(8):
    token = int(tokens[i])
    raw, done, cut = (
      log_softmax(np.asarray(x[i], np.float64))
      for x in (logits, processed, filtered)
    )
    assert info.logprob[i] == pytest.approx(raw[token], abs=1e-5)
    assert info.logprob_processed[i] == pytest.approx(done[token], abs=1e-5)
    best = np.argsort(-raw)[:2]
    assert info.top_ids[i].tolist() == best.tolist()
    np.testing.assert_allclose(info.top_logprobs[i], raw[best], atol=1e-5)
    if i == 4:
      assert token == np.argmax(np.asarray(processed[i]))
      assert info.logprob_filtered[i] == 0.0
      continue
    mass = np.exp(done)[cut > -np.inf].sum()
    assert info.logprob_filtered[i] == pytest.approx(cut[token], abs=1e-5)
    assert info.surviving_mass[i] == pytest.approx(mass, rel=1e-5)
  # Nothing asked for: bit for bit the raw distribution, and all of it.
  assert info.logprob[0] == info.logprob_processed[0]
  assert info.logprob[0] == info.logprob_filtered[0]
  assert info.surviving_mass[0] == 1.0


def log_softmax(logits):
  shifted = logits - logits.max()
  return shifted - np.log(np.exp(shifted).sum())


def test_stages_that_are_off_leave_the_logits_alone():
  logits = model(8)
  rows = stack_rows([params(), EVERYTHING] * 4, vocab_size=V, eos_ids=(2,))
  out = stage(DEFAULT_ORDER, logits, rows, start(8), rows.key)
  np.testing.assert_array_equal(out[::2], logits[::2])
  assert (np.isinf(np.asarray(out[1::2])).sum(axis=-1) > V / 2).all()


def test_a_dead_end_falls_back_to_what_is_permitted():
  rows = [
    params(allowed_ids=(2,), min_new_tokens=5, temperature=0.0),
    params(allowed_ids=(0, 1), no_repeat_ngram=1, seed=2),
  ]
  prompt = jnp.tile(jnp.array([[0, 1]]), (8, 1))
  history = init_history(prompt, jnp.full(8, 2), V, 32)
  tokens, info = sample(rows * 4, model(8), history)
  assert tokens[0] == 2
  assert tokens[1] in (0, 1)
  assert np.isfinite(np.asarray(info.logprob_processed)).all()


EXTREMES = {
  'temperature': [0.0, 1e-4, 1e9],
  'top_k': [1, 2**31, 10**30],
  'top_p': [1e-300, 0.999999999],
  'min_p': [1e-300, 1.0],
  'typical_p': [1e-300, 0.999999999],
  'epsilon': [1e-300, 0.999999999],
  'eta': [1e-300, 0.999999999],
  'repetition_penalty': [1e-4, 1e9],
  'presence_penalty': [-1e9, 1e9],
  'frequency_penalty': [-1e9, 1e9],
  'no_repeat_ngram': [1, 2**31],
  'logit_bias': [{0: 1e9}, {0: -1e9, 1: 1e9}],
  'allowed_ids': [(2,), (1, 2, 3)],
  'forbidden_ids': [tuple(range(1, V)), (5,)],
  'min_new_tokens': [128],
  'dry_multiplier': [1e9],
  'dry_base': [1.0, 1e9],
  'dry_allowed_length': [0, 2**31],
  'xtc_probability': [1.0],
  'xtc_threshold': [1e-300, 0.5],
}


def test_every_accepted_setting_gives_a_permitted_token():
  rng = random.Random(1)
  prompt = jnp.tile(jnp.array([[1, 2, 1, 2]]), (8, 1))
  history = init_history(prompt, jnp.full(8, 4), V, 32)
  history = append(history, jnp.full(8, 1), jnp.ones(8, bool))
  for _ in range(40):
    rows = []
    while len(rows) < 8:
      chosen = rng.sample(list(EXTREMES), rng.randrange(1, 7))
      try:
        rows.append(
          params(**{name: rng.choice(EXTREMES[name]) for name in chosen})
        )
      except UserError:  # All that is allowed is forbidden.
        continue
    tokens, info = sample(rows, model(8), history)
    for i, one in enumerate(rows):
      token = int(tokens[i])
      assert not one.allowed_ids or token in one.allowed_ids, one
      assert token not in one.forbidden_ids, one
      for values in (info.logprob_filtered, info.surviving_mass, info.logprob):
        assert np.isfinite(values[i]), one
      assert info.logprob_filtered[i] > -30, one
      assert 0.0 <= info.surviving_mass[i] <= 1.0, one


def test_order_is_data():
  # Temperature last, as in llama.cpp: the filter sees untempered logits.
  order = ('min_p', 'temperature')
  rows = [params(temperature=4.0, min_p=0.5, seed=s) for s in range(2)]
  logits = model(2)
  tokens, info = sample(rows, logits, order=order)
  for i in range(2):
    raw = np.asarray(logits[i], np.float64)
    alive = raw >= raw.max() + np.log(0.5)
    hot = log_softmax(raw / 4.0)
    assert alive[tokens[i]]
    assert info.logprob_processed[i] == pytest.approx(hot[tokens[i]], abs=1e-5)
    mass = np.exp(hot)[alive].sum()
    assert info.surviving_mass[i] == pytest.approx(mass, rel=1e-5)
    assert info.logprob_filtered[i] == pytest.approx(
      hot[tokens[i]] - np.log(mass), abs=1e-5
    )
  with pytest.raises(ValueError, match="'topk': known stages are bias"):
    sample(rows, logits, order=('topk',))
  with pytest.raises(ValueError, match="'top_k' twice"):
    sample(rows, logits, order=('top_k', 'top_k'))


# 0.999 quantiles of chi-square for 1 ... 11 degrees of freedom.
QUANTILES = [
  *(10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12, 27.88, 29.59),
  31.26,
]


def test_sampled_frequencies_are_the_distribution():
  rows = [
    params(seed=21),
    params(seed=22, temperature=1.7),
    params(seed=23, top_k=6),
    params(seed=24, top_p=0.8, temperature=0.8),
    params(seed=25, min_p=0.2),
    params(seed=26, typical_p=0.7),
    params(seed=27, logit_bias={3: 1.5}, forbidden_ids=(1,)),
    params(seed=28, xtc_probability=0.4, xtc_threshold=0.2),
  ]
  # Ten likely tokens, and a tail that is counted as one.
  logits = np.full(V, -9.0, np.float32)
  logits[:10] = -0.35 * np.arange(10)
  logits = jnp.broadcast_to(jnp.asarray(logits), (8, V))
  stacked = stack_rows(rows, vocab_size=V)
  history = start(8)
  draws = 4000

  @jax.jit
  def draw(stacked):
    def step(position, _):
      now = history.replace(length=position)
      token, info = sample_rows(logits, stacked, now)
      return position + 1, (token, info.logprob_filtered)

    return lax.scan(step, history.length, length=draws)[1]

  tokens = np.asarray(draw(stacked)[0])
  for i, one in enumerate(rows):
    share = expected_shares(one, np.asarray(logits[0], np.float64), stacked, i)
    bins = np.append(share[:10], share[10:].sum())
    counts = np.bincount(np.minimum(tokens[:, i], 10), minlength=11)
    likely = bins > 1e-9
    assert not counts[~likely].any()
    wanted = draws * bins[likely]
    chi_square = ((counts[likely] - wanted) ** 2 / wanted).sum()
    assert chi_square < QUANTILES[likely.sum() - 2], (one, counts, wanted)


def expected_shares(one, logits, stacked, row):
  """Probabilities of one row of the frequency test, by the definitions."""
  probs = np.exp(log_softmax(logits / one.temperature))
  if one.logit_bias:
    logits = logits + np.where(np.arange(V) == 3, 1.5, 0.0)
    logits[1] = -np.inf
    probs = np.exp(log_softmax(logits))
  if one.top_k:
    probs[one.top_k :] = 0.0
  if one.top_p < 1.0:
    probs[np.cumsum(probs) - probs >= one.top_p] = 0.0
  if one.min_p:
    probs[probs < one.min_p * probs.max()] = 0.0
  if one.typical_p < 1.0:
    surprise = -np.log(probs)
    distance = np.abs(surprise - (probs * surprise).sum())
    rank = np.argsort(distance)
    total = np.cumsum(probs[rank])
    probs[rank[np.sum(total < one.typical_p) + 1 :]] = 0.0
  if one.xtc_probability:
    cut = probs.copy()
    cut[: np.sum(probs >= one.xtc_threshold) - 1] = 0.0
    chance = one.xtc_probability
    return (1 - chance) * probs + chance * cut / cut.sum()
  return probs / probs.sum()
