"""A folder of LoRA adapters in PEFT's format: what it holds, and for where.

Nothing here needs JAX: a folder that does not fit is refused before any tensor
is read. It has an `adapter_config.json` and an `adapter_model.safetensors`,
whose tensors are named after the checkpoint's modules:

  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight    [r, in]
                                                  .lora_B.weight    [out, r]
                                                  .lora_magnitude_vector  [out]
"""

import dataclasses
import os
import re
from typing import Any, NamedTuple

from llm.checkpoints import torch_files
from llm.checkpoints.hf.folder import listed, read_json
from llm.checkpoints.hf.names import leaves, tensors
from llm.checkpoints.hf.peft_config import (
  CONFIG,
  check_config,
  lora_config,
  module_alpha,
  module_rank,
  targeted,
)
from llm.checkpoints.tensor_files import DTYPES, TensorInfo, read_header
from llm.errors import UserError
from llm.models.config import ModelConfig
from llm.models.lora_config import (
  HEAD,
  LoraConfig,
  paths,
  projection_name,
  shape,
)

WEIGHTS, _OLDER = 'adapter_model.safetensors', 'adapter_model.bin'
_KEY = re.compile(
  r'base_model\.model\.(?P<module>.+)\.'
  r'(?P<part>lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?'
)
# Parts of an adapter: the name there, and the one here.
PARTS = {
  'lora_A': 'lora_a',
  'lora_B': 'lora_b',
  'lora_magnitude_vector': 'magnitude',
}
# What stands before `layers.0` in the models that PEFT was given.
_PREFIXES = ('model.language_model.', 'language_model.model.', 'model.')
# The tensors of each adapter, by its path in the model and its part.
Tensors = dict[tuple[str, ...], dict[str, TensorInfo]]
# Of the token table: A [r, V] and B [D, r], beside `.weight`s of other modules.
_TABLE_KEY = re.compile(
  r'base_model\.model\.(?P<module>.+)\.(?P<part>lora_embedding_[AB])'
)
_SAVED_KEY = re.compile(
  r'base_model\.model\.(?P<module>.+?)(?:\.modules_to_save)?'
  r'(?:\.default)?\.(?P<kind>weight|bias)'
)
TABLE = 'model.embed_tokens'


class Opened(NamedTuple):
  """What a folder of adapters holds.

  Attributes:
    settings: of the adapters. `targets` are exact paths of the adapter tree
      where the layers differ, names of projections where all have the same.
    held: the tensors of the adapters.
    saved: weights that replace those of the base, under their names there
      (PEFT's `modules_to_save`).
    table: the adapter of the token table, {'A': [r, V], 'B': [D, r]}; or {}.
    table_scale: the factor on its product.
  """

  settings: LoraConfig
  held: Tensors
  saved: dict[str, TensorInfo]
  table: dict[str, TensorInfo]
  table_scale: float

  @property
  def has_only_projections(self) -> bool:
    return not (self.saved or self.table)


def open_peft(path: str, config: ModelConfig) -> Opened:
  """What a PEFT folder holds, without reading it.

  Args:
    path: the folder.
    config: the model that the adapters are for.

  Raises:
    UserError: a missing or broken file, a setting that would change the result
      and is not supported, a tensor without a place in the model or of another
      shape, a projection that is targeted and has no tensors.
  """
  check_model(config)
  if not os.path.isdir(path):
    raise UserError(f'{path}: no such folder: give a folder saved by PEFT')
  raw = read_json(os.path.join(path, CONFIG))
  check_config(os.path.join(path, CONFIG), raw)
  infos, problems = _read_weights(path)
  if problems:
    raise UserError(listed(path, problems))
  table, saved = _take_table(infos), _take_saved(infos, raw)
  held, problems = _places(infos, config)
  problems = problems or _mismatches(held, raw, config)
  problems += _table_problems(table, raw, config)
  problems += _saved_problems(saved, raw, config)
  if problems:
    raise UserError(listed(path, problems))
  order = [place for place in paths(config) if place in held]
  names = {'/'.join(place): module_name(place) for place in order}
  settings = lora_config(raw, target_names(list(held), config), names)
  rank = module_rank(raw, TABLE)
  scale = dataclasses.replace(
    settings, alpha=module_alpha(raw, TABLE), alpha_pattern=()
  ).scale((), rank)
  return Opened(settings, held, saved, table, scale)


