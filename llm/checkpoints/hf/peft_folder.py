"""A folder of LoRA adapters in PEFT's format: what it holds, and for where.

Nothing here needs JAX: a folder that does not fit is refused before any tensor
is read. It has an `adapter_config.json` (see `peft_config`) and an
`adapter_model.safetensors` (see `peft_names`).

A model with tied embeddings has one table. PEFT keeps it one if the adapters
have `ensure_weight_tying`, or train rows of it. Otherwise what adapts or copies
one side leaves the other as it was, so that the model with its adapters has two
tables: `PeftFolder.config` is then untied.
"""

import dataclasses
import os
from typing import Any

from llm.checkpoints import torch_files
from llm.checkpoints.hf.folder import listed, read_json
from llm.checkpoints.hf.peft_checks import WEIGHTS, Sorted, mismatches
from llm.checkpoints.hf.peft_config import (
  CONFIG,
  check_config,
  copied,
  module_alpha,
  module_rank,
  targeted,
  token_rows,
)
from llm.checkpoints.hf.peft_names import (
  BASE,
  BIAS,
  COPY,
  LORA_BIAS,
  ORIGINAL,
  WHOLE,
  Key,
  check_one_adapter,
  modules,
  parse,
  prefix_of,
  whole_modules,
)
from llm.checkpoints.tensor_files import TensorInfo, read_header
from llm.errors import UserError
from llm.models.config import ModelConfig
from llm.models.lora_config import LoraConfig, module_label
from llm.models.lora_places import (
  EMBED,
  HEAD,
  PARTS,
  ROWS,
  TABLES,
  Path,
  paths,
  whole_paths,
)

PICKLED = 'adapter_model.bin'
_MERGE = 'merge it with PEFT, and load the merged model'


@dataclasses.dataclass(frozen=True)
class PeftFolder:
  """What a folder holds, without its tensors' data.

  Attributes:
    settings: of the adapters. `targets` and patterns are names of projections
      where all layers are alike, exact paths of the adapter tree elsewhere.
    config: the model with them: untied, or of another vocabulary, where they
      make it so.
    tensors: the leaves of the adapter tree.
    base: parameters of the base that the folder brings along, which stand in
      place of those of the model.
    twins: (tensor, tensor, turned): pairs that must be equal, turned where one
      is the other's transpose, for they are one table in the model.
  """

  settings: LoraConfig
  config: ModelConfig
  tensors: dict[Path, TensorInfo]
  base: dict[Path, TensorInfo]
  twins: tuple[tuple[TensorInfo, TensorInfo, bool], ...]


def open_peft(path: str, config: ModelConfig) -> PeftFolder:
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
  file = os.path.join(path, CONFIG)
  raw = read_json(file)
  check_config(file, raw)
  _check_biases(file, raw, config)
  infos, problems = _read_weights(path)
  _raise(path, problems)
  found, problems = _sort(path, infos, raw, config)
  _raise(path, problems)
  config, found, twins = _tables(file, found, raw, config)
  _raise(path, mismatches(found, raw, config))
  settings = _settings(path, found, raw, config)
  return PeftFolder(settings, config, found.tensors, found.base, twins)


def check_model(config: ModelConfig) -> None:
  """Refuses a model whose adapters PEFT's format cannot express."""
  if config.model_type == 'phi3':
    raise UserError(
      "model_type='phi3': its checkpoints fuse q, k and v (qkv_proj) and gate "
      'and up (gate_up_proj), and adapters here are of one projection each: '
      'merge them, and save the model as a whole'
    )


def _raise(path: str, problems: list[str]) -> None:
  if problems:
    raise UserError(listed(path, problems))


def _read_weights(path: str) -> tuple[dict[str, TensorInfo], list[str]]:
  """The tensors of the folder, and what is wrong with its file."""
  file, pickled = (os.path.join(path, name) for name in (WEIGHTS, PICKLED))
  if os.path.exists(file):
    return read_header(file)
  if os.path.exists(pickled):
    return torch_files.read_header(pickled)
  raise UserError(
    f'{file}: no such file: save the adapters with PEFT as safetensors'
  )


