"""Writing parameters as a Hugging Face model folder, tensor by tensor."""

from collections.abc import Iterator
import math
import os
from typing import Any

import jax
import numpy as np

from llm.checkpoints.hf.config import to_hf
from llm.checkpoints.hf.folder import (
  INDEX,
  SINGLE,
  listed,
  weight_files,
  write_json,
)
from llm.checkpoints.hf.names import Leaf, Path, Piece, leaves, tensors
from llm.checkpoints.opened import Progress
from llm.checkpoints.tensor_files import DTYPES, cast_into, write_file
from llm.errors import UserError
from llm.models.config import ModelConfig

_BLOCK_BYTES = 4 << 20


def save_hf(
  path: str,
  config: ModelConfig,
  params: Any,
  *,
  tokenizer: Any = None,
  reward_head: bool = False,
  dtype: Any = None,
  max_shard_bytes: int = 5_000_000_000,
  progress: Progress | None = None,
) -> None:
  """Writes a folder that `transformers` and `load_params` read.

  Each file is written under another name and renamed when it is whole, weights
  first, `config.json` last; weight files of an earlier save are then removed.

  Args:
    path: the folder, made if it is not there.
    config: the model, of a family that `to_hf` can express.
    params: the parameter tree, with layers unrolled or stacked.
    tokenizer: something with `save(folder)`, or None.
    reward_head: params have a `reward_head` and no `lm_head`: the folder is a
      `…ForSequenceClassification` with one label.
    dtype: of the written tensors. None: as they are.
    max_shard_bytes: a new file is begun before one would grow past it.
    progress: called after each tensor.

  Raises:
    UserError: the config cannot be exported, or does not fit the parameters.
  """
  raw = reward_config(config) if reward_head else to_hf(config)
  table = leaves(config, reward_head=reward_head)
  _check_params(table, params)
  parts = tensors(table)
  dtypes = {
    name: np.dtype(dtype or _find(params, held[0][0].path)[0].dtype)
    for name, held in parts.items()
  }
  for name, found in dtypes.items():
    if found not in DTYPES.values():
      raise UserError(
        f'{name}: dtype {found} cannot be saved: use float32, bfloat16 or '
        'float16'
      )
  os.makedirs(path, exist_ok=True)
  written = _write_shards(
    path, params, parts, dtypes, max_shard_bytes, progress
  )
  for stale in weight_files(path):
    if os.path.basename(stale) not in written:
      os.remove(stale)
  if tokenizer is not None:
    tokenizer.save(path)
  ids = ('bos_token_id', 'eos_token_id', 'pad_token_id')
  generation = {key: raw[key] for key in ids if raw[key] is not None}
  write_json(path, 'generation_config.json', generation)
  embedding = dtypes[next(iter(parts))]
  write_json(path, 'config.json', {**raw, 'torch_dtype': str(embedding)})


def reward_config(config: ModelConfig) -> dict[str, Any]:
  """The `config.json` of a model of one score for each text.

  `transformers` takes the score at the last token that is not padding. Where
  EOS is the padding token, too, that would be the token before the end. The
  config then names no padding token, and `transformers` takes one text at a
  time.

  Raises:
    UserError: as `to_hf`.
  """
  raw = to_hf(config)
  (name,) = raw['architectures']
  name = {'Gemma3ForCausalLM': 'Gemma3TextForCausalLM'}.get(name, name)
  if raw['pad_token_id'] in config.eos_ids:
    raw['pad_token_id'] = None
  return {
    **raw,
    'architectures': [name.replace('CausalLM', 'SequenceClassification')],
    'id2label': {'0': 'LABEL_0'},
    'label2id': {'LABEL_0': 0},
  }


def _find(params: Any, path: Path) -> tuple[Any, int | None]:
  """(leaf, layer): with stacked layers, the leaf of all and which one."""
  layer, node = None, params
  if path[0].startswith('layers_') and 'layers' in params:
    layer = int(path[0].removeprefix('layers_'))
    node, path = params['layers']['block'], path[1:]
  for key in path:
    node = node[key]
  return node, layer


