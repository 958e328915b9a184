"""A layer that keeps every token: position p in slot p."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from llm.models.cache import kv as kv_lib
from llm.models.cache.masks import past_mask
from llm.models.cache.protocol import KV, Segment


@struct.dataclass
class DenseLayer:
  """See `protocol.Layer`.

  Attributes:
    kv: keys and values in some format, one slot per token.
  """

  kv: KV

  @property
  def slots(self) -> int:
    return kv_lib.slots(self.kv)

  @property
  def capacity(self) -> int:
    return self.slots

  def past(self, length: jax.Array, query: jax.Array, window: Any) -> Segment:
    """Queries see the slots before `length`, within the window."""
    position = jnp.arange(self.slots)[None]
    position = jnp.broadcast_to(position, (length.shape[0], self.slots))
    mask = past_mask(position, position < length[:, None], query, window)
    return Segment(*self.kv.unpack(), mask)

  def leading(self, limit: int | None) -> 'DenseLayer':
    """The first `limit` slots."""
    return self.replace(kv=kv_lib.leading(self.kv, limit or self.slots))

  def pack(self, new: KV) -> KV:
    """New keys in this layer's format."""
    return self.kv.pack(new)

  def buffer(self, steps: int) -> KV:
    """Room for `steps` tokens."""
    return kv_lib.room(self.kv, steps)

  def put(
    self, packed: KV, start: jax.Array, lengths: jax.Array
  ) -> 'DenseLayer':
    """Writes T tokens to the slots [start, start + T).

    Slots past a row's true length hold junk that no mask admits and that the
    next call overwrites. The caller sees to it that start + T fits.
    """
    del lengths
    return self.replace(kv=kv_lib.write_rows(self.kv, packed, start))
