"""The model of a run: what is cheap first, the weights when they are needed."""

import dataclasses
from typing import Any

from llm.checkpoints.source import (
  DTYPES,
  Adapters,
  check_dtype,
  read_adapters,
  read_config,
  read_params,
  read_tokenizer,
)
from llm.decode.generate import length_limit
from llm.engine.output import fingerprint
from llm.engine.requests import Limits
from llm.errors import UserError
from llm.host import terminal
from llm.models.config import ModelConfig
from llm.models.transformer import Transformer
from llm.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint without its weights; `tokenizer` is None if it has none.

  `adapters` are those of `lora.path`, or None.
  """

  path: str
  config: ModelConfig
  tokenizer: Tokenizer | None
  limits: Limits
  adapters: Adapters | None


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model that can run."""

  source: Source
  model: Transformer
  params: Any


def open_model(config) -> Source:
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
  model_config = read_config(path)
  tokenizer = read_tokenizer(path, model_config, config.tokenizer.path)
  adapters = None
  if config.lora.path is not None:
    adapters = read_adapters(config.lora.path, model_config)
  limits = _limits(config, model_config)
  return Source(path, model_config, tokenizer, limits, adapters)


def files_of(config) -> list:
  """What tells the files of model and adapters from all others."""
  paths = (config.model.path, config.lora.path)
  return [part for path in paths if path for part in fingerprint(path)]


def load_weights(config, source: Source) -> Loaded:
  """Reads the parameters, with a progress bar on stderr.

  Adapters are added to them: decoding costs what it does without.
  """
  dtype = DTYPES[config.dtype]
  model = Transformer(source.config, dtype=dtype)
  with terminal.progress_bar() as bar:
    task = bar.add_task('loading', total=None)

    def progress(done, total, _):
      bar.update(task, completed=done, total=total)

    params = read_params(
      source.path, source.config, dtype, progress, adapters=source.adapters
    )
  return Loaded(source, model, params)


def _limits(config, model_config: ModelConfig) -> Limits:
  """What fits: the model's length, or `max_length` where that is less."""
  limit, name = length_limit(model_config), 'model.max_length'
  if config.max_length is not None:
    if not 1 <= config.max_length <= limit:
      raise UserError(
        f'max_length={config.max_length}: use 1 to {limit}, the tokens that '
        'the model takes'
      )
    limit, name = config.max_length, 'max_length'
  return Limits(limit, model_config.vocab_size, model_config.eos_ids, name)
