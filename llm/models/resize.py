"""Tables for a larger vocabulary."""

from typing import Any

import jax
import jax.numpy as jnp


def resize_tables(params: Any, vocab_size: int) -> Any:
  """Parameters whose tables have rows for further tokens.

  A new row is the mean of the old ones, so that a new token begins as likely as
  an average one (Hewitt, "Initializing New Word Embeddings", 2021).

    [[1, 2], [3, 6]] -> [[1, 2], [3, 6], [2, 4]]

  Args:
    params: of a model, `embedder` [V, D] and, if it has one, `lm_head` [V, D].
    vocab_size: V of the result, at least that of `params`.
  """

  def resize(table: jax.Array) -> jax.Array:
    mean = jnp.mean(table, axis=0, dtype=jnp.float32).astype(table.dtype)
    rows = jnp.broadcast_to(mean, (vocab_size - len(table), table.shape[1]))
    return jnp.concatenate([table, rows])

  out = {**params, 'embedder': jax.tree.map(resize, params['embedder'])}
  if 'lm_head' in params:
    out['lm_head'] = jax.tree.map(resize, params['lm_head'])
  return out
