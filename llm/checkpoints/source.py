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
from llm.checkpoints.hf.peft_folder import open_peft
from llm.checkpoints.opened import Progress, Source
from llm.errors import UserError
from llm.models.config import ModelConfig
from llm.models.lora_config import LoraConfig

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
  check_adapters(path, source.config)

  def load(
    dtype: Any, shardings: Any = None, progress: Progress | None = None
  ) -> Any:
    import jax

    from llm.checkpoints.hf.peft import read_projections, read_table_adapter
    from llm.models import lora as lora_lib

    settings, lora = read_projections(path, source.config)
    replaced = open_peft(path, source.config).saved
    more = {'replaced': replaced} if replaced else {}
    base = source.load(dtype, shardings, progress, **more)
    table = read_table_adapter(path, source.config)
    if table is not None:
      old = base['embedder']['embedding']
      new = (old.astype(table.dtype) + table).astype(old.dtype)
      new = jax.device_put(new, old.sharding)
      base = {**base, 'embedder': {'embedding': new}}
    merge = jax.jit(
      lora_lib.merge,
      static_argnums=2,
      donate_argnums=0,
      out_shardings=shardings,
    )
    return merge(base, lora, settings)

  return dataclasses.replace(source, load=load)


def check_adapters(path: str, config: ModelConfig) -> LoraConfig:
  """The settings of a PEFT folder's adapters, if they fit the model.

  Raises:
    UserError: as `peft_folder.open_peft`.
  """
  try:
    return open_peft(path, config).settings
  except UserError as error:
    raise UserError(f'lora.path: {error}') from None


def read_adapters(path: str, config: ModelConfig) -> Adapters:
  """The adapters of a PEFT folder for a model of this shape.

  Raises:
    UserError: as `check_adapters`.
  """
  from llm.checkpoints.hf import peft

  check_adapters(path, config)
  return peft.read_peft(path, config)


def check_dtype(dtype: str) -> None:
  """Raises UserError unless `dtype` is one of `DTYPES`."""
  if dtype not in DTYPES:
    raise UserError(f'dtype={dtype!r}: use one of {", ".join(DTYPES)}')


def to_dtype(name: str) -> Any:
  """The scalar type of `jax.numpy` with one of the names in `DTYPES`."""
  import jax.numpy as jnp

  check_dtype(name)
  return getattr(jnp, name)
