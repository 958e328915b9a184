"""The forward pass that the losses of packed rows share."""

from typing import Any

import jax

from llm.models.transformer import Transformer


def hidden_states(
  model: Transformer,
  variables: dict[str, Any],
  batch: Any,
  embed_noise: jax.Array | None = None,
) -> jax.Array:
  """float[B, T, D]: what the model gives to its output table.

  Args:
    model: the Transformer.
    variables: what it runs on.
    batch: `tokens`, `positions` and `segment_ids`, int32[B, T].
    embed_noise: float[B, T, D], added to the embeddings, or None.
  """
  hidden, _ = model.apply(
    variables,
    batch['tokens'],
    positions=batch['positions'],
    segment_ids=batch['segment_ids'],
    embed_noise=embed_noise,
    method='trunk',
  )
  return hidden
