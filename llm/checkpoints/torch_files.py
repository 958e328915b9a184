"""Weights as PyTorch saves them (`.bin`), read without PyTorch or foreign code.

The pickle inside gives places in the file (`llm.checkpoints.torch_pickle`); the
numbers are read later, slice by slice, as those of safetensors files are.

Two layouts: a zip archive of `data.pkl` and uncompressed `data/KEY` entries
(PyTorch 1.6 and later), and several pickles with the storages behind them.
"""

import io
import math
import os
import struct
from typing import Any, BinaryIO
import zipfile

from llm.checkpoints.tensor_files import TensorInfo, no_weights
from llm.checkpoints.torch_pickle import REMEDY, Storage, Tensor, read_pickle
from llm.errors import UserError

_MAX_PICKLE = 64_000_000  # some 300,000 tensors
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_ENCRYPTED = 1  # a bit of a zip entry's flags
_MAX_LISTED = 5
# Bytes that each storage of a file has, and where they begin.
_Places = dict[str, tuple[int, int]]


def read_header(path: str) -> tuple[dict[str, TensorInfo], list[str]]:
  """What a file holds, and what is wrong with it.

  Returns:
    as `tensor_files.read_header`: tensors by name, and problems as sentences. A
    file that cannot be trusted or read gives no tensors and one problem.
  """
  try:
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
      if nothing := no_weights(path, file.read(8)):
        return {}, [nothing]
      if zipfile.is_zipfile(file):
        state, places = _read_zip(file)
      else:
        file.seek(0)
        state, places = _read_legacy(file, size)
    tensors = _named(state)
  except UserError as error:
    return {}, [f'{path}: {error}']
  except OSError as error:
    return {}, [
      f'{path}: cannot be read ({error.strerror}): check what it is and its '
      'permissions'
    ]
  except (
    zipfile.BadZipFile, ValueError, RuntimeError, EOFError, OverflowError,
    MemoryError, struct.error,
  ) as error:  # fmt: skip
    return {}, [f'{path}: is corrupt ({type(error).__name__}): {REMEDY}']
  infos, problems = {}, []
  for name, tensor in tensors.items():
    info = _info(path, name, tensor, places, size)
    if isinstance(info, str):
      problems.append(info)
    else:
      infos[name] = info
  return infos, problems


def _info(
  path: str, name: str, tensor: Tensor, places: _Places, size: int
) -> TensorInfo | str:
  """The place of a tensor, or what is wrong with it."""
  storage = tensor.storage
  if storage.key not in places:
    return f'{name}: {path} has no storage {storage.key!r:.40}: {REMEDY}'
  count, step, by_rows = math.prod(tensor.shape), 1, True
  for length, stride in zip(tensor.shape[::-1], tensor.strides[::-1]):
    by_rows = by_rows and (length == 1 or stride == step)
    step *= length
  if count and not by_rows:
    return (
      f'{name}: is stored in {path} with the strides {list(tensor.strides)},'
      ' not row by row: save it as .contiguous()'
    )
  start, room = places[storage.key]
  begin, nbytes = tensor.offset * storage.size, count * storage.size
  if begin + nbytes > room or start + room > size:
    return (
      f'{name}: ends behind its storage in {path}, the file is truncated or '
      f'corrupt: {REMEDY}'
    )
  return TensorInfo(
    name, path, storage.dtype, tensor.shape, start + begin, nbytes
  )


def _named(state: Any) -> dict[str, Tensor]:
  """The tensors of a state dict by name; what else it has is no weight.

  Raises:
    UserError: there are no tensors by name, or some of them lie deeper.
  """
  if isinstance(state, dict) and isinstance(state.get('state_dict'), dict):
    if any(isinstance(value, Tensor) for value in state.values()):
      raise UserError(
        'has tensors beside state_dict and in it: save model.state_dict()'
      )
    state = state['state_dict']
  if not isinstance(state, dict):
    raise UserError('holds no state dict of tensors: save model.state_dict()')
  tensors = {
    name: value
    for name, value in state.items()
    if isinstance(name, str) and isinstance(value, Tensor)
  }
  if state and not tensors:
    names = ', '.join(f'{name!s:.40}' for name in list(state)[:_MAX_LISTED])
    raise UserError(
      f'holds no tensors by name, but {names}: save model.state_dict()'
    )
  return tensors


