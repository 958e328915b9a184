"""Reductions: how losses per token become one mean over a batch.

Each gives a sum and a denominator; `policy.py` lists what the means are.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from llm.losses.options import REDUCTIONS
from llm.losses.pairs import Sums


class Reduction(NamedTuple):
  """Weights of the tokens, and the denominator of their sum.

  Metrics have other weights than the loss where the loss's denominator is not
  the right one for a mean.
  """

  loss_weights: jax.Array  # float32[B, T]
  metric_weights: jax.Array  # float32[B, T]
  weight_sum: jax.Array  # float32[]

  def sums(self, losses: jax.Array, **metrics: jax.Array) -> Sums:
    """(loss sum, weight sum, metric sums) of float[B, T] arrays."""
    watched = {
      name: jnp.sum(self.metric_weights * lax.stop_gradient(value))
      for name, value in metrics.items()
    }
    return jnp.sum(self.loss_weights * losses), self.weight_sum, watched


def counted(
  mask: jax.Array, row_weights: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Which tokens count, and how much each row does.

  Args:
    mask: bool or float[B, T].
    row_weights: float or bool[B]; None is 1 for rows with a token, else 0.

  Returns:
    bool[B, T], without the tokens of rows of weight 0, and float32[B].

  Raises:
    ValueError: the shapes do not agree.
  """
  mask = mask != 0
  if row_weights is None:
    return mask, jnp.any(mask, axis=1).astype(jnp.float32)
  rows = jnp.asarray(row_weights, jnp.float32)
  if rows.shape != mask.shape[:1]:
    raise ValueError(
      f'row_weights has shape {rows.shape}, but mask {mask.shape}'
    )
  return mask & (rows != 0)[:, None], rows


def reduce(
  mask: jax.Array,
  rows: jax.Array,
  reduction: str,
  max_length: int | None = None,
  group_lengths: jax.Array | None = None,
) -> Reduction:
  """The weights of a reduction by name.

  Args:
    mask: bool[B, T] from `counted`.
    rows: float32[B] from `counted`.
    reduction: one of REDUCTIONS.
    max_length: longest completion, for 'constant'.
    group_lengths: float[B], mean length of each row's group, for 'group'.

  Raises:
    ValueError: another name, or what it needs is not given.
  """
  count = jnp.sum(mask, axis=1).astype(jnp.float32)
  mean = rows / jnp.maximum(count, 1.0)
  loss = watch = mean
  total = jnp.sum(rows)
  if reduction == 'token':
    loss = watch = rows
    total = jnp.sum(rows * count)
  elif reduction == 'constant':
    if max_length is None:
      raise ValueError(
        "reduction='constant' needs max_length, the longest completion allowed"
      )
    loss, watch = rows, max_length * mean
    total = max_length * total
  elif reduction == 'group':
    if group_lengths is None:
      raise ValueError(
        "reduction='group' needs group_lengths, the mean length of each "
        "row's group"
      )
    lengths = jnp.asarray(group_lengths, jnp.float32)
    loss = rows / jnp.where(lengths > 0, lengths, 1.0)
  elif reduction != 'sequence':
    raise ValueError(f'reduction={reduction!r} must be one of {REDUCTIONS}')
  loss, watch = (jnp.where(mask, row[:, None], 0.0) for row in (loss, watch))
  return Reduction(loss, watch, total)


def clean(mask: jax.Array, **arrays: jax.Array | None) -> list:
  """float32 arrays with 0 outside the mask; None stays None.

  An infinite number outside would otherwise be a NaN in the gradient.

  Raises:
    ValueError: a shape is not the mask's.
  """
  out = []
  for name, array in arrays.items():
    if array is not None:
      if jnp.shape(array) != mask.shape:
        raise ValueError(
          f'{name} has shape {jnp.shape(array)}, but mask {mask.shape}'
        )
      array = jnp.where(mask, jnp.asarray(array, jnp.float32), 0.0)
    out.append(array)
  return out


def per_token(advantages: jax.Array, mask: jax.Array) -> jax.Array:
  """Advantages of completions [B] or tokens [B, T], as float32[B, T], fixed."""
  advantages = lax.stop_gradient(jnp.asarray(advantages, jnp.float32))
  if advantages.shape == mask.shape[:1]:
    advantages = jnp.broadcast_to(advantages[:, None], mask.shape)
  return clean(mask, advantages=advantages)[0]
