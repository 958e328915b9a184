"""The model that a preference loss compares with."""

import dataclasses

import jax
import jax.numpy as jnp

from llm.align.checks import BASE, FROZEN, PRECOMPUTED, needs_reference
from llm.align.scores import score_completions
from llm.errors import UserError
from llm.runs.train_model import TrainModel


def with_reference(config, train_model: TrainModel) -> TrainModel:
  """The model, with a copy of its first parameters where the loss reads one."""
  loss = config.loss
  if loss.reference != FROZEN or not needs_reference(loss.name):
    return train_model
  start = train_model.merged(train_model.params)
  if train_model.model.scan_layers:
    raise UserError(
      f"loss.reference='{FROZEN}' with model.scan_layers=True: use "
      f"'{PRECOMPUTED}'"
    )
  copy = jax.tree.map(jnp.copy, start)  # the first ones are donated
  return dataclasses.replace(
    train_model, frozen={**train_model.frozen, 'reference': copy}
  )


def reference_logprobs(train_model, frozen, batch, loss) -> jax.Array:
  """float32[B, S]: the reference's log-probability of each completion.

  It is a column of the batch, or of parameters that are not trained.
  """
  if 'ref_logprobs' in batch:
    return batch['ref_logprobs']
  params = frozen['base' if loss.reference == BASE else 'reference']
  scores = score_completions(
    train_model.model, {'params': params}, batch, loss.ld_alpha
  )
  return jax.lax.stop_gradient(scores.logprobs)