def _read_zip(file: BinaryIO) -> tuple[Any, _Places]:
  """(what was pickled, the places of its storages) of a zip archive."""
  with zipfile.ZipFile(file) as archive:
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith('/data.pkl')]
    if len(pickles) != 1 or len(entries) < len(archive.infolist()):
      raise UserError(
        f'is a zip archive, but not one of one state dict: {REMEDY}'
      )
    [pickled], root = pickles, pickles[0].removesuffix('data.pkl')
    for name, entry in entries.items():
      if entry.compress_type != zipfile.ZIP_STORED:
        raise UserError(f'its {name:.40} is compressed: {REMEDY}')
      if entry.flag_bits & _ENCRYPTED:
        raise UserError(f'its {name:.40} is encrypted: {REMEDY}')
    if entries[pickled].file_size > _MAX_PICKLE:
      raise UserError(
        f'its data.pkl has {entries[pickled].file_size} bytes: {REMEDY}'
      )
    if f'{root}byteorder' in entries:
      with archive.open(f'{root}byteorder') as order_file:
        order = order_file.read(9)
      if order != b'little':
        raise UserError(f'byte order {order!r}: only little is read')
    state = read_pickle(io.BytesIO(archive.read(pickled)))
  start = f'{root}data/'
  places = {
    name.removeprefix(start): (_data_offset(file, entry), entry.file_size)
    for name, entry in entries.items()
    if name.startswith(start)
  }
  return state, places


def _data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
  """Where the bytes of an entry begin: behind its local header."""
  file.seek(entry.header_offset)
  header = file.read(30)
  if len(header) < 30 or header[:4] != b'PK\x03\x04':
    raise zipfile.BadZipFile('no local header')
  name, extra = (
    int.from_bytes(header[at : at + 2], 'little') for at in (26, 28)
  )
  return entry.header_offset + 30 + name + extra


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, _Places]:
  """The same of a file of pickles with the storages behind them."""
  pickles = io.BytesIO(file.read(_MAX_PICKLE))
  try:
    magic = read_pickle(pickles)
  except UserError:
    magic = None
  if magic != _LEGACY_MAGIC:
    # A pickle of something else is refused for what it has, if it has it.
    pickles.seek(0)
    read_pickle(pickles)
    raise UserError(f'is not a file of PyTorch: {REMEDY}')
  _, system, state, keys = (read_pickle(pickles) for _ in range(4))
  if not isinstance(system, dict) or not isinstance(keys, list):
    raise UserError(f'is not a file of PyTorch: {REMEDY}')
  if system.get('little_endian') is not True:
    raise UserError('byte order big: only little is read')
  sizes = {storage.key: storage.size for storage in _storages(state)}
  places, at = {}, pickles.tell()
  for key in keys:
    file.seek(at)
    count = int.from_bytes(file.read(8), 'little', signed=True)
    if not isinstance(key, str) or key not in sizes:
      raise UserError(f'has a storage that no tensor is in: {REMEDY}')
    if not 0 <= count * sizes[key] <= size - at - 8:
      raise UserError(f'its storage {key!r:.40} is cut off: {REMEDY}')
    places[key] = (at + 8, count * sizes[key])
    at += 8 + count * sizes[key]
  return state, places


def _storages(state: Any) -> list[Storage]:
  """The storages of all tensors, however deep they lie."""
  found, left, seen = [], [state], set()
  while left:
    value = left.pop()
    if isinstance(value, Tensor):
      found.append(value.storage)
    elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
      seen.add(id(value))
      left.extend(value.values() if isinstance(value, dict) else value)
  return found
