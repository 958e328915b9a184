"""The model that a preference run compares with."""

import dataclasses

import jax
import jax.numpy as jnp

from llm.align.preference_loss import (
  BASE,
  FROZEN,
  KTO,
  PRECOMPUTED,
  REFERENCES,
  needs_reference,
)
from llm.errors import UserError
from llm.runs.train_model import TrainModel


def resolve_reference(config):
  """The config with the kind of reference that `loss.reference=None` means."""
  loss = config.loss
  if loss.reference is not None or not needs_reference(loss.name):
    return config
  config = config.copy_and_resolve_references()
  config.loss.reference = PRECOMPUTED
  if config.loss.name == KTO:  # each batch has rows that were never there
    fresh = config.lora.rank and config.lora.path is None
    config.loss.reference = BASE if fresh else FROZEN
  return config


def check_reference(config) -> None:
  """Refuses a `loss.reference` that does not fit the loss or LoRA."""
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
  if loss.name == KTO and loss.reference == PRECOMPUTED:
    raise UserError(
      f"loss.reference='{PRECOMPUTED}': {KTO} compares with the reference on "
      "rows that are new in each batch; leave it unset, or use 'frozen' (or, "
      "under LoRA, 'base')"
    )


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
