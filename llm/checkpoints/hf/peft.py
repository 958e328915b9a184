"""Reads and writes LoRA adapters in PEFT's format (see `peft_folder`).

(https://huggingface.co/docs/peft, the checkpoint format of version 0.21).
"""

import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.checkpoints.hf.folder import write_json
from llm.checkpoints.hf.peft_config import CONFIG
from llm.checkpoints.hf.peft_folder import (
  PARTS,
  TABLE,
  WEIGHTS,
  check_model,
  module_name,
  open_peft,
  target_names,
)
from llm.checkpoints.tensor_files import (
  DTYPES,
  TensorInfo,
  read_slice,
  write_file,
)
from llm.errors import UserError
from llm.models import lora as lora_lib
from llm.models.config import ModelConfig
from llm.models.lora_config import LoraConfig, paths

__all__ = ['CONFIG', 'WEIGHTS', 'check_model', 'read_peft', 'save_peft']


def read_peft(path: str, config: ModelConfig) -> tuple[LoraConfig, Any]:
  """Reads the adapters of a PEFT folder.

  Args:
    path: the folder.
    config: the model that the adapters are for.

  Returns:
    (their settings, the adapter tree in float32, with unrolled layers).
    `targets` are exact paths of the tree where the layers differ, names of
    projections where all have the same ones.

  Raises:
    UserError: a missing or broken file, a setting that would change the result
      and is not supported, a tensor without a place in the model or of another
      shape, a projection that is targeted and has no tensors.
  """
  found = open_peft(path, config)
  if not found.has_only_projections:
    beside = [*found.saved, *(f'{TABLE} ({part})' for part in found.table)]
    raise UserError(
      f'{path}: has weights beside its adapters ({", ".join(beside[:3])}),'
      ' which only generation reads (lora.path): save it with'
      ' save_embedding_layers=False and without modules_to_save, or merge it'
      ' with PEFT'
    )
  return read_projections(path, config)


def read_projections(path: str, config: ModelConfig) -> tuple[LoraConfig, Any]:
  """The adapters of projections alone, whatever the folder holds besides.

  Args, what is returned and errors are those of `read_peft`.
  """
  found = open_peft(path, config)
  settings, held = found.settings, found.held
  lora = {}
  for place in (p for p in paths(config) if p in held):
    adapter = {k: _read(info) for k, info in held[place].items()}
    lora_lib.insert(lora, place, adapter)
  return settings, lora


def read_table_adapter(path: str, config: ModelConfig) -> jax.Array | None:
  """float32[V, D], what the adapter of the token table adds to it; or None.

  s (B A)^T, with A `lora_embedding_A` [r, V] and B `lora_embedding_B` [D, r].

  Raises:
    UserError: as `read_peft`.
  """
  found = open_peft(path, config)
  if not found.table:
    return None
  a, b = (_read(found.table[part]) for part in 'AB')
  product = jnp.matmul(b, a, precision=jax.lax.Precision.HIGHEST)
  return found.table_scale * product.T


def save_peft(
  path: str,
  config: LoraConfig,
  model_config: ModelConfig,
  lora: Any,
  *,
  base_model: str | None = None,
) -> None:
  """Writes a folder that `peft.PeftModel.from_pretrained` and `read_peft` read.

  Each file is written under another name and renamed when it is whole, the
  config last.

  Args:
    path: the folder, made if it is not there.
    config: settings of the adapters.
    model_config: the model that they are for.
    lora: the adapters, with layers unrolled or stacked; in float32, bfloat16 or
      float16, and so written.
    base_model: path or name of the base, for the reader's information.

  Raises:
    UserError: a model or a dtype that the format cannot express.
  """
  check_model(model_config)
  adapters = dict(lora_lib.items(lora_lib.unstack(lora, model_config)))
  arrays = {}
  for place in (p for p in paths(model_config) if p in adapters):
    for theirs, ours in PARTS.items():
      if ours in adapters[place]:
        tail = '' if ours == 'magnitude' else '.weight'
        name = f'base_model.model.{module_name(place)}.{theirs}{tail}'
        arrays[name] = np.asarray(adapters[place][ours])
  for name, array in arrays.items():
    if array.dtype not in DTYPES.values():
      raise UserError(
        f'{name}: dtype {array.dtype} cannot be saved: use float32, bfloat16 '
        'or float16'
      )
  ranks = {place: a['lora_a'].shape[0] for place, a in adapters.items()}
  targets = target_names(list(adapters), model_config)
  raw = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base_model,
    'inference_mode': True,
    'r': config.rank,
    'lora_alpha': _number(config.alpha),
    'lora_dropout': config.dropout,
    'target_modules': [
      module_name(tuple(target.split('/'))) if '/' in target else target
      for target in targets
    ],
    'use_dora': config.dora,
    'use_rslora': config.rslora,
    'rank_pattern': {
      re.escape(module_name(place)): rank
      for place, rank in ranks.items()
      if rank != config.rank
    },
    'alpha_pattern': {
      re.escape(module_name(place)): _number(alpha)
      for place in adapters
      if (alpha := config.alpha_of(place)) != config.alpha
    },
    'bias': 'none',
    'fan_in_fan_out': False,
    'init_lora_weights': True,
    'modules_to_save': None,
  }
  os.makedirs(path, exist_ok=True)
  write_file(
    os.path.join(path, WEIGHTS),
    {name: (array.shape, array.dtype) for name, array in arrays.items()},
    lambda name: [arrays[name]],
  )
  write_json(path, CONFIG, raw)


def _number(alpha: float) -> int | float:
  return int(alpha) if alpha == int(alpha) else alpha


def _read(info: TensorInfo) -> jax.Array:
  out = np.empty(info.shape, np.float32)
  index = tuple(slice(0, n) for n in info.shape)
  with open(info.file, 'rb', buffering=0) as file:
    read_slice(file, info, 0, info.shape, index, out)
  return jnp.asarray(out)
