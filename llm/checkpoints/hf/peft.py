"""Reads and writes LoRA adapters in PEFT's format (see `peft_folder`).

(https://huggingface.co/docs/peft, the checkpoint format of version 0.21).
"""

from collections.abc import Mapping
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.checkpoints.hf.folder import write_json
from llm.checkpoints.hf.peft_config import CONFIG
from llm.checkpoints.hf.peft_folder import (
  WEIGHTS,
  PeftFolder,
  check_model,
  open_peft,
  short_names,
)
from llm.checkpoints.hf.peft_names import (
  module_name,
  rooted,
  tensor_name,
  whole_modules,
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
from llm.models.lora_config import LoraConfig
from llm.models.lora_places import (
  EMBED,
  HEAD,
  ROWS,
  TABLES,
  Path,
  paths,
)
from llm.models.lora_tree import leaves

__all__ = [
  'CONFIG',
  'WEIGHTS',
  'check_model',
  'read_base',
  'read_peft',
  'save_peft',
]


def read_peft(path: str, config: ModelConfig) -> tuple[LoraConfig, Any]:
  """Reads the adapters of a PEFT folder.

  Args:
    path: the folder.
    config: the model that the adapters are for. Where they untie its tables,
      or have another vocabulary, they are for `open_peft(…).config`.

  Returns:
    (their settings, the adapter tree in float32, with unrolled layers).

  Raises:
    UserError: as `open_peft`, or copies of one table that are not equal.
  """
  folder, lora = open_peft(path, config), {}
  for one, other, turned in folder.twins:
    a, b = (np.asarray(_read(info)) for info in (one, other))
    if not np.array_equal(a, b.T if turned else b):
      raise UserError(
        f'{path}: {one.name} and {other.name} are one table in the model, and '
        'they differ: PEFT does not define which counts: untie the model '
        '(tie_word_embeddings=false), or save the adapters again'
      )
  for place, info in folder.tensors.items():
    lora_lib.insert(lora, place, _read(info))
  return folder.settings, lora


def read_base(folder: PeftFolder) -> dict[Path, jax.Array]:
  """The parameters of the base that a folder brings along, in float32."""
  return {place: _read(info) for place, info in folder.base.items()}


def save_peft(
  path: str,
  config: LoraConfig,
  model_config: ModelConfig,
  lora: Any,
  *,
  base_model: str | None = None,
  base: Mapping[Path, Any] | None = None,
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
    base: parameters of the base to bring along, for they are not those of
      `base_model`: resized tables, say. By their paths in the parameter tree.

  Raises:
    UserError: a model or a dtype that the format cannot express.
  """
  check_model(model_config)
  lora = lora_lib.unstack(lora, model_config)
  adapters = dict(lora_lib.items(lora))
  arrays = _arrays(adapters, dict(leaves(lora)), dict(base or {}), model_config)
  for name, array in arrays.items():
    if array.dtype not in DTYPES.values():
      raise UserError(
        f'{name}: dtype {array.dtype} cannot be saved: use float32, bfloat16 '
        'or float16'
      )
  os.makedirs(path, exist_ok=True)
  write_file(
    os.path.join(path, WEIGHTS),
    {name: (array.shape, array.dtype) for name, array in arrays.items()},
    lambda name: [arrays[name]],
  )
  raw = _raw(config, model_config, adapters, [p for p, _ in leaves(lora)])
  write_json(path, CONFIG, {**raw, 'base_model_name_or_path': base_model})


def _arrays(
  adapters: dict[Path, dict],
  own: dict[Path, Any],
  base: dict[Path, Any],
  config: ModelConfig,
) -> dict[str, np.ndarray]:
  """What PEFT saves, by its names; a tied table under both of its names."""
  arrays = {}
  for place in (p for p in paths(config) if p in adapters):
    for part, array in adapters[place].items():
      arrays[tensor_name(place, part)] = np.asarray(array)
  if config.tie_embeddings and EMBED in adapters:
    for theirs, ours in (('lora_a', 'lora_b'), ('lora_b', 'lora_a')):
      turned = np.asarray(adapters[EMBED][ours]).T
      arrays[tensor_name(HEAD, theirs)] = np.ascontiguousarray(turned)
  wholes = whole_modules(config)
  for module, path in wholes.items():
    if path in own:
      arrays[rooted(module, 'weight')] = np.asarray(own[path])
    if path in base and path not in own:
      adapted = path[:-1] in adapters or (*path[:-1], ROWS) in own
      tail = 'base_layer.weight' if adapted else 'weight'
      arrays[rooted(module, tail)] = np.asarray(base[path])
    if config.tie_embeddings and path in own and path[:-1] == EMBED:
      arrays[rooted('lm_head', 'weight')] = np.asarray(own[path])
  for place in TABLES:
    if (*place, ROWS) in own:
      name = rooted(module_name(place), 'token_adapter.trainable_tokens_delta')
      arrays[name] = np.asarray(own[(*place, ROWS)])
  return arrays


def _raw(
  config: LoraConfig,
  model_config: ModelConfig,
  adapters: dict[Path, dict],
  own: list[Path],
) -> dict[str, Any]:
  """The contents of `adapter_config.json`."""
  ranks = {p: a['lora_a'].shape[0] for p, a in adapters.items()}
  alphas = {p: config.alpha_of(p) for p in adapters}
  wholes = [m for m, p in whole_modules(model_config).items() if p in own]
  tied = model_config.tie_embeddings
  targets = _module_names(list(adapters), model_config)
  if tied and EMBED in adapters:
    targets.append('lm_head')
  if tied and 'model.embed_tokens' in wholes:
    wholes.append('lm_head')
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'inference_mode': True,
    'r': config.rank,
    'lora_alpha': _number(config.alpha),
    'lora_dropout': config.dropout,
    'target_modules': targets,
    'use_dora': config.dora,
    'use_rslora': config.rslora,
    'rank_pattern': {
      re.escape(module_name(p)): r for p, r in ranks.items() if r != config.rank
    },
    'alpha_pattern': {
      re.escape(module_name(p)): _number(alpha)
      for p, alpha in alphas.items()
      if alpha != config.alpha
    },
    'modules_to_save': wholes or None,
    'trainable_token_indices': {name: list(ids) for name, ids in config.tokens}
    or None,
    'ensure_weight_tying': 'lm_head' in (*targets, *wholes) and tied,
    'bias': 'none',
    'fan_in_fan_out': False,
    'init_lora_weights': True,
  }


def _module_names(places: list[Path], config: ModelConfig) -> list[str]:
  """Names for `target_modules`: short ones where they name nothing else."""
  known = paths(config)
  if config.num_experts:  # whose experts have the names of dense layers
    return [module_name(place) for place in known if place in places]
  return [
    module_name(tuple(name.split('/'))) if '/' in name else name
    for name in short_names(places, known)
  ]


def _number(alpha: float) -> float | int:
  return int(alpha) if alpha == int(alpha) else alpha


def _read(info: TensorInfo) -> jax.Array:
  out = np.empty(info.shape, np.float32)
  index = tuple(slice(0, n) for n in info.shape)
  with open(info.file, 'rb', buffering=0) as file:
    read_slice(file, info, 0, info.shape, index, out)
  return jnp.asarray(out)
