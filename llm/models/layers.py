"""Linear maps, norms and activations, as Linen modules without state."""

from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from llm.models.weights import linear, parameter


def _adapted(x: jax.Array, y: jax.Array, adapter: dict) -> jax.Array:
  """scale * (y + x a' b'), as `lora.variables` lays an adapter out.

  Args:
    x: float[B, ..., D], the map's input.
    y: float[B, ..., *F], its output without the adapter and the bias.
    adapter: a float[R, D], b float[*F, R] and, where they are wanted, scale
      float32[*F]; keys typed[B] and rate float32[] of the dropout on `x`.

  Returns:
    float[B, ..., *F] in the dtype of y.
  """
  if 'keys' in adapter:
    keep = 1.0 - adapter['rate']
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[1:]))(
      adapter['keys']
    )
    x = jnp.where(kept, x / keep.astype(x.dtype), 0.0)
  out = y + linear(linear(x, adapter['a']), adapter['b'])
  if 'scale' in adapter:
    out = (out * adapter['scale']).astype(y.dtype)
  return out


class Linear(nn.Module):
  """A linear map from `in_shape` to `out_shape` axes.

  Parameters: kernel [*out_shape, *in_shape], a float array or packed (see
  `llm.models.weights`); bias [*out_shape] with `use_bias`. Where the collection
  `lora` has an entry for this map, its low-rank product is added (see
  `llm.models.lora`).
  """

  out_shape: tuple[int, ...]
  in_shape: tuple[int, ...]
  use_bias: bool = False
  init_scale: float = 0.02
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x: float[*batch, *in_shape] -> float[*batch, *out_shape]."""
    shape = (*self.out_shape, *self.in_shape)
    kernel = parameter(self, 'kernel', self.init_scale, shape)
    batch_shape = x.shape[: x.ndim - len(self.in_shape)]
    x = x.astype(self.dtype).reshape(*batch_shape, -1)
    y = linear(x, kernel, len(self.in_shape))
    if self.has_variable('lora', 'adapter'):
      y = _adapted(x, y, self.get_variable('lora', 'adapter'))
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, self.out_shape)
      y = y + _spread(bias, y)
    return y


def _spread(leaf: jax.Array, x: jax.Array) -> jax.Array:
  """A bias or scale as an array like `x`, of its shape and dtype.

  It is cast last, so that its gradient, a sum over all tokens, is added up in
  the dtype of the parameter.
  """
  return jnp.broadcast_to(leaf, x.shape).astype(x.dtype)


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis (Zhang & Sennrich 2019).

  The mean square is taken in float32. `offset` scales by 1 + w, as Gemma does.
  `float32_scale` multiplies before the cast back, as OLMo 2 and Gemma do;
  Llama casts first. The order only matters below float32.
  """

  eps: float = 1e-6
  offset: bool = False
  float32_scale: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.zeros if self.offset else nn.initializers.ones
    scale = self.param('scale', init, (x.shape[-1],))
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    y = x32 * lax.rsqrt(mean_square + self.eps)
    if self.offset:
      return (y * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)
    if self.float32_scale:
      return (y * scale.astype(jnp.float32)).astype(x.dtype)
    return y.astype(x.dtype) * _spread(scale, x)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
  """cap * tanh(x / cap), or x where there is no cap (Gemma 2, 2408.00118)."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def _gelu(x):
  return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x):
  return jax.nn.gelu(x, approximate=True)


ACTIVATIONS = {
  'silu': jax.nn.silu,
  'gelu': _gelu,
  'gelu_tanh': _gelu_tanh,
  'relu': jax.nn.relu,
}


class GatedMLP(nn.Module):
  """down(act(gate(x)) * up(x)), gate and up as one product (2002.05202)."""

  embed_dim: int
  hidden_dim: int
  activation: str
  use_bias: bool = False
  out_init_scale: float = 0.02
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x: float[B, T, D] -> float[B, T, D]."""
    gate_up = Linear(
      (2, self.hidden_dim),
      (self.embed_dim,),
      self.use_bias,
      dtype=self.dtype,
      name='gate_up',
    )(x)
    gate, up = gate_up[..., 0, :], gate_up[..., 1, :]
    return Linear(
      (self.embed_dim,),
      (self.hidden_dim,),
      self.use_bias,
      self.out_init_scale,
      dtype=self.dtype,
      name='down',
    )(ACTIVATIONS[self.activation](gate) * up)
