"""Rows that come and go: each as if it were alone, nothing left of another."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.buckets import bucket
from llm.decode import slots, stages, step
from llm.decode.completion import Record
from llm.decode.generate import generate
from llm.decode.prefill import empty_cache, pad_rows, prefill
from llm.decode.rows import IDLE, stack_rows
from llm.decode.sampling_params import SamplingParams
from tests.models import tiny

SLOTS, CAPACITY, STEPS, EOS = 4, 128, 8, 3
# The stages that act; the others take long to compile.
ORDER = ('bias', 'repetition_penalty', 'frequency_penalty', 'temperature')
ORDER += ('top_k', 'top_p')
SAMPLER = {'order': ORDER, 'top_n': 0}
SETTINGS = [
  {'temperature': 0.0},
  {'temperature': 0.7, 'seed': 1},
  {'seed': 2, 'top_k': 9, 'repetition_penalty': 1.3},
  {'temperature': 0.0, 'frequency_penalty': 0.8},
  {'temperature': 1.4, 'seed': 3, 'top_p': 0.8, 'logit_bias': {7: 2.0}},
]


@pytest.fixture(scope='module')
def local_global():
  return tiny.build('local_global')


def admit(local_global, requests, capacity=None):
  """Prefills some requests; fewer than a power of two are filled up."""
  model, params = local_global
  rows = bucket(len(requests), 1)
  texts, settings = zip(*requests, strict=True)
  tokens, lengths = pad_rows(texts, 16, rows)
  capacity = capacity or 16
  cache = empty_cache(
    model=model, batch=rows, capacity=capacity, dtype=jnp.float32
  )
  logits, cache = prefill(params, tokens, lengths, cache, model=model)
  fill = rows - len(requests)
  limits = [s.max_new_tokens for s in settings] + [0] * fill
  return step.start(
    cache,
    logits,
    tokens,
    lengths,
    stack_rows([*settings, *[IDLE] * fill], vocab_size=50, eos_ids=[EOS]),
    np.array(limits, np.int32),
    capacity=capacity,
    **SAMPLER,
  )


def empty(local_global):
  model, _ = local_global
  return slots.init_slots(
    model=model, batch=SLOTS, capacity=CAPACITY, dtype=jnp.float32
  )


def poisoned(state):
  """Whatever is read of an idle slot shows."""
  cache = jax.tree.map(lambda x: x * jnp.nan, state.cache.layers)
  return state.replace(cache=state.cache.replace(layers=cache))


def serve(local_global, requests, rng):
  """Runs requests that come and go at random.

  Returns the records, the ones that were sent away early, and the history of
  who was in which slot.
  """
  model, params = local_global
  state, waiting = poisoned(empty(local_global)), list(range(len(requests)))
  records, sent_away, log = {}, set(), []
  running = [None] * SLOTS
  while waiting or any(i is not None for i in running):
    free = [s for s in range(SLOTS) if running[s] is None]
    count = min(len(free), len(waiting), int(rng.integers(0, 3)))
    if count:
      chosen = [waiting.pop(0) for _ in range(count)]
      fresh, output = admit(local_global, [requests[i] for i in chosen])
      output = jax.tree.map(lambda x: x[None], jax.device_get(output))
      places = np.full((bucket(count, 1),), SLOTS, np.int32)
      places[:count] = rng.permutation(free)[:count]
      state = slots.insert(state, fresh, places)
      for at, (i, place) in enumerate(zip(chosen, places, strict=False)):
        text, settings = requests[i]
        records[i] = Record(len(text), settings, [EOS], 0.0)
        records[i].take(output, at, time.perf_counter())
        running[place] = i
      log.append(list(running))
    active = np.array([i is not None and records[i].running for i in running])
    if active.any():
      held = [0 if i is None else records[i].held for i in running]
      state, output = slots.advance(
        params,
        state,
        model=model,
        held=np.array(held),
        active=active,
        steps=STEPS,
        **SAMPLER,
      )
      output = jax.device_get(output)
    freed = np.full((SLOTS,), SLOTS, np.int32)
    for place in np.flatnonzero(active):
      records[running[place]].take(output, place, time.perf_counter())
    for place, i in enumerate(running):
      if i is None:
        continue
      away = records[i].running and rng.random() < 0.1
      if away:
        sent_away.add(i)
      if away or not records[i].running:
        running[place] = None
        # A row that has ended may stay until another takes its slot.
        if away or rng.random() < 0.5:
          freed[place] = place
    if (freed < SLOTS).any():
      state = slots.release(state, freed)
  return records, sent_away, log


def test_rows_that_come_and_go_are_as_each_alone(local_global):
  rng = np.random.default_rng(0)
  requests = []
  for i in range(15):
    text = rng.integers(4, 50, rng.integers(1, 17)).tolist()
    limit = int(rng.integers(1, 45))
    own = SamplingParams(max_new_tokens=limit, **SETTINGS[i % len(SETTINGS)])
    requests.append((text, own))
  before = slots.insert._cache_size()
  records, sent_away, log = serve(local_global, requests, rng)
  # One program for one row, and one for two.
  assert slots.insert._cache_size() - before <= 2
  # Rows were neighbours of others, and slots had several of them.
  assert max(sum(i is not None for i in row) for row in log) >= 3
  assert min(len(set(column)) for column in zip(*log, strict=True)) > 2
  assert sent_away and len(sent_away) < 8
  reasons = set()
  for i, (text, own) in enumerate(requests):
    [alone] = generate(
      *local_global,
      [text],
      [own],
      eos_ids=[EOS],
      batch_size=SLOTS,
      capacity=CAPACITY,
      chunk_steps=STEPS,
      order=ORDER,
    )
    got = records[i].completion
    count = len(got.token_ids)
    assert got.token_ids == alone.token_ids[: count if i in sent_away else None]
    for name in ('logprobs', 'logprobs_processed', 'logprobs_filtered'):
      np.testing.assert_allclose(
        getattr(got, name), getattr(alone, name)[:count], rtol=0, atol=1e-5
      )
    if i not in sent_away:
      reasons.add(got.finish_reason)
      assert got.finish_reason == alone.finish_reason
  assert reasons == {'stop', 'length'}


def test_all_rows_inserted_are_what_start_returns(local_global):
  requests = [([5, 6, 7], SamplingParams(seed=i)) for i in range(SLOTS)]
  fresh, _ = admit(local_global, requests, CAPACITY)
  order = np.arange(SLOTS, dtype=np.int32)
  got = slots.insert(poisoned(empty(local_global)), fresh, order)
  assert jax.tree.structure(got) == jax.tree.structure(fresh)
  data = lambda x: (
    jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    else x
  )
  for one, other in zip(
    jax.tree.leaves(got), jax.tree.leaves(fresh), strict=True
  ):
    np.testing.assert_array_equal(data(one), data(other))


def test_released_slots_are_idle_and_others_stay(local_global):
  own = SamplingParams(
    temperature=0.9, top_k=5, repetition_penalty=2.0, logit_bias={1: 1.0}
  )
  fresh, _ = admit(local_global, [([5, 6], own), ([7], own)])
  state = slots.insert(empty(local_global), fresh, np.array([2, 0], np.int32))
  assert state.done.tolist() == [False, True, False, True]
  assert state.cache.length.tolist() == [1, 0, 2, 0]
  # 4 and above are no slots.
  state = slots.release(state, np.array([2, 4, 4, 9], np.int32))
  assert state.done.tolist() == [False, True, True, True]
  assert state.cache.length.tolist() == [1, 0, 0, 0]
  context = stages.Context(state.rows, state.history, state.rows.key, None)
  used = stages.any_on(tuple(stages.STAGES), context)
  assert used.tolist() == [True, False, False, False]
  assert state.rows.temperature.tolist() == pytest.approx([0.9, 0, 0, 0])


def test_rows_that_do_not_fit_are_refused(local_global):
  fresh, _ = admit(local_global, [([5, 6], IDLE)], 2 * CAPACITY)
  with pytest.raises(ValueError, match='256, 8.*do not fit.*128, 8'):
    slots.insert(empty(local_global), fresh, np.array([0], np.int32))
  shared = fresh.replace(shared=fresh.cache)
  with pytest.raises(ValueError, match='share prompts'):
    slots.insert(empty(local_global), shared, np.array([0], np.int32))
