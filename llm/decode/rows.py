"""What the sampler reads about each row: settings, tokens so far, constraint.

All are pytrees of arrays with the batch in front, so that rows with different
settings share one compiled program.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from llm.decode.sampling_params import (
  MAX_STOP_IDS,
  SamplingParams,
  check_ids,
  stop_ids,
)


@struct.dataclass
class RowSampling:
  """Sampling settings of B rows, all traced.

  Attributes:
    temperature, min_p, typical_p, epsilon, eta, repetition_penalty,
      presence_penalty, frequency_penalty, dry_multiplier, dry_base,
      xtc_probability, xtc_threshold: float32[B], as in `SamplingParams`.
    top_k, no_repeat_ngram, min_new_tokens, dry_allowed_length: int32[B].
    top_p_cut: float32[B], 1 - top_p: the mass that may be cut. It is computed
      in float64, as float32(1) - float32(0.8) is not float32(0.2).
    bias: float32[B, V], logit_bias; -inf where an id is not permitted.
    biased: bool[B], whether the row's `bias` is not all zeros.
    stop_ids: int32[B, Z], the ids that end the row, padded with -1.
    dry_breakers: bool[B, V].
    key: keys [B], `fold_in(root, seed)`.
  """

  temperature: jax.Array
  top_k: jax.Array
  top_p_cut: jax.Array
  min_p: jax.Array
  typical_p: jax.Array
  epsilon: jax.Array
  eta: jax.Array
  repetition_penalty: jax.Array
  presence_penalty: jax.Array
  frequency_penalty: jax.Array
  no_repeat_ngram: jax.Array
  min_new_tokens: jax.Array
  dry_multiplier: jax.Array
  dry_base: jax.Array
  dry_allowed_length: jax.Array
  xtc_probability: jax.Array
  xtc_threshold: jax.Array
  bias: jax.Array
  biased: jax.Array
  stop_ids: jax.Array
  dry_breakers: jax.Array
  key: jax.Array


IDLE = SamplingParams(temperature=0.0)
"""Settings of a padding row: no stage has to run for it."""
_INTS = ('top_k', 'no_repeat_ngram', 'min_new_tokens', 'dry_allowed_length')
_FLOATS = (
  'temperature',
  'min_p',
  'typical_p',
  'epsilon',
  'eta',
  'repetition_penalty',
  'presence_penalty',
  'frequency_penalty',
  'dry_multiplier',
  'dry_base',
  'xtc_probability',
  'xtc_threshold',
)


def stack_rows(
  params: Sequence[SamplingParams],
  *,
  vocab_size: int,
  eos_ids: Iterable[int] = (),
) -> RowSampling:
  """Stacks the settings of one row each (see `expand` for n > 1).

  Args:
    params: settings of B rows.
    vocab_size: V, the number of logits.
    eos_ids: the model's end-of-sequence ids.

  Raises:
    UserError: an id does not fit the vocabulary, see `check_ids`.
  """
  eos_ids = tuple(eos_ids)
  rows = len(params)
  bias = np.zeros((rows, vocab_size), np.float32)
  breakers = np.zeros((rows, vocab_size), bool)
  stops = np.full((rows, MAX_STOP_IDS), -1, np.int32)
  for row, one in enumerate(params):
    check_ids(one, vocab_size, eos_ids)
    if one.allowed_ids:
      bias[row] = -np.inf
      bias[row, list(one.allowed_ids)] = 0.0
    for token, value in one.logit_bias.items():
      bias[row, token] += value
    bias[row, list(one.forbidden_ids)] = -np.inf
    breakers[row, list(one.dry_breakers)] = True
    stop = stop_ids(one, eos_ids)
    stops[row, : len(stop)] = stop
  # No row is that long, so a larger integer means the same.
  ints = {
    name: np.array([min(getattr(one, name), 2**30) for one in params], np.int32)
    for name in _INTS
  }
  floats = {
    name: np.array([getattr(one, name) for one in params], np.float32)
    for name in _FLOATS
  }
  fields = (
    ints
    | floats
    | {
      'top_p_cut': np.array([1.0 - one.top_p for one in params], np.float32),
      'bias': bias,
      'biased': (bias != 0.0).any(axis=-1),
      'stop_ids': stops,
      'dry_breakers': breakers,
    }
  )
  seeds = np.array([one.seed for one in params], np.uint32)
  return RowSampling(
    **{name: jnp.asarray(value) for name, value in fields.items()},
    key=row_keys(jnp.asarray(seeds)),
  )


def idle_rows(rows: RowSampling, idle: jax.Array) -> RowSampling:
  """Gives the rows bool[B] such settings that no stage has to run for them."""
  fields = {
    name: jnp.where(idle, getattr(IDLE, name), getattr(rows, name))
    for name in _INTS + _FLOATS
  }
  return rows.replace(biased=rows.biased & ~idle, **fields)


@jax.jit
def row_keys(seeds: jax.Array) -> jax.Array:
  """Returns `fold_in(root, seed)` for seeds uint32[B]: keys [B].

  The generator is named here, so that a seed means the same whatever the
  default generator of the process is.
  """
  root = jax.random.key(0, impl='threefry2x32')
  return jax.vmap(lambda seed: jax.random.fold_in(root, seed))(seeds)


@struct.dataclass
class History:
  """The tokens of B rows so far, and what the penalties count in them.

  Attributes:
    tokens: int32[B, S], prompt and output, right padded.
    length: int32[B], how many of them are real.
    prompt_length: int32[B].
    prompt_seen: bool[B, V], ids that occur in the prompt.
    output_counts: int32[B, V], occurrences in the output.
  """

  tokens: jax.Array
  length: jax.Array
  prompt_length: jax.Array
  prompt_seen: jax.Array
  output_counts: jax.Array


def init_history(
  tokens: jax.Array, lengths: jax.Array, vocab_size: int, capacity: int
) -> History:
  """Returns the history of B prompts.

  Args:
    tokens: int32[B, T], right padded.
    lengths: int32[B], true prompt lengths.
    vocab_size: V.
    capacity: S >= T, the longest prompt and output together.
  """
  batch, width = tokens.shape
  if width > capacity:
    raise ValueError(
      f'capacity = {capacity}: must hold the {width} tokens of the prompts'
    )
  lengths = lengths.astype(jnp.int32)
  real = jnp.arange(width) < lengths[:, None]
  # Padding is scattered to V, outside, and dropped.
  ids = jnp.where(real, tokens, vocab_size)
  seen = jnp.zeros((batch, vocab_size), bool)
  seen = seen.at[jnp.arange(batch)[:, None], ids].set(True, mode='drop')
  return History(
    tokens=jnp.pad(tokens.astype(jnp.int32), ((0, 0), (0, capacity - width))),
    length=lengths,
    prompt_length=lengths,
    prompt_seen=seen,
    output_counts=jnp.zeros((batch, vocab_size), jnp.int32),
  )


def append(history: History, tokens: jax.Array, valid: jax.Array) -> History:
  """Appends one token to each row that is `valid`; the others stay.

  Args:
    history: of B rows.
    tokens: int32[B].
    valid: bool[B].
  """
  batch, capacity = history.tokens.shape
  row = jnp.arange(batch)
  slot = jnp.where(valid, history.length, capacity)
  return history.replace(
    tokens=history.tokens.at[row, slot].set(tokens, mode='drop'),
    length=history.length + valid.astype(jnp.int32),
    output_counts=history.output_counts.at[row, tokens].add(
      valid.astype(jnp.int32), mode='drop'
    ),
  )


@struct.dataclass
class Constraint:
  """Which ids B rows may write next, and how that changes with each token.

  A finite automaton, for example: `state` is the automaton's state per row and
  `tables` its transitions, which all rows share. Rows whose state allows every
  id are free, so that some rows of a batch can be constrained and others not.

  Trace, even and odd ids in turn: state 0 allows {0, 2, …}; after token 4 the
  state is 1, which allows {1, 3, …}; after token 3 it is 0 again.

  Attributes:
    allow: static; (tables, state of one row) -> bool[V], true somewhere.
    step: static; (tables, state of one row, token int32[]) -> its next state.
      Both are pure. Functions of a module share compiled programs; one that is
      made anew for each call compiles them each time.
    state: pytree of arrays [B, …].
    tables: pytree of arrays that belong to no row.
  """

  allow: Callable[..., jax.Array] = struct.field(pytree_node=False)
  step: Callable[..., Any] = struct.field(pytree_node=False)
  state: Any
  tables: Any = None


def allowed_ids(constraint: Constraint) -> jax.Array:
  """bool[B, V]: what each row may write next."""
  return jax.vmap(constraint.allow, (None, 0))(
    constraint.tables, constraint.state
  )


def advance(
  constraint: Constraint | None, tokens: jax.Array, valid: jax.Array
) -> Constraint | None:
  """The constraint after one more token of each row that is `valid`.

  Args:
    constraint: of B rows; None stays None.
    tokens: int32[B].
    valid: bool[B]; the other rows keep their state.
  """
  if constraint is None:
    return None
  moved = jax.vmap(constraint.step, (None, 0, 0))(
    constraint.tables, constraint.state, tokens
  )

  def select(new, old):
    return jnp.where(valid.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

  return constraint.replace(state=jax.tree.map(select, moved, constraint.state))