def _check_params(table: list[Leaf], params: Any) -> None:
  problems = []
  for leaf in table:
    name = '/'.join(leaf.path)
    try:
      array, layer = _find(params, leaf.path)
    except (KeyError, TypeError):
      problems.append(f'{name}: missing from the parameters')
      continue
    shape = tuple(array.shape if layer is None else array.shape[1:])
    if shape != leaf.shape:
      problems.append(
        f'{name}: {list(shape)} in the parameters, and the config asks for '
        f'{list(leaf.shape)}'
      )
  known = {leaf.path for leaf in table}
  if 'layers' in params:
    known |= {('layers', 'block', *path[1:]) for path in known}
  for keys, _ in jax.tree_util.tree_leaves_with_path(params):
    path = tuple(key.key for key in keys)
    if path not in known:
      problems.append(f'{"/".join(path)}: not a parameter of this config')
  if problems:
    raise UserError(listed('params', problems))


def _write_shards(
  path: str,
  params: Any,
  parts: dict[str, list[tuple[Leaf, Piece]]],
  dtypes: dict[str, np.dtype],
  max_shard_bytes: int,
  progress: Progress | None,
) -> set[str]:
  """Writes all weight files (and their index); returns their names."""
  shapes = {name: held[0][1].shape for name, held in parts.items()}
  sizes = {
    name: math.prod(shape) * dtypes[name].itemsize
    for name, shape in shapes.items()
  }
  shards, used = [[]], 0
  for name, size in sizes.items():
    if shards[-1] and used + size > max_shard_bytes:
      shards.append([])
      used = 0
    shards[-1].append(name)
    used += size
  total, done = sum(sizes.values()), 0

  def get(name: str) -> Iterator[np.ndarray]:
    nonlocal done
    for leaf, piece in sorted(parts[name], key=lambda held: held[1].offset):
      array, layer = _find(params, leaf.path)
      region = _region(array, layer, piece)
      yield from _blocks(region, dtypes[name], name)
    done += sizes[name]
    if progress is not None:
      progress(done, total, name)

  files = [SINGLE]
  if len(shards) > 1:
    files = [
      f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors'
      for i in range(len(shards))
    ]
  for file, names in zip(files, shards, strict=True):
    held = {name: (shapes[name], dtypes[name]) for name in names}
    write_file(os.path.join(path, file), held, get)
  if len(shards) == 1:
    return set(files)
  weight_map = {
    name: file
    for file, names in zip(files, shards, strict=True)
    for name in names
  }
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  write_json(path, INDEX, index)
  return {*files, INDEX}


def _region(array: Any, layer: int | None, piece: Piece) -> np.ndarray:
  """The part of a leaf that one piece holds, on the host."""
  start, size = piece.start, piece.view
  if layer is not None:
    start, size = (layer, *start), (1, *size)
  on_host = isinstance(array, np.ndarray) or (
    len(array.devices()) == 1 and next(iter(array.devices())).platform == 'cpu'
  )
  if on_host:  # a view, without a copy
    index = tuple(
      slice(first, first + n) for first, n in zip(start, size, strict=True)
    )
    return np.asarray(array)[index]
  return np.asarray(jax.lax.dynamic_slice(array, start, size))


def _blocks(
  array: np.ndarray, dtype: np.dtype, name: str
) -> Iterator[np.ndarray]:
  """The elements in C order, cast, a bounded number at a time."""
  if array.nbytes > _BLOCK_BYTES:
    step = _BLOCK_BYTES * len(array) // array.nbytes
    for i in range(0, len(array), step or 1):
      part = array[i : i + step] if step else array[i]
      yield from _blocks(part, dtype, name)
    return
  out = np.empty(array.shape, dtype)
  cast_into(out, array, name)
  yield out
