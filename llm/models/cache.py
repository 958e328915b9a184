"""The key/value cache: plain pytrees, and pure functions that extend them.

A *global* layer keeps one slot per token. A *local* (sliding window) layer
keeps a ring of `window` slots: the token at position p lives in slot
p % window, so that a row of any length costs `window` slots.

`KVCache` is the form at rest. For a chunk of decode steps it is opened into an
`OpenCache`: what came before the chunk is only read, and the chunk's own keys
go to a small buffer, at the same index for all rows. So no step writes to the
large buffers (an update inside a loop may cost a copy of the whole buffer,
github.com/jax-ml/jax/issues/40101), each row keeps its own length, and a step
reads only as many slots as the longest row has used. `close` writes the
chunk's keys back, once. While it is open, consecutive rows may go on from one
row of another cache: from a prompt that is held, and read, once for them all.
"""

from typing import Any

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from llm.models.config import GLOBAL, LOCAL, ModelConfig


@struct.dataclass
class LayerCache:
  """Keys and values of one layer; a leading L axis if layers are scanned.

  Each is stored so that a decode step's products sum over the last axis: on
  CPU, the other order is copied into this one at every step.

  Attributes:
    k: dtype[B, K, S, H], rotated.
    v: dtype[B, K, H, S].
  """

  k: jax.Array
  v: jax.Array


@struct.dataclass
class KVCache:
  """The cache at rest.

  Attributes:
    layers: one LayerCache per layer, or a single stacked one.
    length: int32[B], tokens held by each row.
  """

  layers: Any
  length: jax.Array


@struct.dataclass
class OpenCache:
  """The cache during a chunk of decode steps (see the module's docstring).

  Attributes:
    prefix: per layer, the slots in use before the chunk.
    recent: per layer, room for the chunk's keys and values.
    shared: per layer, what came before the rows, [R, K, S, H] and [R, K, H, S]
      for B / R consecutive rows each; or None.
    offset: int32[B], tokens of `shared` (zeros without it).
    start: int32[B], tokens held when the chunk was opened.
    count: int32, steps taken since.
  """

  prefix: Any
  recent: Any
  shared: Any
  offset: jax.Array
  start: jax.Array
  count: jax.Array


@struct.dataclass
class SharedCache:
  """Prompts that rows go on from, and that they do not change.

  Attributes:
    layers: of a KVCache of R rows; B / R consecutive rows go on from each.
    length: int32[R].
  """

  layers: Any
  length: jax.Array


@struct.dataclass
class SharedKeys:
  """One layer of a `SharedCache`."""

  layer: LayerCache


@struct.dataclass
class Segment:
  """Keys that a query may look at.

  Attributes:
    k: [R, K, S, H]; B / R consecutive rows of queries share a row. R is B
      where each has its own.
    v: [R, K, H, S].
    mask: bool, broadcastable to [B, T, S].
    causal: the mask admits no key s > t; what it would hide is not computed.
  """

  k: jax.Array
  v: jax.Array
  mask: jax.Array
  causal: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class CallContext:
  """What all layers of one forward pass share.

  Attributes:
    start: int32[B], tokens in the cache before this call (zeros without one),
      without those that rows share.
    offset: int32[B], tokens that rows share.
    lengths: int32[B], valid new tokens of each row.
    segment_ids: int32[B, T] or None; tokens only see their own segment.
    attend_length: leading cache slots to look at; None: all.
  """

  start: jax.Array
  offset: jax.Array
  lengths: jax.Array
  segment_ids: jax.Array | None
  attend_length: int | None = struct.field(pytree_node=False, default=None)


def is_ring(config: ModelConfig, layer_type: str, scan_layers: bool) -> bool:
  """Whether a layer keeps its window only.

  Stacked layers share one shape, so a stack that mixes local and global
  layers keeps every token in all of them.
  """
  mixed = len(set(config.layer_types)) > 1
  return layer_type == LOCAL and not (scan_layers and mixed)


def init_cache(
  config: ModelConfig,
  batch: int,
  max_length: int,
  dtype: Any = jnp.float32,
  scan_layers: bool = False,
) -> KVCache:
  """Allocates an empty cache for `batch` rows of up to `max_length` tokens.

  A ring takes the window's slots, or `max_length` where that is less.
  """

  def layer(layer_type, leading=()):
    slots = max_length
    if is_ring(config, layer_type, scan_layers):
      slots = min(config.window, max_length)
    shape = (*leading, batch, config.num_kv_heads)
    return LayerCache(
      k=jnp.zeros((*shape, slots, config.head_dim), dtype),
      v=jnp.zeros((*shape, config.head_dim, slots), dtype),
    )

  if scan_layers:
    kinds = set(config.layer_types)
    kind = GLOBAL if GLOBAL in kinds else LOCAL
    layers = layer(kind, (config.num_layers,))
  else:
    layers = tuple(layer(kind) for kind in config.layer_types)
  return KVCache(layers=layers, length=jnp.zeros((batch,), jnp.int32))


