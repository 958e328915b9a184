"""The model that a preference run compares with."""

import dataclasses

import jax
import jax.numpy as jnp

from llm.align.preference_loss import (
  BASE,
  FROZEN,
  PRECOMPUTED,
  REFERENCES,
  needs_reference,
)
from llm.errors import UserError
from llm.runs.train_model import TrainModel


def check_reference(config) -> None:
  """Refuses a `loss.reference` that is unknown or does not fit `lora`."""
  loss = config.loss
  if config.lora.rank and config.lora.dropout:
    raise UserError(
      f'lora.dropout={config.lora.dropout}: the reference is without it, so '
      'that the two would differ by noise; set it to 0'
    )
  if not needs_reference(loss.name):
    if loss.reference is not None:
      raise UserError(
        f'loss.reference={loss.reference!r}: {loss.name} has no reference; '
        'leave it unset'
      )
    return
  if loss.reference not in REFERENCES:
    raise UserError(
      f'loss.reference={loss.reference!r}: use one of {", ".join(REFERENCES)}'
    )
  if loss.reference == BASE and not config.lora.rank:
    raise UserError(
      f"loss.reference='{BASE}' is the model without its adapters: set "
      f"lora.rank above 0, or use '{PRECOMPUTED}'"
    )


def with_reference(config, train_model: TrainModel) -> TrainModel:
  """The trainee, with a copy of its first parameters where it is asked for."""
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
