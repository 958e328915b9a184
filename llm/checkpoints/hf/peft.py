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
  settings, held = open_peft(path, config)
  lora = {}
  with open(os.path.join(path, WEIGHTS), 'rb', buffering=0) as opened:
    for place in (p for p in paths(config) if p in held):
      parts = held[place].items()
      adapter = {k: _read(opened, info) for k, info in parts}
      lora_lib.insert(lora, place, adapter)
  return settings, lora


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
  alpha = config.alpha
  raw = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base_model,
    'inference_mode': True,
    'r': config.rank,
    'lora_alpha': int(alpha) if alpha == int(alpha) else alpha,
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
    'alpha_pattern': {},
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


def _read(file: Any, info: TensorInfo) -> jax.Array:
  out = np.empty(info.shape, np.float32)
  index = tuple(slice(0, n) for n in info.shape)
  read_slice(file, info, 0, info.shape, index, out)
  return jnp.asarray(out)