def cache_bytes(
  config: ModelConfig, batch: int, max_length: int, dtype: Any = jnp.bfloat16
) -> int:
  """Bytes of keys and values that `init_cache` would allocate."""
  cache = jax.eval_shape(
    lambda: init_cache(config, batch, max_length, dtype).layers
  )
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))


def _ring_position(length: jax.Array, slots: jax.Array, window: int):
  """The newest position < length that lives in each slot; negative if none.

  length: int32[B], slots: int32[S] -> int32[B, S]. Example, window 4: after 6
  tokens the slots hold positions 4, 5, 2, 3.
  """
  last = length[:, None] - 1
  return last - (last - slots[None]) % window


def _past_mask(start, slots, query, window, ring):
  """bool[B, T, S]: cached slots that queries at index `query[B, T]` may see."""
  if ring:
    position = _ring_position(start, slots, ring)
    mask = (position >= 0)[:, None]
  else:
    position = jnp.broadcast_to(slots[None], (start.shape[0], slots.shape[0]))
    mask = (position < start[:, None])[:, None]
  if window is not None:
    mask = mask & (position[:, None] > query[..., None] - window)
  return mask


def _self_mask(length, segment_ids, window):
  """bool[B or 1, T, T]: causal, within a segment, within the window."""
  index = jnp.arange(length)
  mask = index[None, :] <= index[:, None]
  if window is not None:
    mask = mask & (index[None, :] > index[:, None] - window)
  mask = mask[None]
  if segment_ids is not None:
    mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
  return mask


def _write(
  old: jax.Array, new: jax.Array, start, lengths, ring: int, axis: int
) -> jax.Array:
  """Writes `new` behind `start` tokens along the slot axis of [B, K, ., .].

  A dense row is written at [start, start + T): slots past its true length hold
  junk that no mask admits and that the next call overwrites. The caller sees
  to it that start + T fits. A ring with fewer slots than its window never goes
  round, and is written like a dense row.
  """
  new = new.astype(old.dtype)
  if not ring or old.shape[axis] < ring:

    def write(o, n, s):
      return lax.dynamic_update_slice_in_dim(o, n, s, axis - 1)

    return jax.vmap(write)(old, new, start)
  position = _ring_position(start + lengths, jnp.arange(ring), ring)
  index = position - start[:, None]
  shape = [index.shape[0], 1, 1, 1]
  shape[axis] = ring
  fresh = (index >= 0).reshape(shape)
  index = jnp.clip(index, 0, new.shape[axis] - 1).reshape(shape)
  return jnp.where(fresh, jnp.take_along_axis(new, index, axis=axis), old)


def _append(entry: LayerCache, new: LayerCache, start, lengths, ring: int):
  """Appends a layer's new keys and values; `lengths[B]` of them are valid."""
  return LayerCache(
    k=_write(entry.k, new.k, start, lengths, ring, 2),
    v=_write(entry.v, new.v, start, lengths, ring, 3),
  )


def extend(
  entry: Any, new: LayerCache, call: CallContext, window: Any, ring: int
) -> tuple[list[Segment], Any]:
  """Adds one layer's new keys; says what the new queries may look at.

  Args:
    entry: None, a LayerCache, SharedKeys, or (prefix, recent, shared, count)
      of an open cache.
    new: keys [B, K, T, H] and values [B, K, H, T]; T is 1 for an open cache.
    call: shared by all layers.
    window: tokens that a query sees, itself included; None: all. May be traced.
    ring: slots of a ring layer, 0 for a dense one.

  Returns:
    (segments, entry): the keys to attend to, and the changed part of the entry:
    None (there is none), the new LayerCache, or the new `recent`.
  """
  if isinstance(entry, tuple):
    return _extend_open(entry, new, call, window, ring)
  steps = new.k.shape[2]
  mask = _self_mask(steps, call.segment_ids, window)
  own = Segment(new.k, new.v, mask, causal=True)
  if entry is None:
    return [own], None
  if isinstance(entry, SharedKeys):
    query = call.offset[:, None] + jnp.arange(steps)[None]
    return [own, _shared_segment(entry.layer, call, query, window, ring)], None
  segments = [own]
  if call.attend_length != 0:
    limit = entry.k.shape[2]
    limit = min(call.attend_length or limit, limit)
    query = call.start[:, None] + jnp.arange(steps)[None]
    mask = _past_mask(call.start, jnp.arange(limit), query, window, ring)
    view = _leading(entry, limit)
    segments.insert(0, Segment(view.k, view.v, mask))
  return segments, _append(entry, new, call.start, call.lengths, ring)