def _check_biases(file: str, raw: dict[str, Any], config: ModelConfig) -> None:
  """Refuses trained biases; a model without any has nothing to train."""
  biases = config.qkv_bias or config.attn_out_bias or config.mlp_bias
  if raw.get('bias') not in (None, 'none') and biases:
    raise UserError(
      f'{file}: bias={raw["bias"]!r}: trained biases of this model cannot be '
      f'read: {_MERGE}'
    )


def _sort(
  path: str, infos: dict[str, TensorInfo], raw: dict[str, Any], config: Any
) -> tuple[Sorted, list[str]]:
  """The tensors by what they are, and those that have no place."""
  two = dataclasses.replace(config, tie_embeddings=False)
  places, wholes = modules(two), whole_modules(two)
  keys = {name: parse(name) for name in infos}
  known = [key for key in keys.values() if key is not None]
  check_one_adapter(path, known)
  found, problems = Sorted({}, {}, prefix_of(known)), []
  for name, key in keys.items():
    own = key is not None and _is_copied(key, found, raw, config)
    if own and key.kind == ORIGINAL:
      continue  # what the copy replaces
    tree, place = found.tensors, None
    if key is not None and key.module in places and key.kind in PARTS:
      place = (*places[key.module], key.kind)
    elif key is not None and key.kind == ROWS:
      table = places.get(key.module)
      place = (*table, ROWS) if table in TABLES else None
    elif key is not None and key.kind in (COPY, WHOLE, BASE):
      place = wholes.get(key.module)
      if key.kind == BASE or not own:
        tree = found.base
      if key.kind == COPY and tree is found.base:
        place = None
    if place is None:
      problems.append(f'{name}: {_why_not(key, places)}')
    elif place in tree:
      problems.append(f'{name}: is there twice: save the adapters again')
    else:
      tree[place] = infos[name]
  return found, problems


def _is_copied(
  key: Key, found: Sorted, raw: dict[str, Any], config: ModelConfig
) -> bool:
  """Whether PEFT trains a whole copy of the module of a tensor."""
  names = [key.written]
  if config.tie_embeddings and raw.get('ensure_weight_tying'):
    tables = [found.written(place) for place in TABLES]
    names += tables if key.written in tables else []
  return any(copied(raw, name) for name in names)


def _why_not(key: Key | None, places: dict[str, Path]) -> str:
  """Why a tensor has no place, and what helps."""
  if key is not None and key.kind in (BIAS, LORA_BIAS):
    return f'a trained bias cannot be read: {_MERGE}'
  if key is not None and key.kind in (*PARTS, ROWS):
    return (
      'the model has no projection of this name that can be adapted: use the '
      "adapters' own base model"
    )
  if key is not None and key.module in ('score', 'classifier', 'v_head'):
    return 'belongs to a model that scores texts, and this one writes them'
  if key is not None and key.kind == COPY:
    return f'modules_to_save of {CONFIG} does not name it: add it there'
  if key is not None and key.module in places:
    return f'a whole copy of a projection cannot be read: {_MERGE}'
  return (
    'not an adapter, and the base may differ by it: save with '
    'save_embedding_layers=False and without modules_to_save, or merge with '
    'PEFT'
  )


def _tables(
  file: str, found: Sorted, raw: dict[str, Any], config: ModelConfig
) -> tuple[ModelConfig, Sorted, tuple]:
  """The model with its adapters, and what they are in it; see the module."""
  tensors, base, twins = dict(found.tensors), dict(found.base), []
  embedding, head = (*EMBED, TABLES[EMBED]), (*HEAD, TABLES[HEAD])
  if config.tie_embeddings:
    if embedding in base and head in base:
      twins.append((base[embedding], base[head], False))
    if head in base:  # one parameter in PEFT, under either name
      base.setdefault(embedding, base[head])
      del base[head]
    if raw.get('ensure_weight_tying'):
      adapted = {(*EMBED, 'lora_a'), (*HEAD, 'lora_a')} & tensors.keys()
      if raw.get('use_dora') and adapted:
        raise UserError(
          f'{file}: use_dora and ensure_weight_tying: one magnitude does not '
          'fit both uses of a table: train it without use_dora'
        )
      for theirs, ours in (
        ((*HEAD, 'lora_a'), (*EMBED, 'lora_b')),
        ((*HEAD, 'lora_b'), (*EMBED, 'lora_a')),
        (head, embedding),
      ):
        info = tensors.pop(theirs, None)
        if info is not None and ours in tensors:
          twins.append((tensors[ours], info, theirs != head))
    elif _has_sides(raw, found):
      own = {path[1] for path in tensors if path[:1] == EMBED}
      if own == {ROWS} and (*HEAD, ROWS) not in tensors:
        raise UserError(
          f'{file}: trainable_token_indices beside an lm_head of its own, '
          'where both are one table: PEFT does not define it: use '
          'ensure_weight_tying, or train one of them'
        )
      config = dataclasses.replace(config, tie_embeddings=False)
  resized = _resized({**base, **tensors}, config)
  if resized != config:  # the base has no table of this size to lie beneath
    base = {
      **{p: tensors[p] for p in (embedding, head) if p in tensors},
      **base,
    }
  found = dataclasses.replace(found, tensors=tensors, base=base)
  return resized, found, tuple(twins)


