"""Processors: change logits by a row's settings and its tokens so far.

Every function takes `logits: float32[V]`, traced settings and the row's tokens,
and returns `float32[V]`; `vmap` them for a batch. Results are those of the
processors of `transformers` 5 where it has them. Filters, which drop unlikely
tokens, are in `filters.py`.
"""

import jax
from jax import lax
import jax.numpy as jnp


def temperature(logits: jax.Array, value: jax.Array) -> jax.Array:
  """Divides by the temperature: float32[], above 0."""
  return logits / value


def bias(logits: jax.Array, values: jax.Array) -> jax.Array:
  """Adds `values: float32[V]`; -inf forbids a token."""
  return logits + values


def repetition_penalty(
  logits: jax.Array, penalty: jax.Array, seen: jax.Array
) -> jax.Array:
  """Divides positive and multiplies negative logits (arXiv:1909.05858).

  Args:
    logits: float32[V].
    penalty: float32[], above 0; above 1 discourages.
    seen: bool[V], tokens of the prompt and of the output.
  """
  penalised = jnp.where(logits < 0, logits * penalty, logits / penalty)
  return jnp.where(seen, penalised, logits)


def presence_penalty(
  logits: jax.Array, penalty: jax.Array, output_counts: jax.Array
) -> jax.Array:
  """Subtracts `penalty` where a token is in the output (OpenAI API).

  Args:
    logits: float32[V].
    penalty: float32[].
    output_counts: int32[V], occurrences in the output, prompt left out.
  """
  return logits - penalty * (output_counts > 0)


def frequency_penalty(
  logits: jax.Array, penalty: jax.Array, output_counts: jax.Array
) -> jax.Array:
  """Subtracts `penalty` per occurrence in the output (OpenAI API)."""
  return logits - penalty * output_counts


def no_repeat_ngram(
  logits: jax.Array, size: jax.Array, tokens: jax.Array, length: jax.Array
) -> jax.Array:
  """Forbids tokens that would repeat an n-gram (arXiv:1705.04304).

  Trace, size 2: after [1, 1, 2, 1] the bigrams (1, 1) and (1, 2) exist and 1
  is last, so 1 and 2 are forbidden.

  Args:
    logits: float32[V].
    size: int32[], 1 or more.
    tokens: int32[S], prompt and output, right padded.
    length: int32[], how many are real.
  """
  matched = repeated_suffix(tokens, length, size - 1)
  # The match before slot j ends at j - 1, so that j would be repeated.
  repeats = (matched >= size - 1) & (jnp.arange(tokens.shape[0]) < length)
  ids = jnp.where(repeats, tokens, logits.shape[0])
  return logits.at[ids].set(-jnp.inf, mode='drop')


def min_new_tokens(
  logits: jax.Array, least: jax.Array, new: jax.Array, stop_ids: jax.Array
) -> jax.Array:
  """Forbids the ids that stop while the output has fewer than `least` tokens.

  Args:
    logits: float32[V].
    least: int32[].
    new: int32[], length of the output so far.
    stop_ids: int32[Z], padded with -1.
  """
  off = (new >= least) | (stop_ids < 0)
  ids = jnp.where(off, logits.shape[0], stop_ids)
  return logits.at[ids].set(-jnp.inf, mode='drop')


def permitted(logits: jax.Array, values: jax.Array) -> jax.Array:
  """Where all logits are -inf, gives 0 to what the bias permits.

  A row that allows only ids which something else forbids would have no token
  left; as in `PrefixConstrainedLogitsProcessor`, what it allows wins.

  Args:
    logits: float32[V].
    values: float32[V], the row's bias; -inf where an id is not permitted.
  """
  fallback = jnp.where(values > -jnp.inf, 0.0, -jnp.inf)
  return jnp.where(jnp.max(logits) > -jnp.inf, logits, fallback)


