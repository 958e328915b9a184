"""Slots: rows of a decode state that come and go while others keep running.

A `DecodeState` has B slots. `start` makes rows of freshly prefilled prompts,
`insert` puts them into free slots, `decode_chunk` runs all slots, `release`
frees those whose rows are finished. A row's tokens are the same as if it ran
alone. Two slots over four chunks, `.` being idle:

  slot 0   a a a b      b arrives while c runs, after a is done
  slot 1   . c c c

Where rows fill all slots at once, what `start` returns is the state already:
inserting it would only copy it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.buckets import bucket, fine_bucket
from llm.decode.prefill import empty_cache
from llm.decode.rows import IDLE, Constraint, idle_rows, stack_rows
from llm.decode.step import (
  DecodeState,
  StepOutput,
  decode_chunk,
  first_state,
  reread,
)
from llm.models.cache.rows import insert_rows
from llm.models.transformer import Transformer


def init_slots(
  *,
  model: Transformer,
  batch: int,
  capacity: int,
  constraint: Constraint | None = None,
  **layout: Any,
) -> DecodeState:
  """A state of idle slots.

  Args:
    model: the transformer.
    batch: B, how many slots.
    capacity: tokens that a row may have, and cache slots of each.
    constraint: of B rows, where those that come are to have one; its tables are
      those of all rows.
    **layout: of the cache: `dtype` and `make_layer`, as for `empty_cache`.
  """
  cache = empty_cache(model=model, batch=batch, capacity=capacity, **layout)
  vocab_size = model.config.vocab_size
  rows = stack_rows([IDLE] * batch, vocab_size=vocab_size)
  state = _idle_state(rows, capacity=capacity, vocab_size=vocab_size)
  return state.replace(cache=cache, constraint=constraint)


# Compiled, since its outputs are arrays of their own then, and can be donated.
@functools.partial(jax.jit, static_argnames=('capacity', 'vocab_size'))
def _idle_state(rows, **sizes):
  none = jnp.zeros(rows.top_k.shape, jnp.int32)
  return first_state(None, none[:, None], none, rows, none, **sizes)


@functools.partial(jax.jit, donate_argnames=('state',))
def insert(
  state: DecodeState, fresh: DecodeState, slots: jax.Array
) -> DecodeState:
  """Puts rows into slots. The other slots stay as they are.

  Nothing is left of the row that was in a slot before. There is one compiled
  program for each (R, slots per row of `fresh`): pad both to a ladder.

  Args:
    state: of B slots; donated.
    fresh: R rows, as `start` returns them; its cache and history may be shorter
      than those of `state`, and have to be of the same kinds.
    slots: int32[R], all different; B drops a padding row.

  Raises:
    ValueError: rows are longer than a slot, they share prompts, or only one of
      the two states has a constraint.
  """
  if state.shared is not None or fresh.shared is not None:
    raise ValueError(
      'rows that share prompts fill all slots at once: use what `start` returns'
    )
  constraint = state.constraint
  if (constraint is None) != (fresh.constraint is None):
    raise ValueError(
      'only one of state and fresh has a constraint: give one to both, with '
      'rows that it leaves free'
    )
  cache = state.cache.insert_rows(fresh.cache, slots)
  put = lambda x, new: insert_rows(x, new, slots)
  rest = jax.tree.map(
    put,
    state.replace(cache=None, constraint=None),
    fresh.replace(cache=None, constraint=None),
  )
  if constraint is not None:  # its tables belong to no row
    moved = jax.tree.map(put, constraint.state, fresh.constraint.state)
    constraint = constraint.replace(state=moved)
  return rest.replace(cache=cache, constraint=constraint)


@functools.partial(jax.jit, donate_argnames=('state',))
def release(state: DecodeState, slots: jax.Array) -> DecodeState:
  """Ends the rows in some slots and frees these.

  No stage of the sampler has to run for an idle slot.

  Args:
    state: of B slots; donated.
    slots: int32[R], of which those from B on are dropped.
  """
  freed = jnp.zeros_like(state.done).at[slots].set(True, mode='drop')
  length = jnp.where(freed, 0, state.cache.length)
  return state.replace(
    cache=state.cache.replace(length=length),
    rows=idle_rows(state.rows, freed),
    remaining=jnp.where(freed, 0, state.remaining),
    done=state.done | freed,
  )


def advance(
  params: Any,
  state: DecodeState,
  *,
  model: Transformer,
  held: np.ndarray,
  active: np.ndarray,
  steps: int,
  **sampler: Any,
) -> tuple[DecodeState, StepOutput]:
  """One chunk over all slots, with as few cache slots as the rows need.

  Before a row of a LongRoPE model outgrows the original context, chunks are
  single steps, and the row is read again at that point.

  Args:
    params: the model's parameters.
    state: donated.
    model: the transformer.
    held: int[B] on the host, tokens in each row's own cache.
    active: bool[B] on the host, the rows that run; at least one.
    steps: of the chunk.
    **sampler: `order` and `top_n`, as for `decode_chunk`.
  """
  if model.config.rope.type == 'longrope':
    left = model.config.rope.original_max_length - held
    crossing = active & (left == 0)
    if crossing.any():
      length = bucket(int(held[crossing].max()))
      length = min(length, state.history.tokens.shape[1])
      state = reread(params, state, crossing, model=model, length=length)
    if (active & (left > 0) & (left < steps)).any():
      steps = 1
  # After a shared prompt, a row's own tokens begin at 0, and the first steps
  # are worth programs of their own.
  least = 64 if state.shared is None else 16
  attend = min(fine_bucket(int(held[active].max()), least), state.cache.slots)
  return decode_chunk(
    params, state, model=model, steps=steps, attend_length=attend, **sampler
  )
