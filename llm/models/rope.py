"""Rotary position embeddings: frequencies of every scaling type, rotation.

The tables follow `ROPE_INIT_FUNCTIONS` of the `transformers` library in its
float32 arithmetic, so that long positions land on the same angles. They are
NumPy constants at trace time; only `dynamic` and `longrope`, whose frequencies
depend on how long the row is, put work into the compiled program.

R is the number of rotated features of a head: `int(H * partial_rotary_factor)`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from llm.backend import Backend, by_backend
from llm.models.config import RopeConfig


def inverse_frequencies(
  rope: RopeConfig, head_dim: int, length: jax.Array | None = None
) -> tuple[jax.Array, float]:
  """Angle per position of each rotated pair, and the scale of cos and sin.

  Args:
    rope: the type and its parameters.
    head_dim: H.
    length: int32[...], tokens in the row (highest position + 1); read by
      `dynamic` and `longrope` only, and required by them.

  Returns:
    float32[R/2], or float32[*length.shape, R/2] for `dynamic` and `longrope`;
    and the attention factor.

  Raises:
    ValueError: `length` is missing for a type that depends on it.

  References:
    RoPE arXiv:2104.09864, YaRN arXiv:2309.00071, LongRoPE arXiv:2402.13753.
  """
  rotary_dim = int(head_dim * rope.partial_rotary_factor)
  if not rope.depends_on_length:
    inv_freq, attention_factor = _STATIC[rope.type](rope, rotary_dim)
    return jnp.asarray(inv_freq, jnp.float32), attention_factor
  if length is None:
    raise ValueError(
      f'rope.type={rope.type!r} needs the length of each row: pass `length`'
    )
  shape = jnp.shape(length)
  length = jnp.reshape(length, (-1, 1))
  if rope.type == 'dynamic':
    inv_freq, attention_factor = _dynamic(rope, rotary_dim, length), 1.0
  else:
    inv_freq = _longrope(rope, rotary_dim, length)
    attention_factor = _longrope_attention_factor(rope)
  return inv_freq.reshape(*shape, -1), attention_factor


def apply_rope(
  x: jax.Array,
  positions: jax.Array,
  inv_freq: jax.Array,
  attention_factor: float = 1.0,
) -> jax.Array:
  """Rotates the pairs (i, i + R/2) of each head by position * inv_freq[i].

  Computed in float32. Features beyond R pass through unchanged.

  Args:
    x: float[B, T, heads, H].
    positions: int32[B, T].
    inv_freq: float32[R/2], or [B, R/2], or [B, T, R/2].
    attention_factor: multiplies cos and sin (YaRN, LongRoPE).

  Returns:
    float[B, T, heads, H] in the dtype of `x`.
  """
  return rotate(x, *rope_tables(positions, inv_freq, attention_factor))


def rope_tables(
  positions: jax.Array, inv_freq: jax.Array, attention_factor: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """cos and sin of every position's angles, for `rotate`.

  Args:
    positions: int32[B, T].
    inv_freq: float32[R/2], or [B, R/2], or [B, T, R/2].
    attention_factor: multiplies both (YaRN, LongRoPE).

  Returns:
    float32[B, T, R/2], twice.
  """
  if inv_freq.ndim == 1:
    inv_freq = inv_freq[None, None, :]
  elif inv_freq.ndim == 2:
    inv_freq = inv_freq[:, None, :]
  angles = positions.astype(jnp.float32)[..., None] * inv_freq
  return by_backend(_tables, angles, factor=attention_factor)


def _tables(backend: Backend, angles, *, factor):
  cos, sin = jnp.cos(angles) * factor, jnp.sin(angles) * factor
  if backend.keep_rope_tables and angles.shape[1] > 1:
    # XLA:CPU does not look through a product; one with the identity is exact.
    identity = jnp.eye(cos.shape[-1])
    cos, sin = cos @ identity, sin @ identity
  return cos, sin


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates the pairs (i, i + R/2) of each head; see `apply_rope`.

  Args:
    x: float[B, T, heads, H].
    cos, sin: float32[B, T, R/2], as `rope_tables` gives them.
  """
  half = cos.shape[-1]
  cos, sin = cos[:, :, None, :], sin[:, :, None, :]
  first = x[..., :half].astype(jnp.float32)
  second = x[..., half : 2 * half].astype(jnp.float32)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  ).astype(x.dtype)
  if 2 * half == x.shape[-1]:
    return rotated
  return jnp.concatenate([rotated, x[..., 2 * half :]], axis=-1)


