"""The model of a run: what is cheap first, the weights when they are needed."""

import dataclasses

from llm.checkpoints.opened import Source
from llm.checkpoints.source import (
  add_adapters,
  check_dtype,
  open_checkpoint,
  to_dtype,
)
from llm.engine.output import fingerprint
from llm.engine.requests import Limits, model_limits
from llm.errors import UserError


@dataclasses.dataclass(frozen=True)
class OpenedModel:
  """The model that a config names, without its weights.

  Attributes:
    source: the checkpoint, with the adapters of `lora.path` if that is set.
    limits: what its requests may have.
  """

  source: Source
  limits: Limits


def open_model(config) -> OpenedModel:
  """Reads config, tokenizer and adapters, and no weights.

  Args:
    config: with `model.path`, `lora.path`, `tokenizer.path`, `dtype` and
      `max_length`.

  Raises:
    UserError: the path is no checkpoint, or a field does not fit it.
  """
  path = config.model.path
  if path is None:
    raise UserError(
      'model.path is not set: give a Hugging Face model folder or a llama2.c '
      '.bin (--config.model.path=PATH)'
    )
  check_dtype(config.dtype)
  source = open_checkpoint(path, config.tokenizer.path)
  if config.lora.path is not None:
    source = add_adapters(source, config.lora.path)
  return OpenedModel(source, _limits(config, source))


def files_of(config) -> list:
  """Names, sizes and times of the model's files and those of its adapters."""
  paths = (config.model.path, config.lora.path)
  return [part for path in paths if path for part in fingerprint(path)]


def load_weights(config, opened: OpenedModel):
  """Reads the parameters, with a progress bar on stderr.

  Returns:
    A `llm.engine.completions.TextModel`.
  """
  # Imported here, so that `open_model` refuses bad input without JAX.
  from llm.engine.completions import TextModel
  from llm.host import terminal
  from llm.models.transformer import Transformer

  source, dtype = opened.source, to_dtype(config.dtype)
  with terminal.progress_bar() as bar:
    task = bar.add_task('loading', total=None)
    params = source.load(
      dtype,
      progress=lambda done, total, _: bar.update(
        task, completed=done, total=total
      ),
    )
  model = Transformer(source.config, dtype=dtype)
  return TextModel(model, params, source.tokenizer, opened.limits)


def _limits(config, source: Source) -> Limits:
  """What fits: the model's length, or `max_length` where that is less."""
  limits = model_limits(source.config)
  if config.max_length is None:
    return limits
  if not 1 <= config.max_length <= limits.max_length:
    raise UserError(
      f'max_length={config.max_length}: use 1 to {limits.max_length}, the '
      'tokens that the model takes'
    )
  return dataclasses.replace(
    limits, max_length=config.max_length, name='max_length'
  )
