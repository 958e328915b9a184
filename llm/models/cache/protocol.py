"""What a forward pass asks of a cache, whatever its kind.

Kinds are frozen pytree dataclasses with pure methods. None inherits from the
classes below: they say what a kind has to offer, and nothing tests for them.

One forward pass over T new tokens a row goes like this:

  start, offset, count = cache.held(B)        how many tokens came before
  for each layer i:
    entry = cache.layer(i)                    or a slice of cache.stacked()
    segments, part = entry.extend(new, call, window)
    attend(queries, segments)
  cache = cache.extended(parts, call)

A *segment* is a run of keys that the queries may look at; the softmax is taken
over all segments of a layer together. A *part* is what the call has changed in
the entry, and nothing else: what is only read must not be copied.
"""

from typing import Any, Protocol

from flax import struct
import jax


@struct.dataclass
class OwnMask:
  """What the mask of a call's own keys is made of, besides being causal.

  Attributes:
    window: tokens that a query sees, itself included; None: all.
    segment_ids: int32[B, T]; tokens only see their own segment. Or None.
  """

  window: int | None = struct.field(pytree_node=False)
  segment_ids: jax.Array | None


@struct.dataclass
class Segment:
  """Keys that a query may look at.

  Attributes:
    k: [R, K, S, H]; B / R consecutive rows of queries share a row. R is B
      where each has its own.
    v: [R, K, H, S].
    mask: bool, broadcastable to [B, T, S].
    causal: the mask admits no key s > t; what it would hide is not computed.
    made_of: what a causal mask is made of, for kernels that take that in its
      place; None: only the mask tells.
  """

  k: jax.Array
  v: jax.Array
  mask: jax.Array
  causal: bool = struct.field(pytree_node=False, default=False)
  made_of: OwnMask | None = None


@struct.dataclass
class CallContext:
  """What all layers of one forward pass share.

  Attributes:
    start: int32[B], tokens that the cache at rest holds of each row, without
      those that rows share (zeros without a cache).
    offset: int32[B], tokens that rows share.
    count: int32, tokens that each row was given since the cache was opened; 0
      for a cache at rest.
    lengths: int32[B], valid new tokens of each row.
    segment_ids: int32[B, T] or None; tokens only see their own segment.
    width: T.
    attend_length: leading cache slots to look at; None: all.
  """

  start: jax.Array
  offset: jax.Array
  count: jax.Array | int
  lengths: jax.Array
  segment_ids: jax.Array | None
  width: int = struct.field(pytree_node=False)
  attend_length: int | None = struct.field(pytree_node=False, default=None)


class Cache(Protocol):
  """A whole cache, as the model takes it and gives it back."""

  def held(self, rows: int) -> tuple[jax.Array, jax.Array, jax.Array | int]:
    """(start int32[B], offset int32[B], count): see `CallContext`."""

  def layer(self, index: int) -> 'Entry':
    """The entry of one layer."""

  def stacked(self) -> 'Entry':
    """The entry of scanned layers: each array has a leading L axis."""

  def extended(self, parts: Any, call: CallContext) -> 'Cache | None':
    """The cache after the call, or None where there is nothing to keep.

    Args:
      parts: what `extend` changed: a tuple with one part per layer, or a
        single one with a leading L axis.
      call: of this forward pass.
    """


class Entry(Protocol):
  """What a cache offers to one layer."""

  def extend(
    self, new: 'KV', call: CallContext, window: Any
  ) -> tuple[list[Segment], Any]:
    """Adds the layer's new keys; says what the new queries may look at.

    Args:
      new: a `FloatKV`: keys [B, K, T, H] and values [B, K, H, T].
      call: shared by all layers.
      window: tokens that a query sees, itself included; None: all. May be
        traced.

    Returns:
      (segments, the changed part of the entry).
    """


class Layer(Protocol):
  """Keys and values of B rows in one layer, at rest.

  Every array has the rows in front; `KVCache` adds the L axis of scanned layers
  and removes it before it calls these methods.

  Attributes:
    slots: tokens of a row that it can hold at one time.
    capacity: tokens that a row may have in all; None: any number, as the
      oldest ones make room.
  """

  slots: int
  capacity: int | None

  def past(self, length: jax.Array, query: jax.Array, window: Any) -> Segment:
    """What queries at index `query[B, T]` see of the `length[B]` tokens held.

    Where several rows share a row of this layer, B counts the queries' rows.
    """

  def leading(self, limit: int | None) -> 'Layer':
    """The layer with fewer slots, for rows of at most `limit` tokens."""

  def pack(self, new: 'KV') -> 'KV':
    """The new keys (a `FloatKV`) in the layer's format."""

  def buffer(self, steps: int) -> 'KV':
    """Room for `steps` tokens in the layer's format, a slot for each."""

  def put(self, packed: 'KV', start: jax.Array, lengths: jax.Array) -> 'Layer':
    """Writes tokens behind the first `start[B]`.

    Args:
      packed: T tokens in the layer's format.
      start: int32[B], tokens held; start + T must fit into a dense layer.
      lengths: int32[B], how many of the T are valid. The others may be written
        where no mask admits them, until the next call overwrites them.
    """


class KV(Protocol):
  """A format: keys and values of B rows, one slot per token."""

  def pack(self, new: 'KV') -> 'KV':
    """A `FloatKV` of T tokens in this format, with T slots."""

  def unpack(self) -> tuple[jax.Array, jax.Array]:
    """(k float[B, K, S, H], v float[B, K, H, S])."""

  def slot_axes(self) -> 'KV':
    """For each array the axis of its slots, counted from the last (-1)."""
