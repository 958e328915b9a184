"""Reads a checkpoint, whatever the kind of its path."""

import os
from typing import Any

import jax
import jax.numpy as jnp

from llm.checkpoints import llama2c
from llm.checkpoints.hf import load as hf
from llm.checkpoints.hf import peft
from llm.errors import UserError
from llm.models import lora as lora_lib
from llm.models.config import ModelConfig
from llm.models.lora_config import LoraConfig
from llm.text.tokenizer import Tokenizer, find_tokenizer, load_tokenizer

DTYPES = {
  'float32': jnp.float32,
  'bfloat16': jnp.bfloat16,
  'float16': jnp.float16,
}
# Settings, and the adapter tree in float32 with unrolled layers.
Adapters = tuple[LoraConfig, Any]


def check_dtype(dtype: str) -> None:
  """Raises UserError unless `dtype` is a name of `DTYPES`."""
  if dtype not in DTYPES:
    raise UserError(f'dtype={dtype!r}: use one of {", ".join(DTYPES)}')


def read_config(path: str) -> ModelConfig:
  """The shape of a Hugging Face folder or a llama2.c `.bin` file."""
  if not os.path.exists(path):
    raise UserError(
      f'model.path={path!r} does not exist: give a Hugging Face model folder '
      'or a llama2.c .bin file'
    )
  names = os.listdir(path) if os.path.isdir(path) else []
  if peft.CONFIG in names and 'config.json' not in names:
    raise UserError(
      f'model.path={path!r} holds adapters alone: name them as lora.path, and '
      'their base as model.path'
    )
  if not os.path.isdir(path):
    return llama2c.read_config(path)
  config, kind = hf.read_config(path), hf.architecture(path)
  if kind.endswith('ForSequenceClassification'):
    raise UserError(
      f'model.path={path!r}: holds a {kind}, which scores texts and writes '
      'none: give a language model'
    )
  return config


def read_adapters(path: str, config: ModelConfig) -> Adapters:
  """The adapters of a PEFT folder for a model of this shape.

  Raises:
    UserError: as `peft.read_peft`.
  """
  try:
    return peft.read_peft(path, config)
  except UserError as error:
    raise UserError(f'lora.path: {error}') from None


def read_params(
  path: str,
  config: ModelConfig,
  dtype: Any,
  progress=None,
  shardings=None,
  adapters: Adapters | None = None,
):
  """The parameters of either.

  Args:
    path: of the checkpoint.
    config: as `read_config` gives it.
    dtype: of every parameter.
    progress: as for `load`.
    shardings: tree of where each parameter shall lie; None: the default
      device.
    adapters: of `read_adapters`, to be added to the weights: the sum is taken
      in float32 and cast to `dtype`.
  """
  if os.path.isdir(path):
    params = hf.load_params(
      path, config, dtype=dtype, shardings=shardings, progress=progress
    )
  else:
    params = llama2c.load(path, dtype=dtype, progress=progress)[1]
    if shardings is not None:
      params = jax.device_put(params, shardings)
  if adapters is None:
    return params
  settings, lora = adapters
  merge = jax.jit(
    lora_lib.merge,
    static_argnums=2,
    donate_argnums=0,
    out_shardings=shardings,
  )
  return merge(params, lora, settings)


def read_tokenizer(
  path: str, config: ModelConfig, where: str | None = None
) -> Tokenizer | None:
  """The tokenizer at `where`, else the one with the model, else None."""
  where = where or find_tokenizer(path)
  return load_tokenizer(where, config.vocab_size) if where else None
