"""The cache at rest: what is kept between calls."""

from collections.abc import Callable
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from llm.models.cache.dense import DenseLayer
from llm.models.cache.kv import empty_kv
from llm.models.cache.none import own_segment
from llm.models.cache.protocol import CallContext, Layer, Segment
from llm.models.cache.ring import RingLayer
from llm.models.cache.rows import insert_rows, where_rows
from llm.models.config import GLOBAL, LOCAL, ModelConfig


@struct.dataclass
class KVCache:
  """See `protocol.Cache`.

  Attributes:
    layers: a tuple with one `protocol.Layer` per layer of the model, or a
      single one with a leading L axis where layers are scanned.
    length: int32[B], tokens held by each row.
  """

  layers: Any
  length: jax.Array

  @property
  def slots(self) -> int:
    """Slots of the layer that has most."""
    return max(layer.slots for layer in self._kinds())

  @property
  def capacity(self) -> int | None:
    """Tokens that a row may have; None: any number."""
    limits = [layer.capacity for layer in self._kinds()]
    return min((x for x in limits if x is not None), default=None)

  def held(self, rows: int) -> tuple[jax.Array, jax.Array, int]:
    """The rows' own tokens; nothing is shared."""
    del rows
    return self.length, jnp.zeros_like(self.length), 0

  def layer(self, index: int) -> 'RestEntry':
    """One layer."""
    return RestEntry(self.layers[index])

  def stacked(self) -> 'RestEntry':
    """All layers."""
    return RestEntry(self.layers)

  def extended(self, parts: Any, call: CallContext) -> 'KVCache':
    """With each row's valid new tokens."""
    return KVCache(layers=parts, length=self.length + call.lengths)

  def take_rows(self, rows: jax.Array) -> 'KVCache':
    """Copies of the rows int32[B']."""
    return self._by_rows(lambda x: x[rows])

  def insert_rows(self, other: 'KVCache', at: jax.Array) -> 'KVCache':
    """Puts the rows of another cache at `at[R]`; see `rows.insert_rows`."""
    return self._by_rows(lambda x, new: insert_rows(x, new, at), other)

  def where_rows(self, rows: jax.Array, other: 'KVCache') -> 'KVCache':
    """The rows bool[B] of another cache, the others of this one."""
    return self._by_rows(lambda x, new: where_rows(rows, new, x), other)

  def _kinds(self):
    return self.layers if isinstance(self.layers, tuple) else (self.layers,)

  def _by_rows(self, fn, *others):
    def layer(*layers):
      return jax.tree.map(fn, *layers)

    return KVCache(
      layers=each_layer(layer, self.layers, *[o.layers for o in others]),
      length=fn(self.length, *[o.length for o in others]),
    )


@struct.dataclass
class RestEntry:
  """See `protocol.Entry`."""

  past: Layer

  def extend(
    self, new: Any, call: CallContext, window: Any
  ) -> tuple[list[Segment], Layer]:
    """What is held, and the new keys as they come, before any rounding."""
    segments = [own_segment(new, call, window)]
    if call.attend_length != 0:
      query = call.start[:, None] + jnp.arange(call.width)[None]
      held = self.past.leading(call.attend_length)
      segments.insert(0, held.past(call.start, query, window))
    packed = self.past.pack(new)
    return segments, self.past.put(packed, call.start, call.lengths)


def each_layer(fn: Callable[..., Any], layers: Any, *others: Any) -> Any:
  """fn(layer, *others) for each layer, whether or not they are stacked."""
  if isinstance(layers, tuple):
    return tuple(fn(*each) for each in zip(layers, *others, strict=True))
  return jax.vmap(fn)(layers, *others)


def make_layer(
  config: ModelConfig, batch: int, slots: int, window: int | None, dtype: Any
) -> Layer:
  """An empty layer of floats: a ring for a window, else dense.

  Args:
    config: gives the shape of keys and values.
    batch: B.
    slots: S; a ring takes the window's, or `slots` where that is less.
    window: tokens that suffice; None: all.
    dtype: of keys and values.
  """
  slots = slots if window is None else min(slots, window)
  kv = empty_kv(batch, config.num_kv_heads, slots, config.head_dim, dtype)
  return DenseLayer(kv) if window is None else RingLayer(kv, window)


def init_cache(
  config: ModelConfig,
  batch: int,
  max_length: int,
  dtype: Any = jnp.float32,
  scan_layers: bool = False,
  make_layer: Callable[..., Layer] = make_layer,
) -> KVCache:
  """Allocates an empty cache for `batch` rows of up to `max_length` tokens.

  Stacked layers share one shape, so a stack that mixes local and global layers
  keeps every token in all of them.

  Args:
    config: of the model.
    batch: B.
    max_length: slots of a layer that keeps every token.
    dtype: of keys and values.
    scan_layers: one stacked layer, as the model of that name takes it.
    make_layer: makes the layers; takes the arguments of `make_layer` here.
  """

  def layer(layer_type):
    window = config.window if layer_type == LOCAL else None
    return make_layer(config, batch, max_length, window, dtype)

  if scan_layers:
    kind = GLOBAL if GLOBAL in config.layer_types else LOCAL
    layers = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (config.num_layers, *x.shape)), layer(kind)
    )
  else:
    layers = tuple(map(layer, config.layer_types))
  return KVCache(layers=layers, length=jnp.zeros((batch,), jnp.int32))


def cache_bytes(
  config: ModelConfig, batch: int, max_length: int, dtype: Any = jnp.bfloat16
) -> int:
  """Bytes of keys and values that `init_cache` would allocate."""
  cache = jax.eval_shape(
    lambda: init_cache(config, batch, max_length, dtype).layers
  )
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
