"""Rows of arrays [B, …]: those of a cache, and of all else that has rows."""

import jax
import jax.numpy as jnp


def insert_rows(x: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
  """Puts new[i] at x[at[i]]; an index >= B drops its row.

  Args:
    x: [B, …].
    new: [R, …]; where an axis is shorter than that of x, zeros follow, so that
      nothing is left of the row that was there.
    at: int32[R], different ones as far as they are below B.

  Raises:
    ValueError: an axis of `new` is longer than that of x.
  """
  missing = [a - b for a, b in zip(x.shape[1:], new.shape[1:], strict=True)]
  if min(missing, default=0) < 0:
    raise ValueError(
      f'rows of shape {new.shape[1:]} do not fit into rows of {x.shape[1:]}: '
      'prefill them with fewer slots, or allocate more'
    )
  if any(missing):
    new = jnp.pad(new, [(0, 0), *[(0, count) for count in missing]])
  return x.at[at].set(new, mode='drop')


def where_rows(rows: jax.Array, x: jax.Array, other: jax.Array) -> jax.Array:
  """x[b] where rows[b], else other[b]: bool[B], two arrays [B, …]."""
  return jnp.where(rows.reshape(-1, *[1] * (x.ndim - 1)), x, other)
