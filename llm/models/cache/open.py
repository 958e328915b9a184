"""The cache during a chunk of decode steps.

What came before the chunk is only read, and the chunk's own keys go to a small
buffer, at the same index for all rows. So no step writes to the large arrays
(an update inside a loop may cost a copy of the whole array,
github.com/jax-ml/jax/issues/40101), each row keeps its own length, and a step
reads only as many slots as the longest row has used. `close_cache` writes the
chunk's keys back, once, and only those tokens that a row keeps.

While the cache is open, consecutive rows may continue one row of another cache:
a prompt that is held, and read, once for them all.
"""

from typing import Any

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from llm.models.cache import kv as kv_lib
from llm.models.cache.protocol import KV, CallContext, Layer, Segment
from llm.models.cache.rest import KVCache, each_layer
from llm.models.cache.shared import of_rows


@struct.dataclass
class OpenCache:
  """See `protocol.Cache`; a call may give each row any number of tokens T.

  Attributes:
    past: per layer, the slots in use before the chunk.
    recent: per layer, room for the chunk's keys and values, in its format.
    shared: per layer, what came before the rows, R rows for B / R consecutive
      ones each; or None.
    offset: int32[B], tokens of `shared` (zeros without it).
    start: int32[B], tokens held when the cache was opened.
    count: int32, tokens that each row was given since.
  """

  past: Any
  recent: Any
  shared: Any
  offset: jax.Array
  start: jax.Array
  count: jax.Array

  def held(self, rows: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What was there when the cache was opened, and the chunk so far."""
    del rows
    return self.start, self.offset, self.count

  def layer(self, index: int) -> 'OpenEntry':
    """One layer's past, recent and shared keys."""
    shared = self.shared and self.shared[index]
    return OpenEntry(self.past[index], self.recent[index], shared)

  def stacked(self) -> 'OpenEntry':
    """The same of all layers."""
    return OpenEntry(self.past, self.recent, self.shared)

  def extended(self, parts: Any, call: CallContext) -> 'OpenCache':
    """`recent` with the new keys; the rest is passed on."""
    return self.replace(recent=parts, count=self.count + call.width)


@struct.dataclass
class OpenEntry:
  """See `protocol.Entry`."""

  past: Layer
  recent: KV
  shared: Layer | None

  def extend(
    self, new: Any, call: CallContext, window: Any
  ) -> tuple[list[Segment], KV]:
    """All keys; the new ones are read from where they are written."""
    recent = kv_lib.write(self.recent, self.recent.pack(new), call.count)
    # Written first and read through a barrier, the buffer is updated in place;
    # fused into its readers, the update would be made on several copies.
    recent = lax.optimization_barrier(recent)
    index = call.count + jnp.arange(call.width)
    query = call.start[:, None] + index[None]
    slots = jnp.arange(kv_lib.slots(recent))
    seen = slots[None] <= index[:, None]
    if window is not None:
      seen = seen & (slots[None] > index[:, None] - window)
    segments = [
      self.past.past(call.start, query, window),
      Segment(*recent.unpack(), seen[None]),
    ]
    if self.shared is not None:
      query = query + call.offset[:, None]
      segments.append(self.shared.past(call.offset, query, window))
    return segments, recent


def open_cache(
  cache: KVCache,
  steps: int,
  attend_length: int | None = None,
  shared: KVCache | None = None,
) -> OpenCache:
  """Opens the cache for `steps` tokens a row.

  Args:
    cache: of B rows.
    steps: room to make; the calls until it is closed must not have more tokens.
    attend_length: static bound on the slots that are read, at least the
      longest row's length; None reads all that are allocated.
    shared: a cache of R rows, each of which B / R consecutive rows continue.
  """
  offset = jnp.zeros_like(cache.length)
  if shared is not None:
    offset = of_rows(shared.length, offset.size)
  return OpenCache(
    past=each_layer(lambda x: x.leading(attend_length), cache.layers),
    recent=each_layer(lambda x: x.buffer(steps), cache.layers),
    shared=None if shared is None else shared.layers,
    offset=offset,
    start=cache.length,
    count=jnp.zeros((), jnp.int32),
  )


def close_cache(cache: KVCache, opened: OpenCache, taken: jax.Array) -> KVCache:
  """Writes a chunk's keys back.

  Args:
    cache: the cache that was opened.
    opened: after the chunk.
    taken: int32[B], how many of the chunk's tokens each row keeps, the oldest
      first: a row that was given 5 and keeps 3 is rolled back by 2. 0 leaves
      the row as it was.
  """

  def put(layer, recent):
    return layer.put(recent, cache.length, taken)

  layers = each_layer(put, cache.layers, opened.recent)
  return KVCache(layers=layers, length=cache.length + taken)
