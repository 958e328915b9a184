"""The model that a training run starts from, before its weights are read.

Nothing here needs JAX.
"""

import dataclasses
from typing import Any

from llm.checkpoints.opened import Source
from llm.checkpoints.source import (
  check_adapters,
  check_dtype,
  fit_adapters,
  open_checkpoint,
)
from llm.errors import UserError
from llm.models.config import FRESH_SHAPE, ModelConfig, length_limit
from llm.models.lora_config import LoraConfig
from llm.models.lora_places import match_tokens, match_whole, resolve
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
  if config.lora.path is not None:
    source = fit_adapters(source, config.lora.path)
    _check_adapters(config.lora, source.config)
  if source.tokenizer_path is None:
    raise UserError(
      f'model.path={path!r} has no tokenizer: set --config.tokenizer.path'
    )
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
  fields = dataclasses.fields(LoraConfig)
  return LoraConfig(**{field.name: lora[field.name] for field in fields})


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
  there, asked = check_adapters(fields.path, config), lora_config(fields)
  differ = [
    name
    for name in ('rank', 'alpha', 'dora', 'rslora')
    if fields[name] != getattr(there, name)
  ]
  if asked is not None:
    differ += _differing_places(asked, there, config)
  if differ:
    flags = ' '.join(_flag(name, getattr(there, name)) for name in differ)
    raise UserError(
      f'lora.path={fields.path!r}: its adapters have other settings than lora '
      f'says; give {flags}'
    )


def _differing_places(
  asked: LoraConfig, there: LoraConfig, config: ModelConfig
) -> list[str]:
  """The settings by which two adapters are not of the same places."""
  ours, theirs = (resolve(one, config) for one in (asked, there))
  out = []
  if ours.keys() != theirs.keys():
    out.append('targets')
    out += [name for name in ('exclude', 'layers') if getattr(asked, name)]
  alike = [path for path in ours if path in theirs]
  # Where the default differs, it is named; the rest is the pattern's.
  for i, name in enumerate(('rank', 'alpha')):
    if getattr(asked, name) == getattr(there, name) and any(
      ours[path][i] != theirs[path][i] for path in alike
    ):
      out.append(f'{name}_pattern')
  for name, match in (
    ('modules_to_save', match_whole),
    ('tokens', match_tokens),
  ):
    if match(asked, config) != match(there, config):
      out.append(name)
  return out


def _flag(name: str, value: object) -> str:
  text = f'"{value}"' if isinstance(value, tuple) else value
  return f'--config.lora.{name}={text}'
