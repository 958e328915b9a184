"""Whether the tensors of a PEFT folder are those that its settings ask for."""

import dataclasses
from typing import Any

from llm.checkpoints.hf.peft_config import (
  CONFIG,
  copied,
  module_rank,
  targeted,
  token_rows,
)
from llm.checkpoints.hf.peft_names import (
  module_name,
  tensor_name,
  whole_modules,
  written_name,
)
from llm.checkpoints.tensor_files import DTYPES, TensorInfo
from llm.models.config import ModelConfig
from llm.models.lora_config import module_label
from llm.models.lora_places import (
  EMBED,
  HEAD,
  PARTS,
  ROWS,
  TABLES,
  Path,
  paths,
  shape,
  whole_shape,
)

WEIGHTS = 'adapter_model.safetensors'


@dataclasses.dataclass(frozen=True)
class Sorted:
  """The tensors of a file by what they are: leaves, and parameters of the base.

  Paths are those of a model with two tables. `prefix` stands before the names
  of layers in the model that the file was made for.
  """

  tensors: dict[Path, TensorInfo]
  base: dict[Path, TensorInfo]
  prefix: str

  def written(self, place: Path) -> str:
    """The name of a module in the model that the file was made for."""
    return written_name(module_name(place), self.prefix)


def mismatches(
  found: Sorted, raw: dict[str, Any], config: ModelConfig
) -> list[str]:
  """Parts that are missing, of a wrong shape, or that PEFT would not use."""
  problems = []
  for place in paths(config):
    parts = {
      part: found.tensors[(*place, part)]
      for part in PARTS
      if (*place, part) in found.tensors
    }
    problems += _adapter_problems(place, parts, found, raw, config)
  tables = [found.written(place) for place in TABLES]
  ids = raw.get('trainable_token_indices')
  for name in ids if isinstance(ids, dict) else ():
    if not any(table.endswith(name) for table in tables):
      problems.append(
        f'trainable_token_indices: {name!r} is no table of the model: it has '
        'embed_tokens and lm_head'
      )
  wanted, names = {}, {}
  for module, path in whole_modules(config).items():
    names[path] = f'{module}.weight'
    aliases = _aliases(path[:-1], module, found, config)
    if any(copied(raw, name) for name in aliases):
      wanted[path] = whole_shape(config, path)
  for place in (place for place in TABLES if place in paths(config)):
    rows = (*place, ROWS)
    names[rows] = f'{module_name(place)}.token_adapter.trainable_tokens_delta'
    ids = token_rows(raw, found.written(place))
    if ids:
      wanted[rows] = (len(ids), config.embed_dim)
    problems += _row_problems(place, ids, found, config)
  present = {p for p in found.tensors if p[-1] not in PARTS}
  for path, name in names.items():
    if path in wanted or path in present:
      problems += _mismatch(name, found.tensors.get(path), wanted.get(path))
    if path in found.base:
      problems += _mismatch(name, found.base[path], whole_shape(config, path))
  return problems


def _row_problems(
  place: Path, ids: tuple[int, ...], found: Sorted, config: ModelConfig
) -> list[str]:
  """Rows that are not there, or of a table that is trained otherwise."""
  if not ids:
    return []
  name, out = module_label(place), []
  if max(ids) >= config.vocab_size:
    out.append(
      f'trainable_token_indices: {name} has no row {max(ids)} in a model of '
      f"{config.vocab_size} tokens: use the adapters' own base model"
    )
  if any(path[0] == place[0] and path[-1] != ROWS for path in found.tensors):
    out.append(
      f'trainable_token_indices: {name} is in target_modules or '
      'modules_to_save as well, which PEFT does not define: use one of them'
    )
  return out


def _aliases(
  place: Path, module: str, found: Sorted, config: ModelConfig
) -> list[str]:
  """The names under which settings can mean a module.

  One table is both embed_tokens and lm_head.
  """
  out = [written_name(module, found.prefix)]
  if place == EMBED and config.tie_embeddings:
    out.append(found.written(HEAD))
  return out


def _adapter_problems(
  place: Path,
  parts: dict[str, TensorInfo],
  found: Sorted,
  raw: dict[str, Any],
  config: ModelConfig,
) -> list[str]:
  module = module_name(place)
  names = _aliases(place, module, found, config)
  if not any(targeted(raw, name, bool(parts)) for name in names):
    if not parts:
      return []
    return [
      f'{module}: {WEIGHTS} has an adapter of it, and target_modules of '
      f'{CONFIG} leaves it out: fix target_modules'
    ]
  if not parts:
    return [
      f'{module}: {CONFIG} has it in target_modules, and {WEIGHTS} has no '
      'adapter of it: save the adapters again'
    ]
  rank = module_rank(raw, names[0])
  rows, columns = shape(config, place)
  shapes = {'lora_a': (rank, columns), 'lora_b': (rows, rank)}
  if raw.get('use_dora'):
    shapes['magnitude'] = (rows,)
  problems = []
  for part in sorted(shapes.keys() | parts.keys()):
    name = tensor_name(place, part).removeprefix('base_model.model.')
    if part not in shapes:
      problems.append(f'{name}: {CONFIG} has use_dora=false: set it to true')
    else:
      problems += _mismatch(name, parts.get(part), shapes[part])
  return problems


def _mismatch(
  name: str, info: TensorInfo | None, expected: tuple[int, ...] | None
) -> list[str]:
  if info is None:
    return [f'{name}: missing from {WEIGHTS}: save the adapters again']
  if expected is None:
    return [
      f'{info.name}: no setting of {CONFIG} asks for it: save the adapters '
      'again'
    ]
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
