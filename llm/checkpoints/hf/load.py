"""The weights of Hugging Face model folders.

Parameters are read leaf by leaf, straight from file offsets into memory of the
wanted dtype and sharding.
"""

import contextlib
import functools
import math
from typing import Any, BinaryIO

import jax
import numpy as np

from llm.checkpoints.hf.folder import listed, read_headers
from llm.checkpoints.hf.names import Leaf, Path, leaves, tensors
from llm.checkpoints.opened import Progress
from llm.checkpoints.tensor_files import (
  DTYPES,
  TensorInfo,
  aligned_empty,
  read_slice,
)
from llm.errors import UserError
from llm.models.config import ModelConfig

_PREFIXES = ('model.', 'language_model.model.', 'model.language_model.', '')
_COMPARE_BYTES = 4 << 20


def load_params(
  path: str,
  config: ModelConfig,
  *,
  dtype: Any = np.float32,
  reward_head: bool = False,
  shardings: Any = None,
  progress: Progress | None = None,
) -> Any:
  """Reads the parameters of a model folder (unrolled layers).

  Above the parameters themselves, host memory holds a read buffer of a few
  megabytes, plus one leaf's shard where the device is not the host.

  Args:
    path: folder with `model.safetensors`, or several files and their index.
    config: the model; tensors must have the shapes that it implies.
    dtype: float32, bfloat16 or float16, of every parameter.
    reward_head: the folder holds a `…ForSequenceClassification` with one label,
      whose `score.weight` becomes `reward_head`; there is no `lm_head`.
    shardings: one `jax.sharding.Sharding` for all, or a tree of them like the
      parameters. None: the first device.
    progress: called after each parameter.

  Returns:
    The parameter tree, of `jax.Array`.

  Raises:
    UserError: naming the missing, truncated and corrupt files and tensors or,
      if all files are whole, the tensors that the config does not describe; the
      first few of them in one message.
  """
  dtype = np.dtype(dtype)
  if dtype not in DTYPES.values():
    raise UserError(f'dtype={dtype}: use float32, bfloat16 or float16')
  infos, problems = read_headers(path)
  table = _table(config, infos, reward_head)
  # Tensors of a broken file would all seem to be missing.
  problems = problems or _mismatches(table, infos, config)
  if problems:
    raise UserError(listed(path, problems))
  if shardings is None:
    shardings = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return _read_all(table, infos, dtype, shardings, progress)


def _read_all(
  table: list[Leaf],
  infos: dict[str, TensorInfo],
  dtype: np.dtype,
  shardings: Any,
  progress: Progress | None,
) -> Any:
  """The parameter tree; every file is open once while it is read."""
  total = sum(infos[name].nbytes for name in tensors(table))
  done, params = 0, {}
  with contextlib.ExitStack() as stack:
    files = {}
    for file in sorted({info.file for info in infos.values()}):
      files[file] = stack.enter_context(open(file, 'rb', buffering=0))
    for leaf in table:
      sharding = shardings
      if not isinstance(shardings, jax.sharding.Sharding):
        sharding = functools.reduce(lambda x, k: x[k], leaf.path, shardings)
      array = jax.make_array_from_callback(
        leaf.shape,
        sharding,
        functools.partial(_read_leaf, leaf, infos, files, dtype),
      )
      array.block_until_ready()  # one leaf's host memory at a time
      _insert(params, leaf.path, array)
      done += sum(
        math.prod(piece.view) * DTYPES[infos[piece.name].dtype].itemsize
        for piece in leaf.pieces
      )
      if progress is not None:
        progress(done, total, '/'.join(leaf.path))
  return params


def _table(
  config: ModelConfig, infos: dict[str, TensorInfo], reward_head: bool = False
) -> list[Leaf]:
  """The model's leaves under the names that this checkpoint uses."""
  prefix = next(
    (p for p in _PREFIXES if f'{p}embed_tokens.weight' in infos), 'model.'
  )
  inner = 'language_model.lm_head.weight' in infos
  return leaves(
    config,
    prefix=prefix,
    head_prefix='language_model.' if inner else '',
    reward_head=reward_head,
    present=infos,
  )


def _mismatches(
  table: list[Leaf], infos: dict[str, TensorInfo], config: ModelConfig
) -> list[str]:
  """Missing, mis-shaped, unreadable and extra tensors."""
  wanted = {p.name: p.shape for leaf in table for p in leaf.pieces}
  problems = []
  for name, shape in wanted.items():
    info = infos.get(name)
    if info is None:
      problems.append(
        f'{name}: missing, config.json asks for {list(shape)}: download every '
        'file, or fix config.json'
      )
    elif info.shape != shape:
      problems.append(
        f'{name}: {list(info.shape)} in {info.file}, and config.json asks for '
        f'{list(shape)}: use the config of this checkpoint'
      )
    elif info.dtype not in DTYPES:
      problems.append(
        f'{name}: {info.dtype} in {info.file} is not supported: convert it to '
        f'one of {", ".join(DTYPES)}'
      )
  embedding = infos.get(table[0].pieces[0].name)
  multimodal = 'language_model.' in table[0].pieces[0].name
  for name, info in infos.items():
    if name in wanted or name.endswith('rotary_emb.inv_freq'):
      continue
    if multimodal and _is_vision(name):
      continue
    if config.tie_embeddings and name.endswith('lm_head.weight'):
      if embedding is None or _same_data(info, embedding):
        continue
      problems.append(
        f'{name}: in {info.file} it differs from the embedding, and '
        'config.json has tie_word_embeddings=true: set it to false'
      )
      continue
    problems.append(
      f'{name}: extra, in {info.file}: config.json describes a model without '
      'it, use the config of this checkpoint'
    )
  return problems


def _is_vision(name: str) -> bool:
  part = name.removeprefix('model.')
  return part.startswith(('vision_tower.', 'multi_modal_projector.'))


def _same_data(a: TensorInfo, b: TensorInfo) -> bool:
  if (a.dtype, a.shape) != (b.dtype, b.shape):
    return False
  with open(a.file, 'rb') as file_a, open(b.file, 'rb') as file_b:
    file_a.seek(a.offset)
    file_b.seek(b.offset)
    left = a.nbytes
    while left > 0:
      size = min(left, _COMPARE_BYTES)
      if file_a.read(size) != file_b.read(size):
        return False
      left -= size
  return True


def _read_leaf(
  leaf: Leaf,
  infos: dict[str, TensorInfo],
  files: dict[str, BinaryIO],
  dtype: np.dtype,
  index: tuple[slice, ...],
) -> np.ndarray:
  """The part of a leaf that one device holds."""
  bounds = [s.indices(n)[:2] for s, n in zip(index, leaf.shape, strict=True)]
  out = aligned_empty(tuple(stop - start for start, stop in bounds), dtype)
  for piece in leaf.pieces:
    source, target = [], []
    for (start, stop), first, size in zip(
      bounds, piece.start, piece.view, strict=True
    ):
      low, high = max(start, first), min(stop, first + size)
      source.append(slice(low - first, high - first))
      target.append(slice(low - start, high - start))
    if all(s.start < s.stop for s in source):
      info = infos[piece.name]
      read_slice(
        files[info.file],
        info,
        piece.offset,
        piece.view,
        tuple(source),
        out[tuple(target)],
      )
  return out


def _insert(tree: dict, path: Path, value: Any) -> None:
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value
