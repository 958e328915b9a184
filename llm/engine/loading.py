"""The model of a run: what is cheap first, the weights when they are needed."""

import dataclasses
import functools

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
    length: `max_length` of the run, None for what the model takes.
  """

  source: Source
  length: int | None = None

  @functools.cached_property
  def limits(self) -> Limits:
    """What its requests may have; reads the tokenizer, for what ends a text.

    Raises:
      UserError: as `Source.tokenizer`.
    """
    limits = dataclasses.replace(
      model_limits(self.source.config), eos_ids=self.source.ends.ids
    )
    if self.length is None:
      return limits
    return dataclasses.replace(
      limits, max_length=self.length, name='max_length'
    )


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
  limit = model_limits(source.config).max_length
  if config.max_length is not None and not 1 <= config.max_length <= limit:
    raise UserError(
      f'max_length={config.max_length}: use 1 to {limit}, the tokens that the '
      'model takes'
    )
  return OpenedModel(source, config.max_length)


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
  terminal.log(source.note)
  terminal.log(source.ends.note)
  with terminal.progress_bar() as bar:
    task = bar.add_task('loading', total=None)
    params = source.load(
      dtype,
      progress=lambda done, total, _: bar.update(
        task, completed=done, total=total
      ),
    )
  shape = dataclasses.replace(source.config, eos_ids=source.ends.ids)
  model = Transformer(shape, dtype=dtype)
  return TextModel(model, params, source.tokenizer, opened.limits)
