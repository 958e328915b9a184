"""The projections of a checkpoint inside of the model's fused weights."""

from typing import Any

import jax
import jax.numpy as jnp

from llm.models.weights import dense


def split(linear: str, kernel: jax.Array) -> dict[str, jax.Array]:
  """The projections [out, in] that one kernel holds, as in a checkpoint."""
  if linear == 'qkv':
    groups = kernel.shape[1] - 2
    parts = kernel[:, :groups], kernel[:, groups], kernel[:, groups + 1]
    parts = (part.reshape(-1, kernel.shape[-1]) for part in parts)
    return dict(zip('qkv', parts, strict=True))
  if linear == 'gate_up':
    return {'gate': kernel[0], 'up': kernel[1]}
  return {linear: kernel.reshape(kernel.shape[0], -1)}


def projections(linear: str, kernel: Any) -> dict[str, jax.Array]:
  """`split` of a weight, packed or not, in float32."""
  return split(linear, dense(kernel, jnp.float32))


def sizes(linear: str, kernel: Any) -> dict[str, tuple[int, int]]:
  """(out, in) of each projection in a weight, in the order of `split`."""
  whole = jax.ShapeDtypeStruct(tuple(kernel.shape), jnp.float32)
  names = []

  def parts(array):
    found = split(linear, array)
    names.extend(found)  # in order, which a traced dict would lose
    return list(found.values())

  shapes = [part.shape for part in jax.eval_shape(parts, whole)]
  return dict(zip(names, shapes, strict=True))


def join(linear: str, parts: dict[str, Any], kernel: Any) -> jax.Array:
  """[out, C] of each projection -> [*F, C], F the kernel's axes of outputs."""
  if linear == 'qkv':
    kv_heads, slots, width = kernel.shape[:3]
    heads = (slots - 2, 1, 1)
    parts = [
      part.reshape(kv_heads, count, width, -1)
      for part, count in zip((parts[n] for n in 'qkv'), heads, strict=True)
    ]
    return jnp.concatenate(parts, axis=1)
  if linear == 'gate_up':
    return jnp.stack([parts['gate'], parts['up']])
  return parts[linear]
