"""Processors and filters against `transformers`, on its own tests' inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
theirs = pytest.importorskip('transformers.generation.logits_process')

from llm.decode import filters  # noqa: E402
from llm.decode import logits as processors  # noqa: E402
from llm.decode.rows import append, init_history, stack_rows  # noqa: E402
from llm.decode.sampling import DEFAULT_ORDER, run_stages  # noqa: E402
from llm.decode.sampling_params import SamplingParams  # noqa: E402


@functools.cache
def batched(module, name, static=()):
  function = functools.partial(getattr(module, name), **dict(static))
  return jax.jit(jax.vmap(function))


def per_row(value, rows, dtype=None):
  return jnp.broadcast_to(jnp.asarray(value, dtype), (rows,))


def assert_same(ours, expected):
  ours, expected = np.asarray(ours), expected.numpy()
  np.testing.assert_array_equal(np.isinf(ours), np.isinf(expected))
  np.testing.assert_allclose(ours, expected, atol=1e-6, rtol=1e-6)


def ramps(size=10):
  """Two ramps around 0, the second a hundred times as steep."""
  ramp = np.arange(size, dtype=np.float32) - size // 2
  return np.stack([ramp, 100.0 * ramp])


def log(rows):
  # torch.log, so that both sides start from the same bits.
  return torch.log(torch.tensor(rows, dtype=torch.float32)).numpy()


RNG = np.random.default_rng(0)
RANDOM = [
  RNG.normal(0.0, scale, (4, 300)).astype(np.float32) for scale in (0.3, 3, 20)
]
UNIFORM = np.full((2, 20), 1 / 20, np.float32)
PEAKED = UNIFORM.copy()
PEAKED[1, 5], PEAKED[1, 10] = 1 / 20 + 0.1, 1 / 20 - 0.4
TOP_K = np.arange(10, dtype=np.float32)[None].repeat(2, 0)
TOP_K[1, :5] += 10

# name: (inputs, settings of ours, their warper, min_keep)
FILTERS = {
  'top_k': [
    ([TOP_K, *RANDOM], 3, theirs.TopKLogitsWarper(3), 1),
    (RANDOM, 100, theirs.TopKLogitsWarper(100), 1),
    (
      [np.full((2, 5), 0.2, np.float32), ramps(5)],
      1,
      theirs.TopKLogitsWarper(1, min_tokens_to_keep=3),
      3,
    ),
  ],
  'top_p': [
    (
      [log([[0.3, 0.1, 0.1, 0.5], [0.15, 0.3, 0.3, 0.25]]), *RANDOM],
      1.0 - 0.8,
      theirs.TopPLogitsWarper(0.8),
      1,
    ),
    (RANDOM, 1.0 - 0.3, theirs.TopPLogitsWarper(0.3), 1),
    (
      [ramps()],
      1.0 - 0.9,
      theirs.TopPLogitsWarper(0.9, min_tokens_to_keep=2),
      2,
    ),
  ],
  'min_p': [
    (
      [
        log(
          [
            [0.9, 0.0274, 0.047, 0.0274],
            [0.15, 0.3, 0.3, 0.25],
            [0.97, 0.01, 0.01, 0.01],
          ]
        ),
        *RANDOM,
      ],
      0.05,
      theirs.MinPLogitsWarper(0.05),
      1,
    ),
    ([ramps()], 0.9, theirs.MinPLogitsWarper(0.9, min_tokens_to_keep=2), 2),
  ],
  'typical': [
    (
      [log([[0.97, 0.01, 0.01, 0.01], [0.4, 0.2, 0.2, 0.2]]), *RANDOM],
      0.5,
      theirs.TypicalLogitsWarper(0.5),
      1,
    ),
    (RANDOM, 0.95, theirs.TypicalLogitsWarper(0.95), 1),
    (
      [np.full((2, 5), 0.2, np.float32)],
      0.5,
      theirs.TypicalLogitsWarper(0.5, min_tokens_to_keep=3),
      3,
    ),
    ([ramps()], 0.7, theirs.TypicalLogitsWarper(0.7, min_tokens_to_keep=2), 2),
  ],
  'epsilon': [
    (
      [log([[0.87, 0.099, 0.001, 0.03], [0.4, 0.299, 0.101, 0.2]]), *RANDOM],
      0.1,
      theirs.EpsilonLogitsWarper(0.1),
      1,
    ),
    (
      [ramps()],
      5e-2,
      theirs.EpsilonLogitsWarper(5e-2, min_tokens_to_keep=2),
      2,
    ),
  ],
  'eta': [
    (
      [log([[0.0, 0.1, 0.8, 0.1], [0.01, 0.04, 0.9, 0.05]]), *RANDOM],
      0.0625,
      theirs.EtaLogitsWarper(0.0625),
      1,
    ),
    ([ramps()], 0.1, theirs.EtaLogitsWarper(0.1, min_tokens_to_keep=2), 2),
  ],
}
CASES = [
  pytest.param(name, case, id=f'{name}-{i}')
  for name, cases in FILTERS.items()
  for i, case in enumerate(cases)
]


@pytest.mark.parametrize(('name', 'case'), CASES)
def test_filters(name, case):
  inputs, setting, warper, min_keep = case
  dtype = jnp.int32 if name == 'top_k' else jnp.float32
  ours = batched(filters, name, (('min_keep', min_keep),))
  for scores in inputs:
    expected = warper(None, torch.tensor(scores))
    got = ours(jnp.asarray(scores), per_row(setting, len(scores), dtype))
    assert_same(got, expected)


@pytest.mark.parametrize('p', [0.01, 0.3, 0.62, 0.97])
def test_top_p_keeps_as_many_of_equal_tokens(p):
  # Which of them their sort leaves is not defined.
  ties = np.round(RANDOM[1])
  for scores in (UNIFORM, PEAKED, ties):
    expected = theirs.TopPLogitsWarper(p)(None, torch.tensor(scores))
    got = batched(filters, 'top_p')(scores, per_row(1.0 - p, len(scores)))
    assert_same(np.sort(got), expected.sort().values)


@pytest.mark.parametrize('value', [0.5, 1.3])
def test_temperature(value):
  for scores in (PEAKED, RANDOM[1]):
    expected = theirs.TemperatureLogitsWarper(value)(None, torch.tensor(scores))
    ours = batched(processors, 'temperature')
    assert_same(
      ours(jnp.asarray(scores), per_row(value, len(scores))), expected
    )


@pytest.mark.parametrize('penalty', [2.0, 0.7])
def test_repetition_penalty(penalty):
  ids = np.array([[0, 1], [5, 0]])
  scores = np.full((2, 10), 0.1, np.float32)
  scores[0, 0], scores[1, 5] = -0.1, 0.4
  seen = np.zeros((2, 10), bool)
  np.put_along_axis(seen, ids, True, axis=1)
  expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(
    torch.tensor(ids), torch.tensor(scores)
  )
  ours = batched(processors, 'repetition_penalty')
  assert_same(ours(scores, per_row(penalty, 2), seen), expected)


@pytest.mark.parametrize('size', [1, 2, 3, 4])
def test_no_repeat_ngram(size):
  cases = [
    ([[1, 1, 2, 1], [0, 1, 0, 1]], 3),
    ([[1, 2, 5, 7, 8, 5, 1, 2]], 10),
    ([[1, 2], [0, 1]], 3),
    (RNG.integers(0, 3, (5, 14)), 3),
  ]
  for ids, vocab in cases:
    ids = np.asarray(ids)
    scores = np.full((len(ids), vocab), 1 / vocab, np.float32)
    expected = theirs.NoRepeatNGramLogitsProcessor(size)(
      torch.tensor(ids), torch.tensor(scores)
    )
    tokens = np.pad(ids, ((0, 0), (0, 16 - ids.shape[1])))
    got = batched(processors, 'no_repeat_ngram')(
      scores,
      per_row(size, len(ids)),
      tokens,
      per_row(ids.shape[1], len(ids)),
    )
    assert_same(got, expected)


@pytest.mark.parametrize('stops', [[0], [0, 18]])
@pytest.mark.parametrize('length', [5, 6, 7, 8, 15])
def test_min_new_tokens(stops, length):
  scores = np.full((4, 20), 0.05, np.float32)
  expected = theirs.MinNewTokensLengthLogitsProcessor(5, 3, stops)(
    torch.zeros((4, length), dtype=torch.long), torch.tensor(scores)
  )
  padded = jnp.array(stops + [-1] * (4 - len(stops)))
  got = batched(processors, 'min_new_tokens')(
    scores, per_row(3, 4), per_row(length - 5, 4), jnp.tile(padded, (4, 1))
  )
  assert_same(got, expected)


def test_bias_suppression_and_permission():
  ids = torch.tensor([[0, 1, 3, 1], [0, 1, 0, 1]])
  scores = np.array([[0.5, -2.0, 0.0, 1.0, 3.0]] * 2, np.float32)
  add = batched(processors, 'bias')
  allow = batched(processors, 'permitted')

  biased = theirs.SequenceBiasLogitsProcessor({(1,): 100.0, (4,): -100.0})
  values = np.array([[0, 100.0, 0, 0, -100.0]] * 2, np.float32)
  assert_same(add(scores, values), biased(ids, torch.tensor(scores)))

  suppressed = theirs.SuppressTokensLogitsProcessor([1, 3])
  values = np.array([[0, -np.inf, 0, -np.inf, 0]] * 2, np.float32)
  assert_same(add(scores, values), suppressed(ids, torch.tensor(scores)))

  choice = [[0, 1], [2, 3]]
  constrained = theirs.PrefixConstrainedLogitsProcessor(
    lambda row, _: choice[row], 1
  )
  values = np.full((2, 5), -np.inf, np.float32)
  np.put_along_axis(values, np.array(choice), 0.0, axis=1)
  dead = np.where(values == 0.0, -np.inf, scores).astype(np.float32)
  for start in (scores, dead):
    expected = constrained(ids, torch.tensor(start))
    assert_same(allow(add(start, values), values), expected)


CHAINS = [
  {'temperature': 0.7, 'top_k': 40, 'top_p': 0.9},
  {'repetition_penalty': 1.3, 'no_repeat_ngram': 2, 'typical_p': 0.8},
  {'logit_bias': {3: 2.0, 8: -1.5}, 'forbidden_ids': (5, 11), 'min_p': 0.05},
  {'temperature': 1.5, 'epsilon': 0.002, 'min_new_tokens': 9},
  {'repetition_penalty': 0.8, 'temperature': 1.2, 'eta': 0.003, 'top_p': 0.95},
  {
    'repetition_penalty': 1.1,
    'no_repeat_ngram': 3,
    'logit_bias': {7: 4.0},
    'min_new_tokens': 8,
    'temperature': 0.9,
    'top_k': 100,
    'top_p': 0.97,
    'min_p': 0.001,
    'typical_p': 0.95,
    'epsilon': 0.0005,
    'eta': 0.0005,
  },
]


def their_chain(eos, prompt, **chosen):
  """The warpers of `generate`, in the order of `_get_logits_processor`."""
  make = {
    'logit_bias': lambda x: theirs.SequenceBiasLogitsProcessor(
      {(token,): value for token, value in x.items()}
    ),
    'repetition_penalty': theirs.RepetitionPenaltyLogitsProcessor,
    'no_repeat_ngram': theirs.NoRepeatNGramLogitsProcessor,
    'min_new_tokens': lambda x: theirs.MinNewTokensLengthLogitsProcessor(
      prompt, x, [eos]
    ),
    'forbidden_ids': theirs.SuppressTokensLogitsProcessor,
    'temperature': theirs.TemperatureLogitsWarper,
    'top_k': theirs.TopKLogitsWarper,
    'top_p': theirs.TopPLogitsWarper,
    'min_p': theirs.MinPLogitsWarper,
    'typical_p': theirs.TypicalLogitsWarper,
    'epsilon': theirs.EpsilonLogitsWarper,
    'eta': theirs.EtaLogitsWarper,
  }
  return theirs.LogitsProcessorList(
    [
      function(chosen[name])
      for name, function in make.items()
      if name in chosen
    ]
  )


def test_a_batch_of_different_chains():
  """Each row of one compiled call equals its own chain of theirs."""
  vocab, prompt, length, eos = 300, 6, 13, 2
  ids = RNG.integers(0, 40, (len(CHAINS), length))
  scores = RNG.normal(0.0, 3.0, (len(CHAINS), vocab)).astype(np.float32)
  rows = stack_rows(
    [SamplingParams(**chain) for chain in CHAINS],
    vocab_size=vocab,
    eos_ids=(eos,),
  )
  history = init_history(
    jnp.asarray(ids[:, :prompt]),
    jnp.full(len(ids), prompt),
    vocab,
    capacity=32,
  )
  for column in ids[:, prompt:].T:
    history = append(history, jnp.asarray(column), jnp.ones(len(ids), bool))
  got = jax.jit(run_stages, static_argnums=0)(
    DEFAULT_ORDER, jnp.asarray(scores), rows, history, rows.key
  )
  for row, chain in enumerate(CHAINS):
    expected = their_chain(eos, prompt, **chain)(
      torch.tensor(ids[row : row + 1]), torch.tensor(scores[row : row + 1])
    )
    assert_same(got[row], expected[0])
    assert np.isinf(expected[0].numpy()).any()
