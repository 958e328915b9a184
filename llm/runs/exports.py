"""What a training run leaves for others: a model folder, adapters."""

import contextlib
import os
from typing import Any

from llm.checkpoints.hf import peft
from llm.checkpoints.hf.config import to_hf
from llm.checkpoints.hf.folder import read_json
from llm.checkpoints.hf.save import reward_config, save_hf
from llm.checkpoints.source import read_replaced
from llm.errors import RunError, UserError
from llm.host import terminal
from llm.models import lora as lora_lib
from llm.parallel.distributed import is_writer, to_host
from llm.runs.train_model import ModelSpec, TrainModel, export_params


def check_fields(config, spec: ModelSpec, reward_head: bool = False) -> None:
  """Refuses another model's folder, and formats that cannot express this one.

  Whether the folders can be written is a matter of `export_checks`.

  Args:
    config: of the run.
    spec: the model.
    reward_head: what is exported is a model that scores texts.

  Raises:
    UserError: naming the field.
  """
  if config.export is not None:
    raw = reward_config if reward_head else to_hf
    _check_model_folder(config.export, raw(spec.config))
  if config.lora.export is not None:
    peft.check_model(spec.config)


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
    adapters, base = to_host(params), None
    if spec.source is not None and spec.source.replaced:
      base = read_replaced(config.lora.path, spec.config)
    if is_writer():
      with _writing('lora.export', config.lora.export):
        peft.save_peft(
          config.lora.export,
          spec.lora,
          spec.config,
          adapters,
          base_model=spec.source and spec.source.path,
          base=base,
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


def _check_model_folder(path: str, ours: dict[str, Any]) -> None:
  there = os.path.join(path, 'config.json')
  if not os.path.exists(there):  # new, or an export that was killed
    return
  config = read_json(there)
  for name in ours:
    if config.get(name) != ours[name]:
      raise UserError(
        f'export={path!r}: holds another model, whose {name} is '
        f'{config.get(name)!r} and not {ours[name]!r}; name a new folder'
      )
