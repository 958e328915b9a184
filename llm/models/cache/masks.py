"""Which keys a query sees."""

from typing import Any

import jax
import jax.numpy as jnp


def own_mask(length: int, segment_ids: jax.Array | None, window: Any):
  """bool[B or 1, T, T]: causal, within a segment, within the window.

  Args:
    length: T.
    segment_ids: int32[B, T] or None.
    window: tokens that a query sees, itself included; None: all.
  """
  index = jnp.arange(length)
  mask = index[None, :] <= index[:, None]
  if window is not None:
    mask = mask & (index[None, :] > index[:, None] - window)
  mask = mask[None]
  if segment_ids is not None:
    mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
  return mask


def past_mask(
  position: jax.Array, held: jax.Array, query: jax.Array, window: Any
) -> jax.Array:
  """bool[B, T, S]: which slots queries see.

  Args:
    position: int32[B, S], index of the token in each slot.
    held: bool[B, S], whether the slot holds one.
    query: int32[B, T], index of each query; all that is held is before it.
    window: tokens that a query sees, itself included; None: all.
  """
  mask = held[:, None]
  if window is not None:
    mask = mask & (position[:, None] > query[..., None] - window)
  return mask


def ring_position(
  length: jax.Array, slots: jax.Array, window: int
) -> jax.Array:
  """The newest position < length that lives in each slot; negative if none.

  length: int32[B], slots: int32[S] -> int32[B, S]. Example, window 4: after 6
  tokens the slots hold positions 4, 5, 2, 3.
  """
  last = length[:, None] - 1
  return last - (last - slots[None]) % window
