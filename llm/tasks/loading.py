"""The model of a run: what is cheap first, the weights when they are needed."""

import dataclasses
import os
from typing import Any

from llm.api import DTYPES
from llm.checkpoints import hf, llama2c
from llm.decode.generate import length_limit
from llm.errors import UserError
from llm.models.config import ModelConfig
from llm.models.transformer import Transformer
from llm.tasks import report
from llm.tasks.requests import Limits
from llm.text.tokenizer import Tokenizer, find_tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint without its weights; `tokenizer` is None if it has none."""

  path: str
  config: ModelConfig
  tokenizer: Tokenizer | None
  limits: Limits


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model that can run."""

  source: Source
  model: Transformer
  params: Any


def open_model(config) -> Source:
  """Reads config and tokenizer of `config.model.path`.

  Args:
    config: with `model.path`, `tokenizer.path`, `dtype` and `max_length`.

  Raises:
    UserError: the path is no checkpoint, or a field does not fit it.
  """
  path = config.model.path
  if path is None:
    raise UserError(
      'model.path is not set: give a Hugging Face model folder or a llama2.c '
      '.bin (--config.model.path=PATH)'
    )
  if not os.path.exists(path):
    raise UserError(f'model.path={path!r} does not exist')
  if config.dtype not in DTYPES:
    raise UserError(f'dtype={config.dtype!r}: use one of {", ".join(DTYPES)}')
  read = hf.read_config if os.path.isdir(path) else llama2c.read_config
  model_config = read(path)
  where = config.tokenizer.path or find_tokenizer(path)
  tokenizer = None
  if where is not None:
    tokenizer = load_tokenizer(where, model_config.vocab_size)
  return Source(
    path, model_config, tokenizer, _limits(config, model_config, tokenizer)
  )


def load_weights(config, source: Source) -> Loaded:
  """Reads the parameters, with a progress bar on stderr."""
  dtype = DTYPES[config.dtype]
  model = Transformer(source.config, dtype=dtype)
  with report.progress_bar() as bar:
    task = bar.add_task('loading', total=None)

    def progress(done, total, _):
      bar.update(task, completed=done, total=total)

    if os.path.isdir(source.path):
      params = hf.load_params(
        source.path, source.config, dtype=dtype, progress=progress
      )
    else:
      _, params = llama2c.load(source.path, dtype=dtype, progress=progress)
  return Loaded(source, model, params)


def _limits(config, model_config: ModelConfig, tokenizer) -> Limits:
  """What fits: the model's length, or `max_length` where that is less."""
  eos_ids = model_config.eos_ids or (tokenizer.eos_ids if tokenizer else ())
  limit, name = length_limit(model_config), 'model.max_length'
  if config.max_length is not None:
    if not 1 <= config.max_length <= limit:
      raise UserError(
        f'max_length={config.max_length}: use 1 to {limit}, the tokens that '
        'the model takes'
      )
    limit, name = config.max_length, 'max_length'
  return Limits(limit, model_config.vocab_size, tuple(eos_ids), name)
