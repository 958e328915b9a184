"""Keys and values slot by slot: the float format, and writes in any format.

The functions take any format (`protocol.KV`) and treat all its arrays alike:
`slot_axes` says where the slots of each are.
"""

from collections.abc import Callable
from typing import Any

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from llm.models.cache.masks import ring_position
from llm.models.cache.protocol import KV


@struct.dataclass
class FloatKV:
  """Keys and values as floats.

  They are stored so that a decode step's products sum over the last axis: on
  CPU, the other order is copied into this one at every step.

  Attributes:
    k: dtype[B, K, S, H], rotated.
    v: dtype[B, K, H, S].
  """

  k: jax.Array
  v: jax.Array

  def pack(self, new: 'FloatKV') -> 'FloatKV':
    """Rounds new keys and values to this dtype."""
    return FloatKV(new.k.astype(self.k.dtype), new.v.astype(self.v.dtype))

  def unpack(self) -> tuple[jax.Array, jax.Array]:
    """(k, v) as they are."""
    return self.k, self.v

  def slot_axes(self) -> 'FloatKV':
    """The axes of S."""
    return FloatKV(k=-2, v=-1)


def empty_kv(
  batch: int, heads: int, slots: int, head_dim: int, dtype: Any
) -> FloatKV:
  """A `FloatKV` of zeros."""
  return FloatKV(
    k=jnp.zeros((batch, heads, slots, head_dim), dtype),
    v=jnp.zeros((batch, heads, head_dim, slots), dtype),
  )


def _each(fn: Callable[..., jax.Array], kv: KV, *others: KV) -> KV:
  """fn(array, axis of its slots, *arrays of others) for each array."""
  return jax.tree.map(fn, kv, kv.slot_axes(), *others)


def slots(kv: KV) -> int:
  """S."""
  return jax.tree.leaves(_each(lambda x, axis: x.shape[axis], kv))[0]


def leading(kv: KV, limit: int) -> KV:
  """The first `limit` slots, or all if there are fewer."""

  def cut(x, axis):
    if limit >= x.shape[axis]:
      return x
    return lax.slice_in_dim(x, 0, limit, axis=axis)

  return _each(cut, kv)


def room(kv: KV, steps: int) -> KV:
  """The same format with `steps` empty slots."""

  def empty(x, axis):
    shape = list(x.shape)
    shape[axis] = steps
    return jnp.zeros(shape, x.dtype)

  return _each(empty, kv)


def write(kv: KV, new: KV, index: jax.Array) -> KV:
  """Writes T slots at `index`, the same for all rows."""

  def update(x, axis, n):
    return lax.dynamic_update_slice_in_dim(x, n, index, axis)

  return _each(update, kv, new)


def write_rows(kv: KV, new: KV, start: jax.Array) -> KV:
  """Writes T slots at `start[B]`; start + T must fit."""

  def update(x, axis, n):
    def row(x, n, s):
      return lax.dynamic_update_slice_in_dim(x, n, s, axis)

    return jax.vmap(row)(x, n, start)

  return _each(update, kv, new)


def write_ring(
  kv: KV, new: KV, start: jax.Array, lengths: jax.Array, window: int
) -> KV:
  """Writes the newest of `lengths[B]` tokens, position p to slot p % window."""
  position = ring_position(start + lengths, jnp.arange(window), window)
  index = position - start[:, None]
  fresh = index >= 0

  def update(x, axis, n):
    shape = [1] * x.ndim
    shape[0], shape[axis] = index.shape
    new = jnp.clip(index, 0, n.shape[axis] - 1).reshape(shape)
    new = jnp.take_along_axis(n, new, axis=axis)
    return jnp.where(fresh.reshape(shape), new, x)

  return _each(update, kv, new)
