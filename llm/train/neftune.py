"""Noise on the embeddings in fine-tuning (NEFTune, 2310.05914)."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from llm.errors import UserError


def neftune_noise(
  keys: jax.Array,
  segment_ids: jax.Array,
  embed_dim: int,
  alpha: float,
  dtype: Any = jnp.float32,
) -> jax.Array:
  """Uniform noise in ±alpha / sqrt(L · D), L being the document's length.

  A row's noise is a function of its own key, and a longer padding does not
  change it. Where rows are packed, each document has the bound that it would
  have alone.

  Args:
    keys: typed key[B], one per row.
    segment_ids: int32[B, T], 1, 2, … in a packed row; 0 is padding.
    embed_dim: D.
    alpha: bound of the noise's norm relative to the paper's; 5 is usual.
    dtype: of the noise.

  Returns:
    dtype[B, T, D], 0 on padding; `embed_noise` of the Transformer.

  Raises:
    UserError: alpha is negative or not finite.
  """
  if not 0.0 <= alpha < math.inf:
    raise UserError(
      f'neftune_alpha={alpha}: use a number of at least 0 (0: no noise)'
    )

  def one(key, segments):
    (length,) = segments.shape
    counts = jnp.zeros((length + 1,), jnp.int32).at[segments].add(1)
    bound = alpha * jax.lax.rsqrt(
      counts[segments].astype(jnp.float32) * embed_dim
    )
    bound = jnp.where(segments > 0, bound, 0.0)
    noise = jax.random.uniform(key, (length, embed_dim), minval=-1.0)
    return (noise * bound[:, None]).astype(dtype)

  return jax.vmap(one)(keys, segment_ids)
