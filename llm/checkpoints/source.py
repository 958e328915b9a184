"""Opens a checkpoint, whatever the kind of its path.

A new kind is one module with a function like those in `KINDS`, and its entry
there.
"""

from collections.abc import Callable
import dataclasses
import os
from typing import Any

from llm.checkpoints import llama2c
from llm.checkpoints.hf import source as hf
from llm.checkpoints.hf.peft_folder import PeftFolder, open_peft
from llm.checkpoints.opened import Progress, Source
from llm.errors import UserError
from llm.models.config import ModelConfig
from llm.models.lora_config import LoraConfig
from llm.text.tokenizer import find_tokenizer

# Called in this order with (path, where the tokenizer is or None). Each looks
# at what the path is; one that it does not know gives None. Files of llama2.c
# have nothing to know them by, so that they come last.
Kind = Callable[[str, str | None], Source | None]
KINDS: tuple[Kind, ...] = (hf.open_folder, llama2c.open_file)

DTYPES = ('float32', 'bfloat16', 'float16')
# Settings, and the adapter tree in float32 with unrolled layers.
Adapters = tuple[LoraConfig, Any]


def open_checkpoint(path: str, tokenizer: str | None = None) -> Source:
  """Reads config and tokenizer of a language model, and no weights.

  Args:
    path: a Hugging Face folder or a llama2.c `.bin` file.
    tokenizer: where the tokenizer is; None: with the model.

  Raises:
    UserError: there is nothing at `path`, it is no language model, or one of
      its files is broken.
  """
  for open_kind in KINDS:
    source = open_kind(path, tokenizer)
    if source is not None:
      return source
  what = 'is of no known kind' if os.path.exists(path) else 'does not exist'
  raise UserError(
    f'model.path={path!r} {what}: give a Hugging Face model folder '
    'or a llama2.c .bin file'
  )


def add_adapters(source: Source, path: str) -> Source:
  """The same model with the adapters of a PEFT folder merged into its weights.

  The sum of weights and adapters is taken in float32 and cast to the dtype of
  `load`; what is loaded has no adapters, so that decoding costs what it does
  without.

  Raises:
    UserError: as `check_adapters`.
  """
  source = fit_adapters(source, path)

  def load(
    dtype: Any, shardings: Any = None, progress: Progress | None = None
  ) -> Any:
    import jax

    from llm.models import lora as lora_lib

    settings, lora = read_adapters(path, source.config)
    merge = jax.jit(
      lora_lib.merge,
      static_argnums=2,
      donate_argnums=0,
      out_shardings=shardings,
    )
    return merge(source.load(dtype, shardings, progress), lora, settings)

  return dataclasses.replace(source, load=load)


def fit_adapters(source: Source, path: str) -> Source:
  """The model that the adapters of a PEFT folder are beside.

  It is `source` itself, unless the folder brings tables of its own along
  (those of another vocabulary come with its tokenizer), or unties the tables.

  Raises:
    UserError: as `check_adapters`.
  """
  folder = _open(path, source.config)
  if folder.config == source.config and not folder.base:
    return source

  def load(
    dtype: Any, shardings: Any = None, progress: Progress | None = None
  ) -> Any:
    from llm.checkpoints.hf.peft_base import load_base

    return load_base(source, folder, dtype, shardings, progress)

  tokenizer, own = source.tokenizer_path, find_tokenizer(path)
  resized = folder.config.vocab_size != source.config.vocab_size
  beside = find_tokenizer(source.path)
  default = tokenizer in (None, None if beside is None else str(beside))
  if resized and default and own is not None:
    tokenizer = str(own)
  return dataclasses.replace(
    source,
    config=folder.config,
    load=load,
    tokenizer_path=tokenizer,
    replaced=tuple(folder.base),
  )


def check_adapters(path: str, config: ModelConfig) -> LoraConfig:
  """The settings of a PEFT folder's adapters, if they fit the model.

  Raises:
    UserError: as `peft_folder.open_peft`.
  """
  return _open(path, config).settings


def read_adapters(path: str, config: ModelConfig) -> Adapters:
  """The adapters of a PEFT folder for a model of this shape.

  Raises:
    UserError: as `check_adapters`.
  """
  from llm.checkpoints.hf import peft

  try:
    return peft.read_peft(path, config)
  except UserError as error:
    raise UserError(f'lora.path: {error}') from None


def read_replaced(path: str, config: ModelConfig) -> dict[tuple[str, ...], Any]:
  """The parameters of `Source.replaced`, from the PEFT folder that brings them.

  Raises:
    UserError: as `check_adapters`.
  """
  from llm.checkpoints.hf.peft import read_base

  return read_base(_open(path, config))


def _open(path: str, config: ModelConfig) -> PeftFolder:
  try:
    return open_peft(path, config)
  except UserError as error:
    raise UserError(f'lora.path: {error}') from None


def check_dtype(dtype: str) -> None:
  """Raises UserError unless `dtype` is one of `DTYPES`."""
  if dtype not in DTYPES:
    raise UserError(f'dtype={dtype!r}: use one of {", ".join(DTYPES)}')


def to_dtype(name: str) -> Any:
  """The scalar type of `jax.numpy` with one of the names in `DTYPES`."""
  import jax.numpy as jnp

  check_dtype(name)
  return getattr(jnp, name)
