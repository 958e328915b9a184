"""Products of hidden states with an output table, for blocks of tokens.

A table [V, D] is a float array, or a packed weight: frozen, with a `shape` and
`multiply(x, dtype)`, float[..., D] -> dtype[..., V], which is differentiable in
x (`llm.models.weights` has the whole protocol).
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from llm.backend import Backend


def _is_packed(table: Any) -> bool:
  return hasattr(table, 'multiply')


def as_operand(backend: Backend, table: Any, dtype: Any) -> Any:
  """The table as `block_logits` and `products` take it, cast once for all."""
  if _is_packed(table):
    return lax.stop_gradient(table)
  return backend.operand(table, dtype)


def block_logits(
  backend: Backend, h: jax.Array, table: Any, cap: float | None
) -> jax.Array:
  """float32[..., V] of a block.

  Args:
    backend: whose operand the table is.
    h: float[..., D].
    table: of `as_operand`.
    cap: soft cap on the logits, or None.
  """
  if _is_packed(table):
    logits = table.multiply(h, jnp.float32)
  else:
    logits = jnp.einsum(
      '...d,vd->...v',
      backend.operand(h, h.dtype),
      table,
      preferred_element_type=jnp.float32,
    )
  return logits if cap is None else cap * jnp.tanh(logits / cap)


def no_gradient(table: Any) -> jax.Array | None:
  """What the gradients of the blocks are added to; None: there is none."""
  if _is_packed(table):
    return None
  return jnp.zeros(table.shape, jnp.float32)


def products(
  backend: Backend,
  grad: jax.Array,
  capped: jax.Array,
  h: jax.Array,
  table: Any,
  cap: float | None,
) -> tuple[jax.Array, jax.Array | None]:
  """Gradients of a block's hidden states and of the table, in float32.

  Args:
    backend: whose operand the table is.
    grad: float32[..., V], with respect to the capped logits.
    capped: float32[..., V].
    h: float[..., D].
    table: of `as_operand`.
    cap: soft cap or None.

  Returns:
    [..., D] and [V, D]; None for a packed table, which has no gradient.
  """
  if cap is not None:
    grad = grad * (1.0 - jnp.square(capped / cap))
  if _is_packed(table):
    _, transposed = jax.vjp(lambda x: table.multiply(x, jnp.float32), h)
    return transposed(grad)[0], None
  grad = grad.astype(table.dtype)
  h = backend.operand(h, h.dtype).reshape(-1, h.shape[-1])
  h_grad = jnp.einsum(
    '...v,vd->...d', grad, table, preferred_element_type=jnp.float32
  )
  table_grad = jnp.einsum(
    'mv,md->vd',
    grad.reshape(-1, grad.shape[-1]),
    h,
    preferred_element_type=jnp.float32,
  )
  return h_grad, table_grad
