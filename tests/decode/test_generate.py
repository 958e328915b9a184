"""Prefill and decode against the full forward pass, whatever the batching."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.decode import step
from llm.decode.generate import (
  _plan,
  capacity_for,
  check_room,
  generate,
  length_limit,
  slots_needed,
)
from llm.decode.prefill import (
  empty_cache,
  fork,
  pad_rows,
  prefill,
  prefill_length,
)
from llm.decode.rows import stack_rows
from llm.decode.sampling import DEFAULT_ORDER
from llm.decode.sampling_params import SamplingParams
from llm.decode.score import score
from llm.errors import UserError
from llm.models.config import RopeConfig
from tests.models import tiny

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=12)


@pytest.fixture(scope='module')
def local_global():
  return tiny.build('local_global')


def prompts(*lengths):
  return [tiny.tokens(1, n, seed=n)[0].tolist() for n in lengths]


def run(local_global, texts, sampling, **changes):
  """`generate` with the sizes of the programs that the tests here share."""
  sizes = {'batch_size': 4, 'capacity': 128, 'chunk_steps': 8}
  return generate(*local_global, texts, sampling, **(sizes | changes))


def assert_same(one, other):
  assert one.token_ids == other.token_ids
  np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)


def test_greedy_equals_argmax_of_the_full_forward(local_global):
  model, params = local_global
  [prompt] = prompts(6)
  [got] = generate(model, params, [prompt], [GREEDY])
  forward = jax.jit(model.apply)
  row = np.zeros((1, 32), np.int32)
  row[0, :6] = prompt
  for t, token in enumerate(got.token_ids):
    logits, _ = forward({'params': params}, row)
    logprobs = jax.nn.log_softmax(logits[0, 5 + t])
    assert token == int(logprobs.argmax())
    assert got.logprobs[t] == pytest.approx(float(logprobs[token]), abs=1e-5)
    row[0, 6 + t] = token
  assert got.finish_reason == 'length'
  assert got.prompt_tokens == 6


def test_kept_logprobs_equal_score(local_global):
  model, params = local_global
  texts = prompts(3, 20, 9)
  sampling = [
    SamplingParams(max_new_tokens=20, seed=1),
    SamplingParams(max_new_tokens=11, seed=2, temperature=0.7, top_k=9),
    SamplingParams(max_new_tokens=30, seed=3, top_p=0.8, min_p=0.02),
  ]
  rows = run(local_global, texts, sampling)
  scored = score(
    model, params, [t + r.token_ids for t, r in zip(texts, rows, strict=True)]
  )
  for text, row, logprobs in zip(texts, rows, scored, strict=True):
    np.testing.assert_allclose(
      row.logprobs, logprobs[len(text) - 1 :], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize('chunk', [1, 5])
def test_chunked_prefill_equals_whole(local_global, chunk):
  model, params = local_global
  tokens, lengths = pad_rows(prompts(16, 7), 16, 2)

  def read(size):
    cache = empty_cache(model=model, batch=2, capacity=32, dtype=jnp.float32)
    return prefill(params, tokens, lengths, cache, model=model, chunk=size)

  want, _ = read(None)
  got, cache = read(chunk)
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
  assert cache.length.tolist() == [16, 7]


@pytest.mark.parametrize('chunk', [20, 33, 60])
def test_the_last_chunk_may_reach_past_the_bucket(local_global, chunk):
  """47 tokens in a bucket of 64: the chunks end at 60, 66 and 60."""
  short = [SamplingParams(temperature=0.0, max_new_tokens=4)]
  [whole] = run(local_global, prompts(47), short)
  [got] = run(local_global, prompts(47), short, prefill_chunk=chunk)
  assert_same(got, whole)


def test_prefill_refuses_a_cache_that_is_too_small(local_global):
  model, params = local_global
  tokens, lengths = pad_rows(prompts(9), 16, 1)
  cache = empty_cache(model=model, batch=1, capacity=12, dtype=jnp.float32)
  with pytest.raises(ValueError, match='12 slots and prefill writes 16'):
    prefill(params, tokens, lengths, cache, model=model)


@pytest.mark.parametrize(
  'kind',
  ['local_global', pytest.param('experts', marks=pytest.mark.slow)],
)
def test_groups_share_the_keys_of_their_prompt(kind):
  """Three answers to each of three prompts, one of them past the window."""
  model, params = tiny.build(kind)
  texts = [text for text in prompts(7, 1, 21) for _ in range(3)]
  sampling = [
    SamplingParams(max_new_tokens=20, seed=i, top_k=20 * (i % 2))
    for i in range(9)
  ]
  # The stages that act; the others take long to compile.
  sizes = {'chunk_steps': 8, 'order': ('top_k',)}
  together = generate(model, params, texts, sampling, **sizes)
  # With a batch size each row has a cache of its own.
  apart = generate(model, params, texts, sampling, batch_size=16, **sizes)
  for one, other in zip(together, apart, strict=True):
    assert_same(one, other)


def test_only_groups_of_equal_size_share(local_global):
  model, _ = local_global

  def group(text, batch_size=None):
    rows = [(ord(c),) for c in text]
    return _plan(model, rows, [GREEDY] * len(rows), None, batch_size, 8, None)

  for text, size, batch in (
    ('aaabbb', 3, 6),
    ('aaabbbccc', 3, 12),
    ('aaaa', 4, 4),
    ('abc', 1, 4),
    ('aaab', 1, 4),
    ('abab', 1, 4),
    ('aabbaa', 1, 8),
  ):
    plan = group(text)
    assert (plan.group, plan.batch) == (size, batch), text
  plan = group('aaabbbccc')
  assert plan.source.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
  assert plan.tokens[:, 0].tolist() == [97, 98, 99, 0]
  # A slot for each new token and a whole chunk, and none for the prompt.
  assert plan.slots == 64
  assert group('aaabbb', batch_size=8).group == 1


def test_slots_needed():
  # A prompt takes its bucket of 16 * 2**k, or whole chunks; an answer takes
  # whole decode chunks.
  assert slots_needed(47, 51, 16) == 67
  assert slots_needed(520, 648, 16) == 1024
  assert slots_needed(520, 648, 16, prefill_chunk=100) == 664
  assert slots_needed(520, 524, 1, prefill_chunk=300) == 600
  assert capacity_for(520, 648, 16) == 1024
  assert prefill_length(47, 60) == 60
  assert prefill_length(47, 64) == 64


def test_a_row_does_not_depend_on_its_batch(local_global):
  """The same seed gives the same sample at batch sizes 1, 3 and 8."""
  model, params = local_global
  text, *others = prompts(6, 3, 17, 9, 1, 12, 30, 5)
  own = SamplingParams(max_new_tokens=20, seed=7, top_k=20, temperature=0.9)
  neighbours = [
    SamplingParams(max_new_tokens=9, temperature=0.0),
    SamplingParams(max_new_tokens=30, seed=7, repetition_penalty=1.5),
    SamplingParams(max_new_tokens=3, typical_p=0.5),
    SamplingParams(max_new_tokens=25, no_repeat_ngram=2, min_p=0.1),
    SamplingParams(max_new_tokens=16, logit_bias={3: 4.0}),
    SamplingParams(max_new_tokens=8, frequency_penalty=1.0),
    SamplingParams(max_new_tokens=8, xtc_probability=0.5),
  ]
  [alone] = generate(model, params, [text], [own])
  three = run(
    local_global,
    [others[0], text, others[1]],
    [neighbours[0], own, neighbours[1]],
  )
  # The other sizes are others as well.
  eight = generate(
    model,
    params,
    [*others, text],
    [*neighbours, own],
    chunk_steps=3,
    prefill_chunk=4,
    capacity=192,
  )
  assert_same(three[1], alone)
  assert_same(eight[7], alone)


def test_scan_equals_a_loop_of_single_steps(local_global):
  text = prompts(6)
  sampling = [SamplingParams(max_new_tokens=12, seed=3)]
  [scan] = run(local_global, text, sampling)
  [loop] = run(local_global, text, sampling, chunk_steps=1)
  assert_same(loop, scan)


def test_samples_of_one_prompt_share_its_prefill(local_global):
  [text] = prompts(9)
  sampling = [SamplingParams(max_new_tokens=8, seed=s) for s in range(3)]
  together = run(local_global, [text] * 3, sampling)
  for own, row in zip(sampling, together, strict=True):
    [alone] = run(local_global, [text], [own])
    assert_same(row, alone)
  assert len({tuple(r.token_ids) for r in together}) > 1


def test_eos_stops_a_row_and_only_that_row(local_global):
  texts = prompts(6, 9)
  free = run(local_global, texts, [GREEDY] * 2)
  eos = free[0].token_ids[4]
  first = free[0].token_ids.index(eos)
  assert eos not in free[1].token_ids
  stopped = run(local_global, texts, [GREEDY] * 2, eos_ids=[eos])
  assert stopped[0].token_ids == free[0].token_ids[: first + 1]
  assert stopped[0].finish_reason == 'stop'
  assert_same(stopped[1], free[1])
  assert stopped[1].finish_reason == 'length'
  ignoring = SamplingParams(temperature=0.0, max_new_tokens=12, ignore_eos=True)
  [ignored] = run(local_global, texts[:1], [ignoring], eos_ids=[eos])
  assert_same(ignored, free[0])


def test_a_done_row_is_frozen(local_global):
  model, params = local_global
  tokens, lengths = pad_rows(prompts(4, 6), 16, 4)
  cache = empty_cache(model=model, batch=4, capacity=128, dtype=jnp.float32)
  logits, cache = prefill(params, tokens, lengths, cache, model=model)
  rows = stack_rows([GREEDY] * 4, vocab_size=50, eos_ids=())
  settings = {'order': DEFAULT_ORDER, 'top_n': 0}
  state, _ = step.start(
    cache,
    logits,
    tokens,
    lengths,
    rows,
    np.array([3, 12, 0, 0], np.int32),
    capacity=128,
    **settings,
  )
  decode = functools.partial(
    step.decode_chunk, model=model, steps=8, attend_length=64, **settings
  )
  state, output = decode(params, state)
  assert output.valid.sum(axis=0).tolist() == [2, 8, 0, 0]
  assert state.done.tolist() == [True, False, True, True]
  assert state.cache.length.tolist()[:2] == [4 + 2, 6 + 8]
  assert state.history.length.tolist()[:2] == [4 + 3, 6 + 9]
  frozen = jax.device_get((state.token[0], state.history.tokens[0]))
  state, output = decode(params, state)
  assert not output.valid[:, 0].any()
  assert state.cache.length.tolist()[0] == 6
  np.testing.assert_array_equal(state.token[0], frozen[0])
  np.testing.assert_array_equal(state.history.tokens[0], frozen[1])


def test_on_tokens_may_end_a_row(local_global):
  texts = prompts(6, 9)
  free = run(local_global, texts, [GREEDY] * 2)
  seen = {0: [], 1: []}

  def on_tokens(row, ids):
    seen[row] += ids
    return 3 if row == 0 and len(seen[0]) > 3 else None

  rows = run(local_global, texts, [GREEDY] * 2, on_tokens=on_tokens)
  assert rows[0].token_ids == free[0].token_ids[: 1 + 3]
  assert rows[0].finish_reason == 'stop'
  assert len(rows[0].logprobs) == 4
  assert_same(rows[1], free[1])
  assert seen[1] == free[1].token_ids


def test_alternatives_are_the_most_likely_tokens(local_global):
  model, params = local_global
  sampling = SamplingParams(max_new_tokens=3, seed=1, logprobs=4)
  [row] = generate(model, params, prompts(6), [sampling], order=())
  for token, logprob, (ids, logprobs) in zip(
    row.token_ids, row.logprobs, row.top, strict=True
  ):
    assert len(ids) == 4
    assert logprobs == sorted(logprobs, reverse=True)
    if token in ids:
      assert logprobs[ids.index(token)] == pytest.approx(logprob, abs=1e-6)


def test_longrope_rows_are_read_again_where_they_outgrow_the_context():
  """Each token equals the full forward of what is before it, short or long."""
  rope = RopeConfig(
    'longrope',
    factor=4.0,
    original_max_length=10,
    short_factor=(1.0, 1.0, 1.0, 1.0),
    long_factor=(1.0, 1.5, 3.0, 4.0),
  )
  model, params = tiny.build(rope=rope)
  texts = prompts(4, 9, 13)
  # Greedy rows need no stage of the sampler, which takes long to compile.
  rows = generate(model, params, texts, [GREEDY] * 3, order=())
  forward = jax.jit(model.apply)
  for text, row in zip(texts, rows, strict=True):
    tokens = list(text)
    for token, logprob in zip(row.token_ids, row.logprobs, strict=True):
      padded, lengths = pad_rows([tokens], 32, 1)
      logits, _ = forward({'params': params}, padded, lengths=lengths)
      logprobs = jax.nn.log_softmax(logits[0, len(tokens) - 1])
      assert token == int(logprobs.argmax())
      assert logprob == pytest.approx(float(logprobs[token]), abs=1e-5)
      tokens.append(token)


def test_no_compilation_after_warm_up(local_global):
  """Random lengths, fills and settings run programs that exist already."""
  load = np.random.default_rng(0)

  def fill(lengths, sampling):
    texts = [load.integers(0, 50, n).tolist() for n in lengths]
    run(local_global, texts, sampling, eos_ids=[0])

  def settings():
    return SamplingParams(
      max_new_tokens=int(load.integers(1, 40)),
      temperature=float(load.choice([0.0, 0.5, 1.3])),
      top_k=int(load.choice([0, 5])),
      top_p=float(load.choice([1.0, 0.7])),
      min_p=float(load.choice([0.0, 0.1])),
      repetition_penalty=float(load.choice([1.0, 1.3])),
      frequency_penalty=float(load.choice([0.0, 0.5])),
      no_repeat_ngram=int(load.choice([0, 2])),
      logit_bias={1: 2.0} if load.random() < 0.5 else {},
      seed=int(load.integers(0, 1000)),
    )

  for length in (16, 32, 64):  # one prompt bucket each
    fill([length] * 4, [SamplingParams(max_new_tokens=48)] * 4)
  before = compilations()
  for _ in range(12):
    rows = int(load.integers(1, 5))
    fill(load.integers(1, 65, rows), [settings() for _ in range(rows)])
  assert compilations() == before


_COMPILED = []


def compilations() -> int:
  """Programs that XLA has compiled in this process so far."""
  return len(_COMPILED)


@pytest.fixture(scope='module', autouse=True)
def count_compilations():
  def listen(event, duration, **kwargs):
    if event == '/jax/core/compile/backend_compile_duration':
      _COMPILED.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield
  assert _COMPILED, 'the listener heard nothing: the count would prove nothing'


def test_fork_copies_rows():
  tree = {'a': jnp.arange(6.0).reshape(3, 2)}
  got = fork(tree, np.array([2, 0, 2]))
  np.testing.assert_array_equal(got['a'], [[4, 5], [0, 1], [4, 5]])


def test_room_is_checked_at_the_door(local_global):
  model, params = local_global
  long = SamplingParams(max_new_tokens=250)
  with pytest.raises(UserError, match='lower sampling.max_new_tokens to 246'):
    generate(model, params, prompts(10), [long])
  with pytest.raises(UserError, match='shorten it to fewer than 8 tokens'):
    check_room(prompts(10), [GREEDY], 8)
  with pytest.raises(UserError, match='has no token'):
    check_room([[]], [GREEDY], 8)
  assert generate(model, params, [], []) == []
  with pytest.raises(UserError, match='n=2: a row is one completion'):
    generate(model, params, prompts(10), [SamplingParams(n=2)])
  with pytest.raises(UserError, match='stop strings need text'):
    generate(model, params, prompts(10), [SamplingParams(stop=('a',))])
  with pytest.raises(UserError, match='capacity=16 slots are too few'):
    generate(model, params, prompts(10), [GREEDY], capacity=16)
  assert length_limit(tiny.config()) == 256
  with pytest.raises(UserError, match='row 0 has 300 tokens'):
    score(model, params, [[1] * 300])
