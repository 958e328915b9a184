"""Muon: momentum, made orthogonal matrix by matrix.

Jordan 2024 (https://kellerjordan.github.io/posts/muon/), with the scale of
Liu et al. (2502.16982), so that one learning rate and one weight decay serve
Muon's matrices and AdamW's other parameters. `optax.contrib.muon` cannot take
a fused kernel apart and corrects the bias of its Nesterov momentum, which
turns the direction of the first steps; here it is the published one.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from llm.train import matrices

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, Jordan 2024
_RMS = 0.2  # of an update: AdamW's usual one, 2502.16982 §2.2


class MuonState(NamedTuple):
  """Momentum of the matrices, in the shapes of the parameters."""

  mu: Any


def is_muon(path: str) -> bool:
  """Whether Muon updates the parameter: hidden matrices, not the output's."""
  parts = path.split('/')
  heads = any(part.endswith('_head') for part in parts)  # lm_, reward_, value_
  return parts[-1] == 'kernel' and not heads


def scale_by_muon(beta: float) -> optax.GradientTransformation:
  """Gradients to updates of RMS 0.2 whose singular values are all near 1.

  Args:
    beta: decay of the (Nesterov) momentum; 0.95 is usual.

  Returns:
    A transformation of kernels [..., out, in], see `matrices.split`. An update
    is orthogonalize(momentum) · 0.2 · sqrt(max(out, in)) for each matrix.
  """

  def init(params):
    return MuonState(jax.tree.map(jnp.zeros_like, params))

  def update(grads, state, params=None):
    del params
    mu = jax.tree.map(lambda m, g: beta * m + (1.0 - beta) * g, state.mu, grads)

    def one(path, g, m):
      path = matrices.path_name(path)
      direction = beta * m + (1.0 - beta) * g
      parts = [
        orthogonalize(part) * (_RMS * max(part.shape[1:]) ** 0.5)
        for part in matrices.split(path, direction)
      ]
      return matrices.join(path, parts, g.shape).astype(g.dtype)

    updates = jax.tree_util.tree_map_with_path(one, grads, mu)
    return updates, MuonState(mu)

  return optax.GradientTransformation(init, update)


def orthogonalize(x: jax.Array, steps: int = 5) -> jax.Array:
  """U S' V^T of each matrix U S V^T in float[B, m, n], S' about 0.7 to 1.2.

  Newton-Schulz iteration of Jordan's quintic, in float32 at least. Its
  coefficients bring small singular values up quickly instead of all of them to
  exactly 1.
  """
  a, b, c = _COEFFICIENTS
  wide = x.shape[1] <= x.shape[2]
  y = x if wide else jnp.swapaxes(x, 1, 2)
  y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
  y = y / jnp.maximum(jnp.linalg.norm(y, axis=(1, 2), keepdims=True), 1e-7)

  def step(y, _):
    gram = y @ jnp.swapaxes(y, 1, 2)
    return a * y + (b * gram + c * gram @ gram) @ y, None

  y, _ = lax.scan(step, y, None, length=steps)
  return y if wide else jnp.swapaxes(y, 1, 2)