def _powers(theta: float, rotary_dim: int) -> np.ndarray:
  """theta ** (2i / R): float32[R/2], the float32 exponents' exact powers."""
  exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / rotary_dim
  return np.power(theta, exponents.astype(np.float64)).astype(np.float32)


def _default(rope: RopeConfig, rotary_dim: int) -> tuple[np.ndarray, float]:
  return 1.0 / _powers(rope.theta, rotary_dim), 1.0


def _linear(rope: RopeConfig, rotary_dim: int) -> tuple[np.ndarray, float]:
  return 1.0 / _powers(rope.theta, rotary_dim) / rope.factor, 1.0


def _llama3(rope: RopeConfig, rotary_dim: int) -> tuple[np.ndarray, float]:
  """Long wavelengths are stretched, short ones kept, a ramp in between."""
  inv_freq = 1.0 / _powers(rope.theta, rotary_dim)
  low, high = rope.low_freq_factor, rope.high_freq_factor
  original = rope.original_max_length
  wavelength = 1 / inv_freq * (2 * math.pi)  # torch's order of rounding
  ramp = (1 / wavelength * original - low) / (high - low)
  blended = (1 - ramp) * inv_freq / rope.factor + ramp * inv_freq
  scaled = np.where(
    wavelength > original / low, inv_freq / rope.factor, blended
  )
  return np.where(wavelength < original / high, inv_freq, scaled), 1.0


def _yarn(rope: RopeConfig, rotary_dim: int) -> tuple[np.ndarray, float]:
  """NTK by parts: interpolate slow dimensions, keep fast ones."""

  def dimension(rotations: float) -> float:
    """The (fractional) dimension that turns this often in the old context."""
    wavelengths = rope.original_max_length / (rotations * 2 * math.pi)
    return rotary_dim * math.log(wavelengths) / (2 * math.log(rope.theta))

  low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
  if rope.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, rotary_dim - 1)
  if low == high:
    high += 0.001  # a step instead of a division by zero
  ramp = (np.arange(rotary_dim // 2, dtype=np.float32) - low) / (high - low)
  extrapolated = 1 - np.clip(ramp, 0, 1)
  powers = _powers(rope.theta, rotary_dim)
  inv_freq = (
    1.0 / (rope.factor * powers) * (1 - extrapolated)
    + 1.0 / powers * extrapolated
  )
  return inv_freq, _yarn_attention_factor(rope)


def _yarn_attention_factor(rope: RopeConfig) -> float:
  def mscale(weight: float) -> float:
    if rope.factor <= 1:
      return 1.0
    return 0.1 * weight * math.log(rope.factor) + 1.0

  if rope.attention_factor is not None:
    return rope.attention_factor
  if rope.mscale and rope.mscale_all_dim:
    return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
  return mscale(1.0)


def _dynamic(rope: RopeConfig, rotary_dim: int, length: jax.Array) -> jax.Array:
  """NTK scaling of theta by how far the row exceeds the original length.

  The scaled base theta * s ** (R / (R - 2)) is split into a constant table
  and s ** (-2i / (R - 2)): what depends on the length stays well conditioned,
  and rows within the original length get the default table exactly.
  """
  original = rope.original_max_length
  ratio = jnp.maximum(length, original).astype(jnp.float32) / original
  scale = rope.factor * ratio - (rope.factor - 1)
  exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / (rotary_dim - 2)
  default, _ = _default(rope, rotary_dim)
  return default[None] * jnp.exp(-exponents[None] * jnp.log(scale))


def _longrope(
  rope: RopeConfig, rotary_dim: int, length: jax.Array
) -> jax.Array:
  """One table for rows within the original length, one for longer rows."""
  powers = _powers(rope.theta, rotary_dim)
  short = 1.0 / (np.asarray(rope.short_factor, np.float32) * powers)
  long = 1.0 / (np.asarray(rope.long_factor, np.float32) * powers)
  return jnp.where(length > rope.original_max_length, long[None], short[None])


def _longrope_attention_factor(rope: RopeConfig) -> float:
  if rope.attention_factor is not None:
    return rope.attention_factor
  if rope.factor <= 1:
    return 1.0
  return math.sqrt(
    1 + math.log(rope.factor) / math.log(rope.original_max_length)
  )


_STATIC = {
  'default': _default,
  'linear': _linear,
  'llama3': _llama3,
  'yarn': _yarn,
}
