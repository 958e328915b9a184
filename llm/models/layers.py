"""Linear maps, norms and activations, as Linen modules without state.

Weights are stored [out, in], as Hugging Face stores them: a matrix-vector
product then reads each weight row once, in order.
"""

import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from llm.models.placement import keep_rows

# XLA:CPU multiplies [out, in] weights by a few columns faster than a few rows
# by their transpose, as long as the result stays [out, rows]: the latter turns
# all weights around first. Measured, a prefill of 128 tokens takes 0.75 of the
# time; at 256 both are level, and beyond the results are what costs.
_CPU_MAX_COLUMNS = 128
# Name of the results that are no bare products, for `remat`.
LINEAR = 'linear'


def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`x @ kernel.T`, in the memory order that the backend is fastest at.

  Args:
    x: float[..., D].
    kernel: float[*F, D]; the axes of F are kept, as joining them would undo a
      split over devices.

  Returns:
    float[..., *F], in the dtype of x.
  """
  batch_shape, rows = x.shape[:-1], math.prod(x.shape[:-1])
  if jax.default_backend() != 'cpu':
    return keep_rows(jnp.tensordot(x, kernel, axes=(-1, -1)))
  if rows > _CPU_MAX_COLUMNS:
    return checkpoint_name(keep_rows(_many_rows(x, kernel)), LINEAR)
  out_shape = kernel.shape[:-1]
  x = x.reshape(rows, x.shape[-1])
  kernel = kernel.reshape(-1, kernel.shape[-1])
  if rows == 1:
    y = jnp.einsum('fd,d->f', kernel, x[0])
  else:
    # The barrier keeps the transposition out of the product.
    y = lax.optimization_barrier(jnp.einsum('fd,nd->fn', kernel, x)).T
  return keep_rows(y.reshape(*batch_shape, *out_shape))


@jax.custom_vjp
def _many_rows(x, kernel):
  """x float[..., D], kernel float[*F, D] -> float[..., *F]."""
  return jnp.tensordot(x, kernel, axes=(-1, -1))


def _many_rows_fwd(x, kernel):
  return _many_rows(x, kernel), (x, kernel)


def _many_rows_bwd(residuals, y_grad):
  x, kernel = residuals
  batch, out = x.ndim - 1, kernel.ndim - 1
  x_grad = jnp.tensordot(y_grad, kernel, axes=out)
  rows = (tuple(range(batch)), tuple(range(batch)))
  # XLA:CPU copies the transpose of the first operand: the smaller one comes
  # first, and the barrier keeps XLA from turning the product around.
  if kernel.size > kernel.shape[-1] ** 2:
    kernel_grad = lax.optimization_barrier(jnp.tensordot(x, y_grad, axes=rows))
    return x_grad, jnp.moveaxis(kernel_grad, 0, -1)
  return x_grad, jnp.tensordot(y_grad, x, axes=rows)


_many_rows.defvjp(_many_rows_fwd, _many_rows_bwd)


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
  low = linear(x, adapter['a'].astype(y.dtype))
  out = y + linear(low, adapter['b'].astype(y.dtype))
  if 'scale' in adapter:
    out = (out * adapter['scale']).astype(y.dtype)
  return out


class Linear(nn.Module):
  """A linear map from `in_shape` to `out_shape` axes.

  Parameters: kernel [*out_shape, *in_shape]; bias [*out_shape] if asked for.
  Where the collection `lora` has an entry for this map, its low-rank product is
  added (see `llm.models.lora`).
  """

  out_shape: tuple[int, ...]
  in_shape: tuple[int, ...]
  use_bias: bool = False
  init_scale: float = 0.02
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x: float[*batch, *in_shape] -> float[*batch, *out_shape]."""
    kernel = self.param(
      'kernel',
      nn.initializers.normal(self.init_scale),
      (*self.out_shape, *self.in_shape),
    )
    batch_shape = x.shape[: x.ndim - len(self.in_shape)]
    x = x.astype(self.dtype).reshape(*batch_shape, -1)
    y = linear(
      x,
      kernel.astype(self.dtype).reshape(*self.out_shape, -1),
    )
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
