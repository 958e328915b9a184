"""A layer that keeps its sliding window: position p in slot p % window.

So a row of any length costs `window` slots.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from llm.models.cache import kv as kv_lib
from llm.models.cache.masks import past_mask, ring_position
from llm.models.cache.protocol import KV, Segment


@struct.dataclass
class RingLayer:
  """See `protocol.Layer`.

  Attributes:
    kv: keys and values in some format, `window` slots. With fewer, the ring
      never wraps around and is written like a dense layer.
    window: tokens that a query sees, itself included.
  """

  kv: KV
  window: int = struct.field(pytree_node=False)

  @property
  def slots(self) -> int:
    return kv_lib.slots(self.kv)

  @property
  def capacity(self) -> int | None:
    return None if self.slots == self.window else self.slots

  def past(self, length: jax.Array, query: jax.Array, window: Any) -> Segment:
    """Queries see what the ring still holds, within the window."""
    slots = jnp.arange(self.slots)
    position = ring_position(length, slots, self.window)
    mask = past_mask(position, position >= 0, query, window)
    return Segment(*self.kv.unpack(), mask)

  def leading(self, limit: int | None) -> 'RingLayer':
    """The first `limit` slots: with so few tokens no row has wrapped around."""
    return self.replace(kv=kv_lib.leading(self.kv, limit or self.slots))

  def pack(self, new: KV) -> KV:
    """New keys in this layer's format."""
    return self.kv.pack(new)

  def buffer(self, steps: int) -> KV:
    """Room for `steps` tokens; it is no ring."""
    return kv_lib.room(self.kv, steps)

  def put(
    self, packed: KV, start: jax.Array, lengths: jax.Array
  ) -> 'RingLayer':
    """Keeps the newest `window` tokens of each row."""
    if self.slots < self.window:
      kv = kv_lib.write_rows(self.kv, packed, start)
    else:
      kv = kv_lib.write_ring(self.kv, packed, start, lengths, self.window)
    return self.replace(kv=kv)