def constraint(logits: jax.Array, allowed: jax.Array) -> jax.Array:
  """Forbids what is not `allowed`: bool[V], true somewhere.

  Where no allowed id is left, because a ban or a penalty took them all, each
  of them gets 0: a constraint wins over every other setting.

  Trace, [2, 1, -inf] with the ids 1 and 2 allowed -> [-inf, 1, -inf]; with id 2
  alone -> [-inf, -inf, 0].

  Args:
    logits: float32[V].
    allowed: bool[V].
  """
  kept = jnp.where(allowed, logits, -jnp.inf)
  fallback = jnp.where(allowed, 0.0, -jnp.inf)
  return jnp.where(jnp.max(kept) > -jnp.inf, kept, fallback)


def dry(
  logits: jax.Array,
  multiplier: jax.Array,
  base: jax.Array,
  allowed_length: jax.Array,
  breakers: jax.Array,
  tokens: jax.Array,
  length: jax.Array,
) -> jax.Array:
  """Subtracts multiplier x base^(m - allowed) from what repeats m tokens.

  m is the length of the longest suffix of the row that also stands before an
  earlier occurrence of the candidate; nothing happens below `allowed_length`.
  No match crosses a breaker, and breakers are never penalised. DRY: "don't
  repeat yourself" (p-e-w, oobabooga/text-generation-webui#5677), with the
  conventions of llama.cpp; the whole context is searched.

  Trace, allowed 2, multiplier 1, base 2: after [1, 2, 3, 9, 1, 2, 3] the last
  3 tokens came before 9, which loses 2^(3 - 2) = 2.

  Args:
    logits: float32[V].
    multiplier, base: float32[].
    allowed_length: int32[].
    breakers: bool[V].
    tokens: int32[S], prompt and output, right padded.
    length: int32[], how many are real.
  """
  slots = jnp.arange(tokens.shape[0])
  real = slots < length
  breaks = breakers[tokens] & real
  since_break = length - 1 - jnp.max(jnp.where(breaks, slots, -1))
  # More would overflow float32: llama.cpp's bound on the exponent.
  most = jnp.where(
    base > 1.000001, jnp.floor(88.7228391 / jnp.log(base)), 0.0
  ).astype(jnp.int32)
  longest = jnp.minimum(since_break, allowed_length + most)
  matched = repeated_suffix(tokens, length, longest)
  counts = (matched >= allowed_length) & (slots > 0) & real
  counts &= since_break >= allowed_length
  ids = jnp.where(counts, tokens, logits.shape[0])
  worst = jnp.full(logits.shape, -1, jnp.int32)
  worst = worst.at[ids].max(matched, mode='drop')
  penalty = multiplier * jnp.power(base, worst - allowed_length)
  return jnp.where((worst >= 0) & ~breakers, logits - penalty, logits)


def repeated_suffix(
  tokens: jax.Array, length: jax.Array, limit: jax.Array
) -> jax.Array:
  """How many last tokens also stand just before each slot.

  Trace: tokens [a, b, c, a, b], limit 9 -> before slot 2 (c) stands [a, b],
  the last two tokens: [0, 0, 2, 0, 0]. Slot 0 has nothing before it.

  Costs S compares per matched token, and stops at the longest match.

  Args:
    tokens: int32[S], right padded.
    length: int32[], how many are real.
    limit: int32[], longest match looked for.

  Returns:
    int32[S], at most `limit`; 0 in the padding.
  """
  size = tokens.shape[0]
  slots = jnp.arange(size)

  def step(state):
    offset, alive, matched = state
    # Slot j compares tokens[j - 1 - offset] with tokens[length - 1 - offset].
    before = jnp.roll(tokens, 1 + offset)
    last = tokens[jnp.maximum(length - 1 - offset, 0)]
    alive = alive & (slots > offset) & (before == last)
    return offset + 1, alive, matched + alive

  def more(state):
    offset, alive, _ = state
    return (offset < limit) & jnp.any(alive)

  start = jnp.int32(0), slots < length, jnp.zeros(size, jnp.int32)
  return lax.while_loop(more, step, start)[2]