def _has_sides(raw: dict[str, Any], found: Sorted) -> bool:
  """Whether one use of a tied table is changed by itself."""
  rows = {}
  for place in (EMBED, HEAD):
    name = found.written(place)
    rows[place] = token_rows(raw, name)
    own = {path[1] for path in found.tensors if path[:1] == place} - {ROWS}
    if own or targeted(raw, name, False) or copied(raw, name):
      return True
  return rows[HEAD] not in ((), rows[EMBED])


def _resized(
  tables: dict[Path, TensorInfo], config: ModelConfig
) -> ModelConfig:
  """The model with the vocabulary of the tables, if the folder has them all."""
  wanted = [path for path in whole_paths(config) if path[:-1] in TABLES]
  shapes = {tables[path].shape for path in wanted if path in tables}
  whole = all(path in tables for path in wanted)
  if not whole or len(shapes) != 1:
    return config
  rows, *width = shapes.pop() or (0,)
  if rows < 1 or width != [config.embed_dim]:
    return config
  return dataclasses.replace(config, vocab_size=rows)


def _settings(
  path: str, found: Sorted, raw: dict[str, Any], config: ModelConfig
) -> LoraConfig:
  """The settings here; what the file does not say is PEFT's default."""
  places = [p for p in paths(config) if (*p, 'lora_a') in found.tensors]
  if not places:
    raise UserError(f'{path}: holds no adapters: give a folder saved by PEFT')
  names = {place: found.written(place) for place in places}
  rank, alpha = raw.get('r', 8), float(raw.get('lora_alpha', 8))
  ranks = {p: module_rank(raw, name) for p, name in names.items()}
  alphas = {p: module_alpha(raw, name) for p, name in names.items()}
  wholes = [p[:-1] for p in whole_paths(config) if p in found.tensors]
  known = [p[:-1] for p in whole_paths(config)]
  rows = [place for place in TABLES if (*place, ROWS) in found.tensors]
  return LoraConfig(
    rank=rank,
    alpha=alpha,
    targets=short_names(places, paths(config)),
    dora=bool(raw.get('use_dora')),
    rslora=bool(raw.get('use_rslora')),
    dropout=float(raw.get('lora_dropout') or 0.0),
    rank_pattern=_pattern(ranks, rank, paths(config)),
    alpha_pattern=_pattern(alphas, alpha, paths(config)),
    modules_to_save=short_names(wholes, known),
    tokens=tuple(
      (module_label(p), token_rows(raw, found.written(p))) for p in rows
    ),
  )


def _pattern(values: dict[Path, Any], default: Any, known: list[Path]) -> Any:
  """A pattern that gives these values where they are not the default."""
  out = []
  for value in dict.fromkeys(values.values()):
    if value != default:
      places = [place for place, own in values.items() if own == value]
      out += [(name, value) for name in short_names(places, known)]
  return tuple(out)


def short_names(places: list[Path], known: list[Path]) -> tuple[str, ...]:
  """Labels that name nothing but these places; paths of all others."""
  out = []
  for place in known:
    label = module_label(place)
    alike = [p for p in known if module_label(p) == label]
    if set(places).issuperset(alike):
      out.append(label)
    elif place in places:
      out.append('/'.join(place))
  return tuple(dict.fromkeys(out))
