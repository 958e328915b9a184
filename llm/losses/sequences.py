"""Log-probabilities of whole completions from those of their tokens.

Positions outside the mask are dropped, whatever they hold (-inf, NaN).
"""

import jax
import jax.numpy as jnp


def sequence_logprobs(
  logprobs: jax.Array, mask: jax.Array, tail_weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each row's completion, and how many tokens it has.

  Args:
    logprobs: float[P, T], of each token given those before it.
    mask: bool or float[P, T], True on the completion's tokens.
    tail_weights: float[P, T] from `tail_weights`, for LD-DPO; the count does
      not change by it.

  Returns:
    sums float32[P] in nats and tokens float32[P].

  Raises:
    ValueError: the shapes do not agree.
  """
  kept = _kept(logprobs, mask, tail_weights)
  return kept.sum(axis=-1), (mask != 0).sum(axis=-1).astype(jnp.float32)


def packed_sequence_logprobs(
  logprobs: jax.Array,
  mask: jax.Array,
  segment_ids: jax.Array,
  segments: int,
  tail_weights: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`sequence_logprobs` of each document of packed rows.

  Args:
    logprobs: float[B, T], of each token given those before it.
    mask: bool or float[B, T], True on the completions' tokens.
    segment_ids: int[B, T], 1 to `segments` in each row, 0 for padding.
    segments: S, the most documents that a row has (static).
    tail_weights: float[B, T], for LD-DPO.

  Returns:
    sums float32[B, S] and tokens float32[B, S]; a document that is not there
    has 0 of both.

  Raises:
    ValueError: the shapes do not agree.
  """
  kept = _kept(logprobs, mask, tail_weights)
  if segment_ids.shape != mask.shape:
    raise ValueError(
      f'segment_ids has shape {segment_ids.shape}, but mask {mask.shape}'
    )

  def by_row(values, ids):
    return jax.ops.segment_sum(values, ids, segments + 1)[1:]

  ids = jnp.clip(segment_ids, 0, segments)
  count = (mask != 0).astype(jnp.float32)
  return jax.vmap(by_row)(kept, ids), jax.vmap(by_row)(count, ids)


def completion_ends(
  mask: jax.Array, segment_ids: jax.Array, segments: int
) -> jax.Array:
  """Where each document of packed rows has its last token under the mask.

  Args:
    mask: bool or float[B, T], True on the completions' tokens.
    segment_ids: int[B, T], 1 to `segments` in each row, 0 for padding.
    segments: S (static).

  Returns:
    int32[B, S]; 0 for a document that is not there.
  """
  places = jnp.arange(mask.shape[1])

  def by_row(row, ids):
    last = jnp.where(row != 0, places, 0)
    ends = jax.ops.segment_max(last, ids, segments + 1)[1:]
    return jnp.maximum(ends, 0)  # the least integer where there is nothing

  return jax.vmap(by_row)(mask, jnp.clip(segment_ids, 0, segments))


def tail_weights(
  mask: jax.Array, shared_tokens: jax.Array, alpha: float
) -> jax.Array:
  """Weights of LD-DPO: `alpha` for the part of a completion that is longer.

  The completions of a pair share their first min(n_chosen, n_rejected) tokens
  in length; only those count in full (Liu et al., 2409.06411). alpha = 1 is
  DPO, alpha = 0 ignores the tail:

    mask  0 1 1 1 0 1    shared_tokens 2    weights  1 1 1 a a a

  Args:
    mask: bool or float[P, T], True on the completion's tokens.
    shared_tokens: int or float[P], tokens of the shorter completion.
    alpha: weight of the tail, from 0 to 1.

  Returns:
    float32[P, T].
  """
  place = jnp.cumsum(mask != 0, axis=-1)
  tail = place > shared_tokens[:, None]
  return jnp.where(tail, alpha, 1.0).astype(jnp.float32)


def _kept(logprobs, mask, weights):
  """float32 log-probabilities under the mask, weighted; 0 elsewhere."""
  logprobs = jnp.asarray(logprobs, jnp.float32)
  for name, array in (('mask', mask), ('tail_weights', weights)):
    if array is not None and array.shape != logprobs.shape:
      raise ValueError(
        f'{name} has shape {array.shape}, but logprobs {logprobs.shape}'
      )
  kept = jnp.where(mask != 0, logprobs, 0.0)
  return kept if weights is None else kept * weights