def _extend_open(entry, new, call, window, ring):
  prefix, recent, shared, count = entry
  recent = LayerCache(
    k=lax.dynamic_update_slice_in_dim(
      recent.k, new.k.astype(recent.k.dtype), count, axis=2
    ),
    v=lax.dynamic_update_slice_in_dim(
      recent.v, new.v.astype(recent.v.dtype), count, axis=3
    ),
  )
  # Written first and read through a barrier, the buffer is updated in place;
  # fused into its readers, the update would be made on several copies.
  recent = lax.optimization_barrier(recent)
  slots = jnp.arange(prefix.k.shape[2])
  query = (call.start + count)[:, None]
  mask = _past_mask(call.start, slots, query, window, ring)
  steps = jnp.arange(recent.k.shape[2])
  written = steps <= count
  if window is not None:
    written = written & (steps > count - window)
  segments = [
    Segment(prefix.k, prefix.v, mask),
    Segment(recent.k, recent.v, written[None, None]),
  ]
  if shared is not None:
    query = query + call.offset[:, None]
    segments.append(_shared_segment(shared, call, query, window, ring))
  return segments, recent


def _shared_segment(layer, call, query, window, ring):
  slots = jnp.arange(layer.k.shape[2])
  mask = _past_mask(call.offset, slots, query, window, ring)
  return Segment(layer.k, layer.v, mask)


def _leading(layer: LayerCache, limit: int) -> LayerCache:
  return LayerCache(k=layer.k[..., :limit, :], v=layer.v[..., :limit])


def _is_layer(x: Any) -> bool:
  return isinstance(x, LayerCache)


def of_rows(of_prompts: jax.Array, rows: int) -> jax.Array:
  """[R, …] -> [B, …]: what belongs to a prompt, for each row of it."""
  return jnp.repeat(of_prompts, rows // of_prompts.shape[0], axis=0)


def open_cache(
  cache: KVCache,
  steps: int,
  attend_length: int | None = None,
  shared: KVCache | None = None,
) -> OpenCache:
  """Opens the cache for `steps` decode steps.

  Args:
    cache: of B rows.
    steps: room to make.
    attend_length: static bound on the slots that are read, at least the
      longest row's length; None reads all that are allocated.
    shared: a cache of R rows, each of which B / R consecutive rows go on from.
  """

  def view(layer: LayerCache) -> LayerCache:
    slots = layer.k.shape[-2]
    return _leading(layer, min(attend_length or slots, slots))

  def empty(layer: LayerCache) -> LayerCache:
    *shape, _, head_dim = layer.k.shape
    return LayerCache(
      k=jnp.zeros((*shape, steps, head_dim), layer.k.dtype),
      v=jnp.zeros((*shape, head_dim, steps), layer.v.dtype),
    )

  offset = jnp.zeros_like(cache.length)
  if shared is not None:
    offset = of_rows(shared.length, offset.size)
  return OpenCache(
    prefix=jax.tree.map(view, cache.layers, is_leaf=_is_layer),
    recent=jax.tree.map(empty, cache.layers, is_leaf=_is_layer),
    shared=None if shared is None else shared.layers,
    offset=offset,
    start=cache.length,
    count=jnp.zeros((), jnp.int32),
  )


def close_cache(
  cache: KVCache, recent: Any, taken: jax.Array, rings: Any
) -> KVCache:
  """Writes a chunk's keys back.

  Args:
    cache: the cache that was opened.
    recent: the open cache's `recent` after the chunk.
    taken: int32[B], how many of the chunk's tokens each row keeps.
    rings: slots of each layer's ring (0: dense); one int if layers are stacked.
  """

  def write(layer, new, ring):
    def append(old, fresh):
      return _append(old, fresh, cache.length, taken, ring)

    return (jax.vmap(append) if layer.k.ndim == 5 else append)(layer, new)

  layers = jax.tree.map(write, cache.layers, recent, rings, is_leaf=_is_layer)
  return KVCache(layers=layers, length=cache.length + taken)


def cache_rings(config: ModelConfig, scan_layers: bool = False) -> Any:
  """Slots of each layer's ring, 0 for dense layers, shaped like the cache."""
  rings = tuple(
    config.window if is_ring(config, kind, scan_layers) else 0
    for kind in config.layer_types
  )
  return rings[0] if scan_layers else rings
