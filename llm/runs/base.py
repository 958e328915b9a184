"""The model that a training run starts from, before its weights are read.

Nothing here needs JAX.
"""

import dataclasses
from typing import Any

from llm.checkpoints.opened import Source
from llm.checkpoints.source import check_adapters, check_dtype, open_checkpoint
from llm.errors import UserError
from llm.models.config import FRESH_SHAPE, ModelConfig, length_limit
from llm.models.lora_config import LoraConfig
from llm.models.lora_places import match_targets
from llm.text.tokenizer import check_path


def open_base(config) -> Source | None:
  """The checkpoint at `model.path`; None for a fresh model.

  Args:
    config: of `training_fields`.

  Raises:
    UserError: a path, a shape or a field of `lora` is wrong.
  """
  check_dtype(config.dtype)
  path = config.model.path
  lora_config(config.lora)
  if path is None:
    if config.lora.path is not None:
      raise UserError(
        f'lora.path={config.lora.path!r}: adapters belong to their own base; '
        'set model.path'
      )
    if config.tokenizer.path is None:
      raise UserError(
        'neither model.path nor tokenizer.path is set: give a model to start '
        'from, or a tokenizer for a fresh one (--config.tokenizer.path=bytes '
        'needs no file)'
      )
    check_path(config.tokenizer.path)
    fresh_shape(config.model)
    return None
  source = open_checkpoint(path, config.tokenizer.path)
  _check_shape(config.model, source.config)
  if source.tokenizer_path is None:
    raise UserError(
      f'model.path={path!r} has no tokenizer: set --config.tokenizer.path'
    )
  if config.lora.path is not None:
    _check_adapters(config.lora, source.config)
  return source


def base_limit(config, source: Source | None) -> int:
  """Tokens that the model takes.

  Args:
    config: of the run.
    source: of `open_base`.
  """
  if source is None:
    return fresh_shape(config.model)['max_length']
  return length_limit(source.config)


def lora_config(lora) -> LoraConfig | None:
  """The adapters that `config.lora` asks for; None for none.

  Raises:
    UserError: a value is invalid.
  """
  if lora.rank < 0:
    raise UserError(f'lora.rank={lora.rank}: use 0 (no adapters) or more')
  if lora.rank == 0:
    return None
  names = ('rank', 'alpha', 'targets', 'dora', 'rslora', 'dropout')
  return LoraConfig(**{name: lora[name] for name in names})


def fresh_shape(shape) -> dict[str, Any]:
  """The sizes of a fresh model.

  Args:
    shape: `config.model`; a field that is None has its `FRESH_SHAPE` value.

  Raises:
    UserError: a size is wrong.
  """
  values = {
    name: default if shape[name] is None else shape[name]
    for name, default in FRESH_SHAPE.items()
  }
  for name, value in values.items():
    if not isinstance(value, bool) and value < 1:
      raise UserError(f'model.{name}={value}: use 1 or more')
  if values['num_heads'] % values['num_kv_heads']:
    raise UserError(
      f'model.num_kv_heads={values["num_kv_heads"]}: use a divisor of '
      f'model.num_heads={values["num_heads"]}'
    )
  if values['head_dim'] % 2:
    raise UserError(
      f'model.head_dim={values["head_dim"]}: use an even number, for RoPE '
      'turns pairs'
    )
  return values


def _check_shape(shape, config: ModelConfig) -> None:
  """Refuses sizes in `config.model` that the checkpoint does not have."""
  for name in FRESH_SHAPE:
    asked = shape[name]
    has = config.rope.theta if name == 'rope_theta' else getattr(config, name)
    if asked is not None and asked != has:
      raise UserError(
        f'model.{name}={asked}: the model at model.path has {has}; leave '
        f'model.{name} unset'
      )


def _check_adapters(fields, config: ModelConfig) -> None:
  """Refuses adapters at `lora.path` that are not what `lora` says."""
  there = check_adapters(fields.path, config)
  differ = [
    f'--config.lora.{name}={getattr(there, name)}'
    for name in ('rank', 'alpha', 'dora', 'rslora')
    if fields[name] != getattr(there, name)
  ]
  asked = dataclasses.replace(there, targets=fields.targets)
  if match_targets(asked, config) != match_targets(there, config):
    differ.append(f'--config.lora.targets="{there.targets}"')
  if differ:
    raise UserError(
      f'lora.path={fields.path!r}: its adapters have other settings than lora '
      f'says; give {" ".join(differ)}'
    )
