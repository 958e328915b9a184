"""A constraint that only this test knows, decoded through `decode_chunk`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.decode import slots
from llm.decode.prefill import empty_cache, pad_rows, prefill
from llm.decode.rows import (
  Constraint,
  advance,
  allowed_ids,
  init_history,
  stack_rows,
)
from llm.decode.sampling import DEFAULT_ORDER, sample_rows
from llm.decode.sampling_params import SamplingParams
from llm.decode.step import decode_chunk, start
from tests.models import tiny

V = 50
FREE = 2  # a state in which a row may write anything, for ever
STEPS = 4
PROMPTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]
SAMPLING = [
  SamplingParams(seed=1, max_new_tokens=20),
  SamplingParams(seed=2, temperature=0.0, max_new_tokens=20),
  SamplingParams(seed=3, top_k=4, repetition_penalty=1.3, max_new_tokens=20),
  SamplingParams(seed=4, max_new_tokens=20),
]


def allow(tables, state):
  return tables['allowed'][state]


def step(tables, state, token):
  return tables['next'][state, token]


def even_and_odd(states):
  """Even ids in state 0, odd ones in state 1, in turn; anything in FREE."""
  ids = np.arange(V)
  tables = {
    'allowed': np.stack([ids % 2 == 0, ids % 2 == 1, ids >= 0]),
    'next': np.stack([np.full(V, n, np.int32) for n in (1, 0, FREE)]),
  }
  states = jnp.asarray(states, jnp.int32)
  return Constraint(allow, step, states, jax.tree.map(jnp.asarray, tables))


@functools.cache
def decoded(states):
  """Tokens int[2 * STEPS + 1, 4] and the last state of the constraint."""
  model, params = tiny.build()
  tokens, lengths = pad_rows(PROMPTS, 16, 4)
  cache = empty_cache(model=model, batch=4, capacity=64, dtype=jnp.float32)
  logits, cache = prefill(params, tokens, lengths, cache, model=model)
  state, first = start(
    cache,
    logits,
    tokens,
    lengths,
    stack_rows(SAMPLING, vocab_size=V),
    np.array([20, 20, 20, 6], np.int32),
    capacity=64,
    order=DEFAULT_ORDER,
    top_n=0,
    constraint=None if states is None else even_and_odd(states),
  )
  out = [first.token[None]]
  for _ in range(2):
    state, output = decode_chunk(
      params, state, model=model, steps=STEPS, attend_length=64
    )
    out.append(output.token)
  return np.concatenate(out), state


def test_rows_alternate_between_even_and_odd_ids():
  tokens, state = decoded((0, 0, 1, 0))
  parity = tokens % 2
  assert parity[:, 0].tolist() == parity[:, 1].tolist() == [0, 1] * 4 + [0]
  assert parity[:, 2].tolist() == [1, 0] * 4 + [1]
  # The fourth row is done after 6 tokens: token and state then stay.
  assert parity[:, 3].tolist() == [0, 1, 0, 1, 0, 1, 1, 1, 1]
  assert state.constraint.state.tolist() == [1, 1, 0, 0]
  assert state.done.tolist() == [False, False, False, True]


def test_a_free_row_beside_constrained_ones_is_a_row_without_any():
  free, _ = decoded((FREE, 0, FREE, 1))
  alone, state = decoded(None)
  np.testing.assert_array_equal(free[:, [0, 2]], alone[:, [0, 2]])
  assert (free[:, 1] != alone[:, 1]).any()
  assert state.constraint is None


def test_constrained_rows_go_through_slots():
  """Row 0 goes to slot 3, row 1 to slot 1; slots 0 and 2 are idle."""
  model, params = tiny.build()
  tokens, lengths = pad_rows(PROMPTS[:2], 16, 2)
  cache = empty_cache(model=model, batch=2, capacity=16, dtype=jnp.float32)
  logits, cache = prefill(params, tokens, lengths, cache, model=model)
  sampler = {'order': ('constraint', 'temperature'), 'top_n': 0}
  fresh, first = start(
    cache,
    logits,
    tokens,
    lengths,
    stack_rows(SAMPLING[:2], vocab_size=V),
    np.array([20, 20], np.int32),
    capacity=16,
    constraint=even_and_odd((0, 1)),
    **sampler,
  )
  assert (first.token % 2).tolist() == [0, 1]
  size = {'model': model, 'batch': 4, 'capacity': 64, 'dtype': jnp.float32}
  idle = slots.init_slots(constraint=even_and_odd([FREE] * 4), **size)
  state = slots.insert(idle, fresh, np.array([3, 1], np.int32))
  assert state.constraint.state.tolist() == [FREE, 0, FREE, 1]
  _, output = decode_chunk(params, state, model=model, steps=STEPS, **sampler)
  parity = output.token % 2
  assert parity[:, 3].tolist() == [1, 0, 1, 0]
  assert parity[:, 1].tolist() == [0, 1, 0, 1]
  with pytest.raises(ValueError, match='only one of state and fresh'):
    slots.insert(slots.init_slots(**size), fresh, np.array([3, 1], np.int32))


def test_the_best_allowed_id_is_the_greedy_choice():
  model, params = tiny.build()
  tokens, _ = decoded((0, 0, 1, 0))
  logits, _ = model.apply({'params': params}, jnp.array([PROMPTS[1]]))
  even = np.where(np.arange(V) % 2 == 0, np.asarray(logits[0, -1]), -np.inf)
  assert tokens[0, 1] == np.argmax(even)


def test_a_constraint_advances_only_with_valid_tokens():
  constraint = even_and_odd([0, 0, 1])
  moved = advance(constraint, jnp.array([4, 4, 5]), jnp.array([1, 0, 1], bool))
  assert moved.state.tolist() == [1, 0, 0]
  assert np.asarray(allowed_ids(moved))[:, :3].tolist() == [
    [False, True, False], [True, False, True], [True, False, True],
  ]  # fmt: skip
  assert advance(None, jnp.array([4]), jnp.array([True])) is None


def test_a_constraint_wins_over_bans_and_needs_its_place_in_the_order():
  rows = stack_rows(
    [SamplingParams(forbidden_ids=(0,), temperature=0.0)], vocab_size=V
  )
  history = init_history(jnp.ones((1, 1), jnp.int32), jnp.ones(1), V, 8)
  only_zero = Constraint(
    lambda tables, state: jnp.arange(V) == state, step, jnp.array([0])
  )
  logits = jnp.zeros((1, V)).at[0, 3].set(5.0)
  token, info = sample_rows(logits, rows, history, only_zero)
  assert token.tolist() == [0]
  assert info.logprob_processed[0] == 0.0
  with pytest.raises(ValueError, match="leaves out 'constraint'"):
    sample_rows(logits, rows, history, only_zero, order=('temperature',))
