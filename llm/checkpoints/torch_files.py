"""Weights as PyTorch saves them (`.bin`), read without PyTorch or foreign code.

A pickle may run any program, so its opcodes are looked at first and its names
looked up in a table that has tensors and containers only (the rules of
`torch.load(weights_only=True)`). What is unpickled are places in the file; the
numbers are read later, slice by slice, as those of safetensors files are.

Two layouts: a zip archive of `data.pkl` and uncompressed `data/KEY` entries
(PyTorch 1.6 and later), and several pickles with the storages behind them.
"""

import collections
from collections.abc import Callable
import dataclasses
import io
import math
import os
import pickle
import pickletools
from typing import Any, BinaryIO
import zipfile

from llm.checkpoints.tensor_files import TensorInfo
from llm.errors import UserError

_MAX_PICKLE = 200_000_000
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Storage class -> (dtype as safetensors names it, bytes of an element).
_STORAGES = {
  'FloatStorage': ('F32', 4),
  'HalfStorage': ('F16', 2),
  'BFloat16Storage': ('BF16', 2),
  'DoubleStorage': ('F64', 8),
  'LongStorage': ('I64', 8),
  'IntStorage': ('I32', 4),
  'ShortStorage': ('I16', 2),
  'CharStorage': ('I8', 1),
  'ByteStorage': ('U8', 1),
  'BoolStorage': ('BOOL', 1),
}
# What pickles of tensors are made of; others could call or build anything.
_OPCODES = frozenset(
  """
  PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID NONE NEWTRUE
  NEWFALSE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND
  APPENDS SETITEM SETITEMS BINUNICODE SHORT_BINUNICODE BINUNICODE8 BININT
  BININT1 BININT2 LONG1 BINFLOAT BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE
  SHORT_BINBYTES BINBYTES SHORT_BINSTRING BINSTRING
  """.split()
)
_REMEDY = 'download it again, or convert it to safetensors'


@dataclasses.dataclass(frozen=True)
class _Storage:
  """Numbers in the file: their kind, and the entry that has them."""

  dtype: str
  size: int
  key: str
  count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A view of a storage."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def read_header(path: str) -> tuple[dict[str, TensorInfo], list[str]]:
  """What a file holds, and what is wrong with it.

  Returns:
    as `tensor_files.read_header`: tensors by name, and problems as sentences. A
    file that cannot be trusted or read gives no tensors and one problem.
  """
  try:
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
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
    pickle.UnpicklingError, zipfile.BadZipFile, ValueError, TypeError, KeyError,
    IndexError, AttributeError, EOFError, OverflowError, RecursionError,
    MemoryError, NotImplementedError,
  ) as error:  # fmt: skip
    return {}, [f'{path}: is corrupt ({type(error).__name__}): {_REMEDY}']
  infos, problems = {}, []
  for name, tensor in tensors.items():
    info = _info(path, name, tensor, places, size)
    if isinstance(info, str):
      problems.append(info)
    else:
      infos[name] = info
  return infos, problems


def _info(path, name, tensor: _Tensor, places, size: int) -> TensorInfo | str:
  """The place of a tensor, or what is wrong with it."""
  storage = tensor.storage
  if storage.key not in places:
    return f'{name}: {path} has no storage {storage.key!r}: {_REMEDY}'
  expected, step = [], 1
  for length in reversed(tensor.shape):
    expected.insert(0, step)
    step *= length
  wrong = [
    (length, stride, want)
    for length, stride, want in zip(tensor.shape, tensor.strides, expected)
    if length > 1 and stride != want
  ]
  count = math.prod(tensor.shape)
  if wrong and count:
    return (
      f'{name}: is stored in {path} with the strides {list(tensor.strides)},'
      ' not row by row: save it as .contiguous()'
    )
  start, room = places[storage.key]
  begin, nbytes = tensor.offset * storage.size, count * storage.size
  if tensor.offset < 0 or begin + nbytes > room or start + room > size:
    return (
      f'{name}: ends behind its storage in {path}, the file is truncated or '
      f'corrupt: {_REMEDY}'
    )
  return TensorInfo(
    name, path, storage.dtype, tensor.shape, start + begin, nbytes
  )


def _named(state: Any) -> dict[str, _Tensor]:
  """The tensors of a state dict by name."""
  if isinstance(state, dict) and isinstance(state.get('state_dict'), dict):
    state = state['state_dict']
  if not isinstance(state, dict):
    raise UserError('holds no state dict of tensors: save model.state_dict()')
  return {
    name: value
    for name, value in state.items()
    if isinstance(name, str) and isinstance(value, _Tensor)
  }