def _read_weights(path: str) -> tuple[dict[str, TensorInfo], list[str]]:
  """The tensors of the folder, and what is wrong with its file."""
  file, older = os.path.join(path, WEIGHTS), os.path.join(path, _OLDER)
  if os.path.exists(file):
    return read_header(file)
  if os.path.exists(older):
    return torch_files.read_header(older)
  raise UserError(
    f'{file}: no such file: save the adapters with PEFT as safetensors'
  )


def _take_table(infos: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
  """Removes the adapter of the token table and returns it."""
  found = {}
  for name in list(infos):
    match = _TABLE_KEY.fullmatch(name.replace('.default', ''))
    if match and _plain(match['module']) == TABLE:
      found[match['part'][-1]] = infos.pop(name)
  return found


def _take_saved(
  infos: dict[str, TensorInfo], raw: dict[str, Any]
) -> dict[str, TensorInfo]:
  """Removes whole weights and returns them, by their names in the base."""
  found = {}
  for name in list(infos):
    match = _SAVED_KEY.fullmatch(name)
    if match is None or 'lora_' in name or 'lora_magnitude' in name:
      continue
    module = _plain(match['module'].removesuffix('.base_layer'))
    found[f'{module}.{match["kind"]}'] = infos.pop(name)
  return found


def _table_problems(table, raw, config: ModelConfig) -> list[str]:
  """What is wrong with the adapter of the token table."""
  wanted = targeted(raw, TABLE, bool(table))
  targets = raw.get('target_modules')
  named = isinstance(targets, list) and 'embed_tokens' in targets
  if not table:
    problem = (
      f'{TABLE}: {WEIGHTS} has no adapter of it, and target_modules names it:'
      ' save the adapters again'
    )
    return [problem] * (named and wanted)
  if config.tie_embeddings:
    return [
      f'{TABLE}: the table is the output weight, too, and PEFT adapts it in'
      ' one of the two places only: merge the adapters with PEFT'
    ]
  if raw.get('use_dora'):
    return [f'{TABLE}: DoRA of the token table is not supported: merge it']
  rank = module_rank(raw, TABLE)
  shapes = {'A': (rank, config.vocab_size), 'B': (config.embed_dim, rank)}
  return [
    f'{TABLE}.lora_embedding_{part}: '
    + (f'{list(table[part].shape)}' if part in table else 'missing')
    + f" in {WEIGHTS}, and the model asks for {list(want)}: use the adapters' "
    'own base model'
    for part, want in shapes.items()
    if part not in table or table[part].shape != want
  ]


def _saved_problems(saved, raw, config: ModelConfig) -> list[str]:
  """What is wrong with weights that replace those of the base."""
  known = tensors(leaves(config))
  names = raw.get('modules_to_save') or []
  problems = [
    f'modules_to_save names {name!r}, and {WEIGHTS} has no weight of it: save '
    'the adapters again'
    for name in names
    if not any(name in saved_name.split('.') for saved_name in saved)
  ]
  for name, info in saved.items():
    tied = config.tie_embeddings and name in (
      f'{TABLE}.weight', 'lm_head.weight'
    )  # fmt: skip
    if tied and not raw.get('ensure_weight_tying'):
      problems.append(
        f'{name}: the base has one table for input and output, and PEFT'
        ' trained a copy of one of the two: merge the adapters with PEFT'
      )
    elif tied and name == 'lm_head.weight':
      continue  # the same as the table
    elif name not in known:
      problems.append(f'{name}: {_why_not(name)}')
    elif info.shape != known[name][0][1].shape:
      problems.append(
        f'{name}: {list(info.shape)} in {WEIGHTS}, and the base has '
        f'{list(known[name][0][1].shape)}: give a base whose vocabulary was '
        'resized as that of the adapters was, or merge them with PEFT'
      )
  return problems


def check_model(config: ModelConfig) -> None:
  """Refuses a model whose adapters PEFT's format cannot express."""
  if config.model_type == 'phi3':
    raise UserError(
      "model_type='phi3': its checkpoints fuse q, k and v (qkv_proj) and gate "
      'and up (gate_up_proj), and adapters here are of one projection each: '
      'merge them, and save the model as a whole'
    )


def module_name(place: tuple[str, ...]) -> str:
  """The name of a projection's module in `transformers`."""
  if place == HEAD:
    return 'lm_head'
  layer, module, _ = place
  module = {'attn': 'self_attn', 'mlp': 'mlp'}[module]
  number = layer.removeprefix('layers_')
  return f'model.layers.{number}.{module}.{projection_name(place)}'


def _places(
  infos: dict[str, TensorInfo], config: ModelConfig
) -> tuple[dict[tuple[str, ...], dict[str, TensorInfo]], list[str]]:
  """Tensors by adapter and part, and those that have no place."""
  modules = {module_name(place): place for place in paths(config)}
  held, problems = {}, []
  for name, info in infos.items():
    match = _KEY.fullmatch(name)
    place = None if match is None else modules.get(_plain(match['module']))
    if place is None:
      problems.append(f'{name}: {_why_not(name)}')
      continue
    held.setdefault(place, {})[PARTS[match['part']]] = info
  return held, problems


def _plain(module: str) -> str:
  """A module's name as it is in a model of text alone."""
  for prefix in _PREFIXES:
    if module.startswith(prefix):
      return 'model.' + module.removeprefix(prefix)
  return 'lm_head' if module == 'language_model.lm_head' else module


def _why_not(name: str) -> str:
  if 'lora_' in name:
    return (
      'the model has no projection of this name that can be adapted: use the '
      "adapters' own base model"
    )
  return "the base has no weight of this name: use the adapters' own base"


def _mismatches(
  held: dict[tuple[str, ...], dict[str, TensorInfo]],
  raw: dict[str, Any],
  config: ModelConfig,
) -> list[str]:
  """Parts that are missing, of a wrong shape, or that PEFT would not use."""
  problems = []
  for place in paths(config):
    module, parts = module_name(place), held.get(place)
    wanted = targeted(raw, module, parts is not None)
    if parts is None:
      if wanted:
        problems.append(
          f'{module}: {CONFIG} has it in target_modules, and {WEIGHTS} has no '
          'adapter of it: save the adapters again'
        )
      continue
    if not wanted:
      problems.append(
        f'{module}: {WEIGHTS} has an adapter of it, and target_modules of '
        f'{CONFIG} leaves it out: fix target_modules'
      )
      continue
    rank = module_rank(raw, module)
    rows, columns = shape(config, place)
    shapes = {'lora_a': (rank, columns), 'lora_b': (rows, rank)}
    if raw.get('use_dora'):
      shapes['magnitude'] = (rows,)
    for part in sorted(shapes.keys() | parts.keys()):
      problems += _mismatch(module, part, parts.get(part), shapes.get(part))
  return problems


def _mismatch(
  module: str,
  part: str,
  info: TensorInfo | None,
  expected: tuple[int, ...] | None,
) -> list[str]:
  theirs = next(k for k, v in PARTS.items() if v == part)
  name = f'{module}.{theirs}'
  if info is None:
    return [f'{name}: missing from {WEIGHTS}: save the adapters again']
  if expected is None:
    return [f'{name}: {CONFIG} has use_dora=false: set it to true']
  if info.shape != expected:
    return [
      f'{name}: {list(info.shape)} in {WEIGHTS}, and the model and the rank '
      f"ask for {list(expected)}: use the adapters' own base model and config"
    ]
  if info.dtype not in DTYPES:
    return [
      f'{name}: {info.dtype} is not supported: convert it to one of '
      f'{", ".join(DTYPES)}'
    ]
  return []


def target_names(
  places: list[tuple[str, ...]], config: ModelConfig
) -> tuple[str, ...]:
  """Names of projections that every layer has; paths of all others."""
  out, known, places = [], paths(config), set(places)
  for place in known:
    name = projection_name(place)
    alike = [p for p in known if projection_name(p) == name]
    if places.issuperset(alike):
      out.append(name)
    elif place in places:
      out.append('/'.join(place))
  return tuple(dict.fromkeys(out))
