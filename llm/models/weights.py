"""Weights, as float arrays or packed: one way to multiply, one to read rows.

A float weight is stored [*F, *I], outputs first, as Hugging Face stores it: a
matrix-vector product then reads each row once, in order.

A packed weight (of integers and scales, say) stands in its place in the tree of
parameters. It is a pytree of arrays with

    shape              (*F, *I), what the float array's would be
    multiply(x, dtype) float[..., D] -> [..., *F] in `dtype`, where D is the
                       product of I
    rows(ids, dtype)   int[...] -> [..., D] in `dtype`: rows of the weight as a
                       matrix [product of F, D]

All of its leaves lead with those axes of the weight that are scanned over or
indexed: layers, experts, the rows of a table. So a slice of all leaves is a
slice of the weight. It is frozen: gradients pass through `multiply` to x alone.
"""

import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from llm.backend import Backend, by_backend
from llm.models.placement import fetch_rows, keep_rows

# Name of the results of linear maps, for `remat`.
LINEAR = 'linear'


def is_packed(weight: Any) -> bool:
  """Whether a weight is packed: whether it multiplies by itself."""
  return hasattr(weight, 'multiply')


def parameter(
  module: nn.Module, name: str, scale: float, shape: tuple[int, ...]
) -> Any:
  """A module's weight, drawn from normal(scale) where there is none yet.

  Args:
    module: in whose `__call__` or `setup` this is.
    name: of the parameter.
    scale: standard deviation of a fresh one.
    shape: [*F, *I].

  Raises:
    ValueError: a packed weight of another shape.
  """
  if module.has_variable('params', name):
    weight = module.get_variable('params', name)
    if is_packed(weight):
      if tuple(weight.shape) != shape:
        path = '/'.join((*module.path, name))
        raise ValueError(
          f'{path} is a packed weight of shape {tuple(weight.shape)}, but the '
          f'model needs {shape}: pack the weights of this model'
        )
      return weight
  return module.param(name, nn.initializers.normal(scale), shape)


def linear(x: jax.Array, weight: Any, inputs: int = 1) -> jax.Array:
  """x W', in the memory order that the backend is fastest at.

  Args:
    x: float[..., D].
    weight: [*F, *I], a float array or packed; the axes of F are kept, as
      joining them would undo a split over devices.
    inputs: the number of axes of I, whose product is D.

  Returns:
    float[..., *F], in the dtype of x.
  """
  if is_packed(weight):
    y = lax.stop_gradient(weight).multiply(x, x.dtype)
  else:
    out_shape = weight.shape[: weight.ndim - inputs]
    y = _linear(x, weight.astype(x.dtype).reshape(*out_shape, -1))
  return checkpoint_name(keep_rows(y), LINEAR)


def table_rows(table: Any, ids: jax.Array, dtype: Any) -> jax.Array:
  """Rows of a [V, D] weight: int[B, ...] -> dtype[B, ..., D]."""
  if is_packed(table):
    return keep_rows(table.rows(ids, dtype))
  return keep_rows(fetch_rows(table)[ids].astype(dtype))


def sliced(weight: Any, index: Any) -> Any:
  """`weight[index]`, of the leading axes alone (see the module)."""
  return jax.tree.map(lambda leaf: leaf[index], weight)


def dense(weight: Any, dtype: Any) -> jax.Array:
  """The whole weight as one array in `dtype`, unpacked in memory."""
  if not is_packed(weight):
    return weight.astype(dtype)
  # How many of the axes are outputs only the weight knows, but rows come in
  # order.
  columns = jax.eval_shape(
    lambda w: w.rows(jnp.zeros((), jnp.int32), dtype), weight
  ).size
  count = math.prod(weight.shape) // columns
  return weight.rows(jnp.arange(count), dtype).reshape(weight.shape)


@jax.custom_vjp
def _linear(x, kernel):
  """x float[..., D], kernel float[*F, D] -> float[..., *F]."""
  return by_backend(_product, x, kernel)


def _linear_fwd(x, kernel):
  return _linear(x, kernel), (x, kernel)


def _linear_bwd(residuals, y_grad):
  x, kernel = residuals
  # Two equations: where a weight is frozen, its own is left out.
  return (
    by_backend(_input_gradient, y_grad, kernel),
    by_backend(_kernel_gradient, x, y_grad),
  )


_linear.defvjp(_linear_fwd, _linear_bwd)


def _product(backend: Backend, x, kernel):
  batch, rows = x.shape[:-1], math.prod(x.shape[:-1])
  if rows > backend.weights_first:
    return jnp.tensordot(x, kernel, axes=(-1, -1))
  out = kernel.shape[:-1]
  x = x.reshape(rows, x.shape[-1])
  kernel = kernel.reshape(-1, kernel.shape[-1])
  if rows == 1:
    y = jnp.einsum('fd,d->f', kernel, x[0])
  else:
    # The barrier keeps the transposition out of the product.
    y = lax.optimization_barrier(jnp.einsum('fd,nd->fn', kernel, x)).T
  return y.reshape(*batch, *out)


def _input_gradient(backend: Backend, y_grad, kernel):
  out = kernel.ndim - 1
  batch = y_grad.shape[: y_grad.ndim - out]
  rows = math.prod(batch)
  if rows > backend.weights_first:
    return jnp.tensordot(y_grad, kernel, axes=out)
  kernel = kernel.reshape(-1, kernel.shape[-1])
  y_grad = y_grad.reshape(rows, -1)
  if rows == 1:
    x_grad = jnp.einsum('f,fd->d', y_grad[0], kernel)
  else:
    x_grad = jnp.einsum('fn,fd->nd', _columns(y_grad), kernel)
  return x_grad.reshape(*batch, kernel.shape[-1])


def _kernel_gradient(backend: Backend, x, y_grad):
  batch = x.ndim - 1
  rows = math.prod(x.shape[:-1])
  if rows > backend.weights_first:
    over = (tuple(range(batch)), tuple(range(batch)))
    # XLA:CPU copies the transpose of the first operand: the smaller one comes
    # first, and the barrier keeps XLA from turning the product around.
    wide = math.prod(y_grad.shape[batch:]) > x.shape[-1]
    if backend.weights_first and wide:
      grad = lax.optimization_barrier(jnp.tensordot(x, y_grad, axes=over))
      return jnp.moveaxis(grad, 0, -1)
    return jnp.tensordot(y_grad, x, axes=over)
  out = y_grad.shape[batch:]
  x = x.reshape(rows, x.shape[-1])
  y_grad = y_grad.reshape(rows, -1)
  if rows == 1:
    grad = jnp.einsum('f,d->fd', y_grad[0], x[0])
  else:
    grad = jnp.einsum('fn,nd->fd', _columns(y_grad), x)
  return grad.reshape(*out, x.shape[-1])


def _columns(y_grad):
  return lax.optimization_barrier(y_grad.T)