def _read_zip(file: BinaryIO):
  """(the unpickled object, {storage: (offset, bytes)}) of a zip archive."""
  with zipfile.ZipFile(file) as archive:
    entries = archive.infolist()
    [pickled] = [e for e in entries if e.filename.endswith('/data.pkl')] or [
      None
    ]
    if pickled is None:
      raise UserError(f'is a zip archive without data.pkl: {_REMEDY}')
    root = pickled.filename.removesuffix('data.pkl')
    if pickled.file_size > _MAX_PICKLE:
      raise UserError(f'its data.pkl has {pickled.file_size} bytes: {_REMEDY}')
    for entry in entries:
      if entry.filename == f'{root}byteorder':
        order = archive.read(entry)
        if order != b'little':
          raise UserError(f'byte order {order[:9]!r}: only little is read')
    places = {}
    for entry in entries:
      if not entry.filename.startswith(f'{root}data/'):
        continue
      if entry.compress_type != zipfile.ZIP_STORED:
        raise UserError(f'{entry.filename} is compressed: {_REMEDY}')
      key = entry.filename.removeprefix(f'{root}data/')
      places[key] = (_data_offset(file, entry), entry.file_size)
    return _unpickle(archive.read(pickled)), places


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


def _read_legacy(file: BinaryIO, size: int):
  """The same of a file of pickles with the storages behind them."""
  magic, _, _, state, keys = (_next_pickle(file, size) for _ in range(5))
  if magic != _LEGACY_MAGIC:
    raise UserError(f'is not a file of PyTorch: {_REMEDY}')
  sizes = {}

  def collect(value):
    if isinstance(value, _Tensor):
      sizes[value.storage.key] = value.storage.size
    elif isinstance(value, dict):
      for part in value.values():
        collect(part)

  collect(state)
  places, at = {}, file.tell()
  for key in keys:
    file.seek(at)
    count = int.from_bytes(file.read(8), 'little', signed=True)
    if key not in sizes or not 0 <= count * sizes[key] <= size - at - 8:
      raise UserError(f'its storage {key!r} is cut off: {_REMEDY}')
    places[key] = (at + 8, count * sizes[key])
    at += 8 + count * sizes[key]
  return state, places


def _next_pickle(file: BinaryIO, size: int) -> Any:
  """Unpickles from where the file stands, up to the end of that pickle."""
  start = file.tell()
  data = file.read(min(_MAX_PICKLE, size - start))
  try:
    end = next(
      at for op, _, at in pickletools.genops(data) if op.name == 'STOP'
    )
  except (ValueError, StopIteration):
    raise UserError(f'is not a file of PyTorch: {_REMEDY}') from None
  file.seek(start + end + 1)
  return _unpickle(data[: end + 1])


def _unpickle(data: bytes) -> Any:
  """Unpickles containers and places of tensors, and nothing else."""
  count = 0
  for opcode, argument, _ in pickletools.genops(data):
    count += 1
    if opcode.name not in _OPCODES:
      raise UserError(
        f'its pickle has {opcode.name}, which no pickle of tensors needs: it'
        ' is not trusted; convert it to safetensors where you trust it'
      )
    # A huge number would make the memo as large.
    if opcode.name.endswith('BINPUT') and argument > count:
      raise UserError(f'its pickle has a memo of {argument} entries: {_REMEDY}')
  return _Unpickler(io.BytesIO(data)).load()


class _Unpickler(pickle.Unpickler):
  """Looks names up in a table of its own."""

  def find_class(self, module: str, name: str) -> Any:
    if module in ('torch', 'torch.storage') and name in _STORAGES:
      return _STORAGES[name]
    found = _GLOBALS.get(f'{module}.{name}')
    if found is None:
      raise UserError(
        f'its pickle names {module}.{name}, which is no part of a tensor: it'
        ' is not trusted; convert it to safetensors where you trust it'
      )
    return found

  def persistent_load(self, pid: Any) -> _Storage:
    kind, storage, key, _, count = pid[:5]
    if kind != 'storage' or storage not in _STORAGES.values():
      raise UserError(f'its pickle has a storage {pid!r:.60}: {_REMEDY}')
    return _Storage(*storage, str(key), int(count))


def _rebuild_tensor(storage, offset, shape, strides, *_) -> _Tensor:
  if not isinstance(storage, _Storage):
    raise TypeError('no storage')
  shape, strides = (tuple(int(n) for n in part) for part in (shape, strides))
  if len(shape) != len(strides) or any(n < 0 for n in shape):
    raise ValueError('no shape')
  return _Tensor(storage, int(offset), shape, strides)


def _rebuild_parameter(data, *_) -> _Tensor:
  return data


_GLOBALS: dict[str, Callable] = {
  'collections.OrderedDict': collections.OrderedDict,
  'torch._utils._rebuild_tensor': _rebuild_tensor,
  'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
  'torch._utils._rebuild_parameter': _rebuild_parameter,
  'torch.Size': tuple,
}
