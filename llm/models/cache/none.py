"""No cache: queries see the keys of their own call."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from llm.models.cache.masks import own_mask
from llm.models.cache.protocol import CallContext, OwnMask, Segment


@struct.dataclass
class NoCache:
  """See `protocol.Cache`; stands for `cache=None`."""

  def held(self, rows: int) -> tuple[jax.Array, jax.Array, int]:
    """Nothing."""
    none = jnp.zeros((rows,), jnp.int32)
    return none, none, 0

  def layer(self, index: int) -> 'NoEntry':
    """The same for all layers."""
    del index
    return NoEntry()

  def stacked(self) -> 'NoEntry':
    """The same for all layers."""
    return NoEntry()

  def extended(self, parts: Any, call: CallContext) -> None:
    """Nothing is kept."""


@struct.dataclass
class NoEntry:
  """See `protocol.Entry`."""

  def extend(
    self, new: Any, call: CallContext, window: Any
  ) -> tuple[list[Segment], None]:
    """The new keys alone."""
    return [own_segment(new, call, window)], None


def own_segment(new: Any, call: CallContext, window: Any) -> Segment:
  """The keys of a call, for the queries of the same call."""
  mask = own_mask(call.width, call.segment_ids, window)
  made_of = None
  if window is None or isinstance(window, int):  # and not traced
    made_of = OwnMask(window, call.segment_ids)
  return Segment(new.k, new.v, mask, causal=True, made_of=made_of)
