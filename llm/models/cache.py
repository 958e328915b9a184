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
chunk's keys back, once.
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

  Attributes:
    k: dtype[B, K, S, H], rotated.
    v: dtype[B, K, S, H].
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
    prefix: per layer, the slots in use before the chunk; keys [B, K, H, S] on
      CPU, where that order is several times faster, else [B, K, S, H].
    recent: per layer, the chunk's keys and values, [B, K, C, H].
    start: int32[B], tokens held when the chunk was opened.
    count: int32, steps taken since.
  """

  prefix: Any
  recent: Any
  start: jax.Array
  count: jax.Array


@struct.dataclass
class Segment:
  """Keys that a query may look at.

  Attributes:
    k: [B, K, S, H], or [B, K, H, S] where `keys_last` is set.
    v: [B, K, S, H].
    mask: bool, broadcastable to [B, T, S].
  """

  k: jax.Array
  v: jax.Array
  mask: jax.Array
  keys_last: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class CallContext:
  """What all layers of one forward pass share.

  Attributes:
    start: int32[B], tokens in the cache before this call (zeros without one).
    lengths: int32[B], valid new tokens of each row.
    segment_ids: int32[B, T] or None; tokens only see their own segment.
    attend_length: leading cache slots to look at; None: all.
  """

  start: jax.Array
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
  """Allocates an empty cache for `batch` rows of up to `max_length` tokens."""

  def layer(layer_type, leading=()):
    slots = max_length
    if is_ring(config, layer_type, scan_layers):
      slots = config.window
    shape = (*leading, batch, config.num_kv_heads, slots, config.head_dim)
    return LayerCache(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype))

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


def _append(old: jax.Array, new: jax.Array, start, lengths, ring: int):
  """Writes new[B, K, T, H] behind `start` tokens; slots beyond stay or are junk.

  A dense row is written at [start, start + T): slots past its true length hold
  junk that no mask admits and that the next call overwrites. The caller sees
  to it that start + T fits.
  """
  new = new.astype(old.dtype)
  if not ring:
    write = lambda o, n, s: lax.dynamic_update_slice(o, n, (0, s, 0))
    return jax.vmap(write)(old, new, start)
  position = _ring_position(start + lengths, jnp.arange(ring), ring)
  index = position - start[:, None]
  fresh = (index >= 0)[:, None, :, None]
  index = jnp.clip(index, 0, new.shape[2] - 1)[:, None, :, None]
  return jnp.where(fresh, jnp.take_along_axis(new, index, axis=2), old)


def extend(
  entry: Any, k: jax.Array, v: jax.Array, call: CallContext, window, ring: int
) -> tuple[list[Segment], Any]:
  """Adds one layer's new keys; says what the new queries may look at.

  Args:
    entry: None, a LayerCache, or a (prefix, recent, count) triple of an open
      cache.
    k: dtype[B, K, T, H]; v alike. T is 1 for an open cache.
    call: shared by all layers.
    window: tokens that a query sees, itself included; None: all. May be traced.
    ring: slots of a ring layer, 0 for a dense one.

  Returns:
    (segments, entry): the keys to attend to, and the changed part of the entry:
    None, the new LayerCache, or the new `recent`.
  """
  steps = k.shape[2]
  if isinstance(entry, tuple):
    return _extend_open(entry, k, v, call, window, ring)
  own = Segment(k, v, _self_mask(steps, call.segment_ids, window))
  if entry is None:
    return [own], None
  segments = [own]
  if call.attend_length != 0:
    limit = call.attend_length or entry.k.shape[2]
    limit = min(limit, entry.k.shape[2])
    query = call.start[:, None] + jnp.arange(steps)[None]
    mask = _past_mask(call.start, jnp.arange(limit), query, window, ring)
    past = Segment(entry.k[:, :, :limit], entry.v[:, :, :limit], mask)
    segments.insert(0, past)
  new = LayerCache(
    k=_append(entry.k, k, call.start, call.lengths, ring),
    v=_append(entry.v, v, call.start, call.lengths, ring),
  )
  return segments, new


def _extend_open(entry, k, v, call, window, ring):
  prefix, recent, count = entry
  at = (0, 0, count, 0)
  recent = LayerCache(
    k=lax.dynamic_update_slice(recent.k, k.astype(recent.k.dtype), at),
    v=lax.dynamic_update_slice(recent.v, v.astype(recent.v.dtype), at),
  )
  slots = jnp.arange(prefix.v.shape[2])
  query = (call.start + count)[:, None]
  steps = jnp.arange(recent.k.shape[2])
  own = steps <= count
  if window is not None:
    own = own & (steps > count - window)
  segments = [
    Segment(
      prefix.k,
      prefix.v,
      _past_mask(call.start, slots, query, window, ring),
      keys_last=_keys_last(),
    ),
    Segment(recent.k, recent.v, own[None, None]),
  ]
  return segments, recent


def _keys_last() -> bool:
  return jax.default_backend() == 'cpu'


def open_cache(
  cache: KVCache, steps: int, attend_length: int | None = None
) -> OpenCache:
  """Opens the cache for `steps` decode steps.

  `attend_length` (static) bounds the slots that are read: it must be at least
  the longest row's length; None reads all that are allocated.
  """

  def view(layer: LayerCache) -> LayerCache:
    limit = min(attend_length or layer.k.shape[-2], layer.k.shape[-2])
    k, v = layer.k[..., :limit, :], layer.v[..., :limit, :]
    return LayerCache(k=k.swapaxes(-1, -2) if _keys_last() else k, v=v)

  def empty(layer: LayerCache) -> LayerCache:
    shape = (*layer.k.shape[:-2], steps, layer.k.shape[-1])
    return LayerCache(
      k=jnp.zeros(shape, layer.k.dtype), v=jnp.zeros(shape, layer.v.dtype)
    )

  is_layer = lambda x: isinstance(x, LayerCache)
  return OpenCache(
    prefix=jax.tree.map(view, cache.layers, is_leaf=is_layer),
    recent=jax.tree.map(empty, cache.layers, is_leaf=is_layer),
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
    append = lambda o, n: _append(o, n, cache.length, taken, ring)
    if layer.k.ndim == 5:
      append = jax.vmap(append)
    return LayerCache(k=append(layer.k, new.k), v=append(layer.v, new.v))

  is_layer = lambda x: isinstance(x, LayerCache)
  layers = jax.tree.map(write, cache.layers, recent, rings, is_leaf=is_layer)
  return KVCache(layers=layers, length=cache.length + taken)


def cache_rings(config: ModelConfig, scan_layers: bool = False) -> Any:
  """Slots of each layer's ring, 0 for dense layers, shaped like the cache."""
  rings = tuple(
    config.window if is_ring(config, kind, scan_layers) else 0
    for kind in config.layer_types
  )
  return rings[0] if scan_layers else rings
