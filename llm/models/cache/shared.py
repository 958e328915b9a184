"""Prompts that several rows continue: read once for all of them, not changed.

The rows of a call are B / R consecutive ones for each of R prompts.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from llm.models.cache.none import own_segment
from llm.models.cache.protocol import CallContext, Layer, Segment


@struct.dataclass
class SharedCache:
  """See `protocol.Cache`.

  Attributes:
    layers: of a KVCache of R rows.
    length: int32[R].
  """

  layers: Any
  length: jax.Array

  def held(self, rows: int) -> tuple[jax.Array, jax.Array, int]:
    """Rows hold no tokens of their own, only those of their prompt."""
    return jnp.zeros((rows,), jnp.int32), of_rows(self.length, rows), 0

  def layer(self, index: int) -> 'SharedEntry':
    """The prompts' keys in one layer."""
    return SharedEntry(self.layers[index])

  def stacked(self) -> 'SharedEntry':
    """The prompts' keys in all layers."""
    return SharedEntry(self.layers)

  def extended(self, parts: Any, call: CallContext) -> None:
    """The rows' own keys are not kept."""


@struct.dataclass
class SharedEntry:
  """See `protocol.Entry`."""

  past: Layer

  def extend(
    self, new: Any, call: CallContext, window: Any
  ) -> tuple[list[Segment], None]:
    """The new keys, and those of the prompts."""
    query = call.offset[:, None] + jnp.arange(call.width)[None]
    shared = self.past.past(call.offset, query, window)
    return [own_segment(new, call, window), shared], None


def of_rows(of_prompts: jax.Array, rows: int) -> jax.Array:
  """[R, …] -> [B, …]: what belongs to a prompt, for each row of it."""
  return jnp.repeat(of_prompts, rows // of_prompts.shape[0], axis=0)
