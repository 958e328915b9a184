"""The compiled decode step: a scan of k steps with the sampler inside."""

import functools
from typing import Any

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from llm.decode.rows import (
  Constraint,
  History,
  RowSampling,
  advance,
  append,
  init_history,
)
from llm.decode.sampling import DEFAULT_ORDER, SampleInfo, sample_rows
from llm.models.cache import KVCache, close_cache, open_cache
from llm.models.transformer import Transformer

CHUNK_STEPS = 16


@struct.dataclass
class DecodeState:
  """What a decode step carries.

  Attributes:
    cache: all tokens but the last sampled one, and without those in `shared`.
    shared: the cache of R prompts, each of which B / R consecutive rows
      continue, or None.
    token: int32[B], the last sampled token.
    history: prompt and output, for penalties and n-grams.
    rows: sampling settings.
    remaining: int32[B], tokens that the row may still emit.
    done: bool[B]; a row that is done stays as it is.
    constraint: what the rows may write next; None: anything.
  """

  cache: KVCache
  shared: KVCache | None
  token: jax.Array
  history: History
  rows: RowSampling
  remaining: jax.Array
  done: jax.Array
  constraint: Constraint | None = None


@struct.dataclass
class StepOutput:
  """One step's tokens int32[B], what is known of them, validity bool[B]."""

  token: jax.Array
  info: SampleInfo
  valid: jax.Array


def _emit(state, logits, order, top_n):
  """Samples the next token of every row from logits[B, V]."""
  token, info = sample_rows(
    logits,
    state.rows,
    state.history,
    state.constraint,
    order=order,
    top_n=top_n,
  )
  valid = ~state.done
  token = jnp.where(valid, token, state.token)
  stopped = jnp.any(state.rows.stop_ids == token[:, None], axis=-1)
  remaining = state.remaining - valid
  state = state.replace(
    token=token,
    history=append(state.history, token, valid),
    constraint=advance(state.constraint, token, valid),
    remaining=remaining,
    done=state.done | stopped | (remaining <= 0),
  )
  return state, StepOutput(token, info, valid)


def first_state(
  cache,
  tokens,
  lengths,
  rows,
  limits,
  *,
  vocab_size,
  capacity,
  shared=None,
  constraint=None,
) -> DecodeState:
  """The state before the first token is sampled; see `start`."""
  history = init_history(tokens, lengths, vocab_size, capacity)
  return DecodeState(
    cache,
    shared,
    jnp.zeros_like(lengths),
    history,
    rows,
    limits,
    limits <= 0,
    constraint,
  )


@functools.partial(
  jax.jit,
  static_argnames=('capacity', 'order', 'top_n'),
  donate_argnames=('cache',),
)
def start(
  cache,
  logits,
  tokens,
  lengths,
  rows,
  limits,
  *,
  capacity,
  order,
  top_n,
  shared=None,
  constraint=None,
):
  """The state after the prompt, and its first token.

  Args:
    cache: as `prefill` left it, or empty where rows share prompts; donated.
    logits: float32[B, V], after the prompt.
    tokens, lengths: int32[B, T], int32[B], the prompt.
    rows: sampling settings of the B rows.
    limits: int32[B], tokens to emit at most; 0 for padding rows.
    capacity: slots of the token history.
    shared: the prompts' cache as `prefill` left it, where rows share prompts.
    constraint: what the rows may write first; None: anything.

  Returns:
    (DecodeState, StepOutput).
  """
  state = first_state(
    cache,
    tokens,
    lengths,
    rows,
    limits,
    vocab_size=logits.shape[-1],
    capacity=capacity,
    shared=shared,
    constraint=constraint,
  )
  return _emit(state, logits, order, top_n)


@functools.partial(
  jax.jit,
  static_argnames=('model', 'steps', 'attend_length', 'order', 'top_n'),
  donate_argnames=('state',),
)
def decode_chunk(
  params: Any,
  state: DecodeState,
  *,
  model: Transformer,
  steps: int = CHUNK_STEPS,
  attend_length: int | None = None,
  order: tuple[str, ...] = DEFAULT_ORDER,
  top_n: int = 0,
) -> tuple[DecodeState, StepOutput]:
  """`steps` decode steps in one program.

  Each step feeds the last token, samples the next one and appends it. The
  cache is opened once and closed once (see `llm.models.cache`).

  Args:
    params: the model's parameters.
    state: donated.
    model: the transformer.
    steps: k.
    attend_length: bound on the slots in use, at least the longest row before
      the chunk, without what it shares; None: all that are allocated.
    order, top_n: see `sample_rows`.

  Returns:
    (DecodeState, StepOutput with a leading axis of k).
  """
  cache, shared = state.cache, state.shared
  held = jnp.zeros((), jnp.int32)

  def step(carry, _):
    state, opened, taken = carry
    taken = taken + ~state.done
    logits, opened = model.apply(
      {'params': params}, state.token[:, None], cache=opened
    )
    state, output = _emit(state, logits[:, 0], order, top_n)
    return (state, opened, taken), output

  opened = open_cache(cache, steps, attend_length, shared)
  carry = state.replace(cache=held, shared=None)
  carry = (carry, opened, jnp.zeros_like(state.token))
  (state, opened, taken), output = lax.scan(step, carry, length=steps)
  cache = close_cache(cache, opened, taken)
  return state.replace(cache=cache, shared=shared), output


@functools.partial(
  jax.jit, static_argnames=('model', 'length'), donate_argnames=('state',)
)
def reread(
  params: Any,
  state: DecodeState,
  rows: jax.Array,
  *,
  model: Transformer,
  length: int,
) -> DecodeState:
  """Rebuilds the cache of some rows for one more token than they hold.

  LongRoPE rotates all keys of a row by other frequencies once the row is
  longer than the original context, so the row is read again at that point (as
  Phi-3 does in `transformers`).

  Args:
    params: the model's parameters.
    state: donated.
    rows: bool[B], the rows to read again.
    model: the transformer.
    length: static, at least as long as these rows.
  """
  old = state.cache
  _, fresh = model.apply(
    {'params': params},
    state.history.tokens[:, :length],
    cache=jax.tree.map(jnp.zeros_like, old),
    lengths=jnp.minimum(old.length, length),
    rope_length=old.length + 1,
    attend_length=0,
    method='trunk',
  )
  return state.replace(cache=old.where_rows(rows, fresh))
