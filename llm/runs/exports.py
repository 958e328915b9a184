"""What a training run leaves for others: a model folder, adapters.

The folders are checked before the weights are read: a run of days does not
find at its end that it may not write them.
"""

import contextlib
import os
from typing import Any

from llm.checkpoints.hf import peft
from llm.checkpoints.hf.config import to_hf
from llm.checkpoints.hf.folder import read_json, weight_files
from llm.checkpoints.hf.save import reward_config, save_hf
from llm.errors import RunError, UserError
from llm.host import terminal
from llm.models import lora as lora_lib
from llm.parallel.distributed import is_writer, to_host
from llm.runs.train_model import ModelSpec, TrainModel, export_params

_ADAPTERS = ('adapter_config.json', 'adapter_model.safetensors')


def check_fields(
  config, spec: ModelSpec, workdir: str, reward_head: bool = False
) -> None:
  """Refuses folders and formats that could not be written at the end.

  A folder may be new, empty, or hold an earlier export of this model.

  Args:
    config: of the run.
    spec: the model.
    workdir: of the run.
    reward_head: what is exported is a model that scores texts.

  Raises:
    UserError: `export` or `lora.export` cannot be written, is in use, holds
      something else, or the model cannot be expressed in its format.
  """
  fields = {'export': config.export, 'lora.export': config.lora.export}
  taken = {'the workdir': workdir, 'model.path': config.model.path}
  if 'teacher' in config:
    taken['teacher.path'] = config.teacher.path
  for field, path in fields.items():
    if path is None:
      continue
    if not path:
      raise UserError(f"{field}='': name a folder, or leave it unset")
    where = f'{field}={path!r}'
    for name, other in taken.items():
      if other is not None and os.path.realpath(other) == os.path.realpath(
        path
      ):
        raise UserError(f'{where}: is {name} too; name a folder of its own')
    taken[field] = path
    _check_writable(where, path)
  if config.export is not None:
    raw = reward_config if reward_head else to_hf
    _check_model_folder(config.export, raw(spec.config))
  if config.lora.export is not None:
    peft.check_model(spec.config)
    _check_adapter_folder(config.lora.export)


def write(
  config, train_model: TrainModel, params: Any, reward_head: Any = None
) -> None:
  """Writes what `export` and `lora.export` ask for.

  Args:
    config: of the run.
    train_model: the model.
    params: what was trained.
    reward_head: {'kernel': [1, D]} of a model that scores texts, or None.

  Raises:
    RunError: the disk is full, or a folder cannot be written any more.
  """
  spec = train_model.spec
  if config.export is not None:
    whole = to_host(export_params(config, train_model, params))
    if reward_head is not None:
      whole = whole | {'reward_head': to_host(reward_head)}
    if is_writer():
      with _writing('export', config.export):
        save_hf(
          config.export,
          spec.config,
          whole,
          tokenizer=spec.tokenizer,
          reward_head=reward_head is not None,
        )
      terminal.log(f'exported to {config.export}')
  if config.lora.export is not None:
    if train_model.model.scan_layers:
      params = lora_lib.unstack(params, spec.config)
    adapters = to_host(params)
    if is_writer():
      with _writing('lora.export', config.lora.export):
        peft.save_peft(
          config.lora.export,
          spec.lora,
          spec.config,
          adapters,
          base_model=spec.source and spec.source.path,
        )
      terminal.log(f'adapters exported to {config.lora.export}')


@contextlib.contextmanager
def _writing(field: str, path: str):
  """Says which export failed, and that nothing is lost."""
  try:
    yield
  except OSError as error:
    raise RunError(
      f'{field}={path!r}: {error.strerror or error}; the trained state is '
      'saved: fix this and start the same command again'
    ) from error


def _check_writable(where: str, path: str) -> None:
  """Refuses what is no folder, or cannot become one; makes nothing."""
  if os.path.lexists(path) and not os.path.isdir(path):
    raise UserError(f'{where}: is a file; name a folder')
  parent = os.path.abspath(path)
  while not os.path.lexists(parent):
    parent = os.path.dirname(parent)
  if not os.path.isdir(parent):
    raise UserError(f'{where}: {parent} is not a folder')
  if not os.access(parent, os.W_OK | os.X_OK):
    raise UserError(
      f'{where}: {parent} may not be written; name another folder'
    )


def _check_model_folder(path: str, ours: dict[str, Any]) -> None:
  if not _others(path):
    return
  if not weight_files(path):
    raise UserError(_foreign('export', path))
  there = os.path.join(path, 'config.json')
  if not os.path.exists(there):  # an export that was killed
    return
  config = read_json(there)
  for name in ours:
    if config.get(name) != ours[name]:
      raise UserError(
        f'export={path!r}: holds another model, whose {name} is '
        f'{config.get(name)!r} and not {ours[name]!r}; name a new folder'
      )


def _check_adapter_folder(path: str) -> None:
  names = _others(path)
  if names and not set(names) & set(_ADAPTERS):
    raise UserError(_foreign('lora.export', path))


def _others(path: str) -> list[str]:
  """What a folder holds, but for files that an export was cut off in."""
  names = sorted(os.listdir(path)) if os.path.isdir(path) else []
  return [name for name in names if not name.endswith('.tmp')]


def _foreign(field: str, path: str) -> str:
  return (
    f'{field}={path!r}: is not empty and holds no earlier export '
    f'({_others(path)[0]}, …); name a new folder'
  )
