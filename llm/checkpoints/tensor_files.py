"""Safetensors files, read by slices and written tensor by tensor.

Nothing is mapped: a slice is read at its offset through a small buffer, so
that a process holds the arrays that it reads and no page of a file besides.
The format: 8 bytes little-endian length of a JSON header, the header, the data
(https://github.com/huggingface/safetensors).
"""

from collections.abc import Callable, Iterable
import dataclasses
import json
import math
import os
from typing import BinaryIO

import ml_dtypes
import numpy as np

from llm.errors import UserError

DTYPES = {
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BUFFER_BYTES = 4 << 20
_LFS_POINTER = b'version '  # of the line `version https://git-lfs…`
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """One tensor in a file; `offset` counts bytes from the file's start."""

  name: str
  file: str
  dtype: str  # as written in the header, F32 and so on
  shape: tuple[int, ...]
  offset: int
  nbytes: int


def read_header(path: str) -> tuple[dict[str, TensorInfo], list[str]]:
  """What a file holds, and what is wrong with it.

  Returns:
    (tensors by name, problems as sentences that name the file and the remedy).
    A file whose header cannot be read gives no tensors and one problem; a
    file that is too short gives the tensors that are whole, and a problem for
    each that is not.
  """
  try:
    with open(path, 'rb') as file:
      size = os.path.getsize(path)
      start = file.read(8)
      if nothing := no_weights(path, start):
        return {}, [nothing]
      length = int.from_bytes(start, 'little')
      if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
        return {}, [_no_header(path, size, length)]
      text = file.read(length)
  except OSError as error:
    return {}, [
      f'{path}: cannot be read ({error.strerror}): check what it is and its '
      'permissions'
    ]
  try:
    header = json.loads(text)
    infos = [
      TensorInfo(
        name,
        path,
        str(entry['dtype']),
        tuple(int(n) for n in entry['shape']),
        8 + length + int(entry['data_offsets'][0]),
        int(entry['data_offsets'][1]) - int(entry['data_offsets'][0]),
      )
      for name, entry in header.items()
      if name != '__metadata__'
    ]
  except (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
  ) as error:
    return {}, [
      f'{path}: its header is corrupt ({type(error).__name__}: {error}): '
      'download it again'
    ]
  start = 8 + length
  problems = [
    p for info in infos if (p := _problem(info, start, size)) is not None
  ]
  end = max((info.offset + info.nbytes for info in infos), default=start)
  if end < size:
    problems.append(
      f'{path}: {size - end} bytes after the last tensor: the file is corrupt, '
      'download it again'
    )
  return {info.name: info for info in infos}, problems


def no_weights(path: str, start: bytes) -> str | None:
  """What is wrong with a file that begins like this and is none of weights."""
  if not start:
    return f'{path}: the file is empty: download it again'
  if start == _LFS_POINTER:
    return (
      f'{path}: is a pointer of Git LFS, not the file itself: run git lfs '
      'pull, or download it'
    )
  return None


def _no_header(path: str, size: int, length: int) -> str:
  return (
    f'{path}: {size} bytes, and its header is said to have {length}: the '
    'file is truncated or not safetensors, download it again'
  )


def _problem(info: TensorInfo, start: int, size: int) -> str | None:
  if info.offset + info.nbytes > size:
    return (
      f'{info.name}: truncated, it ends at byte {info.offset + info.nbytes} of '
      f'{info.file}, which has {size}: download it again'
    )
  if info.dtype not in DTYPES:
    return None  # only matters if the model needs the tensor
  expected = math.prod(info.shape) * DTYPES[info.dtype].itemsize
  if info.offset < start or info.nbytes != expected:
    return (
      f'{info.name}: corrupt, {info.nbytes} bytes in {info.file} for '
      f'{info.dtype}{list(info.shape)}, which takes {expected}: download it '
      'again'
    )
  return None


def read_slice(
  file: BinaryIO,
  info: TensorInfo,
  offset: int,
  view: tuple[int, ...],
  index: tuple[slice, ...],
  out: np.ndarray,
) -> None:
  """Fills `out` with `tensor.ravel()[offset:].reshape(view)[index]`.

  Args:
    file: `info.file`, open for reading without a buffer.
    info: the tensor.
    offset: elements to skip; the view covers those after it.
    view: shape of the viewed elements.
    index: one slice of step 1 per axis of `view`, with start and stop.
    out: array of the slice's shape, of any dtype; values are cast to it.

  Raises:
    UserError: the file ended early, or a finite value does not fit in `out`.
  """
  dtype = DTYPES[info.dtype]
  sizes = [s.stop - s.start for s in index]
  strides = [math.prod(view[axis + 1 :]) for axis in range(len(view))]
  # Axes from `axis` + 1 on are read in full: a run of `axis` is contiguous in
  # the file. Move inwards while one element of the run exceeds the buffer.
  axis = len(view) - 1
  while axis > 0 and sizes[axis] == view[axis]:
    axis -= 1
  while axis < len(view) - 1 and strides[axis] * dtype.itemsize > _BUFFER_BYTES:
    axis += 1
  step = max(1, _BUFFER_BYTES // (strides[axis] * dtype.itemsize))
  for outer in np.ndindex(*sizes[:axis]):
    at = offset + index[axis].start * strides[axis]
    at += sum((index[i].start + outer[i]) * strides[i] for i in range(axis))
    rows = out[outer]
    for row in range(0, sizes[axis], step):
      target = rows[row : row + step]
      start = (at + row * strides[axis]) * dtype.itemsize
      if target.dtype == dtype and target.flags.c_contiguous:
        _fill(file, info, start, target)
      else:
        block = np.empty(target.shape, dtype)
        _fill(file, info, start, block)
        cast_into(target, block, info.name)


def _fill(
  file: BinaryIO, info: TensorInfo, start: int, out: np.ndarray
) -> None:
  """Fills a contiguous array from byte `start` of the tensor on."""
  view = memoryview(out.reshape(-1).view(np.uint8))
  file.seek(info.offset + start)
  done = 0
  while done < len(view):  # a read may return less than its buffer holds
    got = file.readinto(view[done:])
    if not got:
      raise UserError(
        f'{info.name}: {info.file} ended while it was read: download it again'
      )
    done += got


def cast_into(out: np.ndarray, block: np.ndarray, name: str) -> None:
  """out[...] = block, refusing finite values that float16 turns infinite."""
  with np.errstate(over='ignore'):
    out[...] = block
  narrower = out.dtype == np.float16 and block.dtype != np.float16
  if narrower and not np.isfinite(out).all() and np.isfinite(block).all():
    raise UserError(
      f'{name}: a value above 65504 does not fit in float16: use bfloat16 or '
      'float32'
    )


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """An array that starts at a multiple of 64 bytes.

  JAX uses such memory as a CPU array without a copy.
  """
  dtype = np.dtype(dtype)
  nbytes = math.prod(shape) * dtype.itemsize
  raw = np.empty(nbytes + 64, np.uint8)
  start = -raw.ctypes.data % 64
  return raw[start : start + nbytes].view(dtype).reshape(shape)


def write_file(
  path: str,
  tensors: dict[str, tuple[tuple[int, ...], np.dtype]],
  get: Callable[[str], Iterable[np.ndarray]],
) -> None:
  """Writes one file, holding one block of one tensor in memory at a time.

  Args:
    path: written whole under another name, then renamed.
    tensors: name -> (shape, dtype), in the order of the file.
    get: name -> its elements in C order, as arrays of that dtype.
  """
  header, offset = {'__metadata__': {'format': 'pt'}}, 0
  for name, (shape, dtype) in tensors.items():
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    header[name] = {
      'dtype': _NAMES[np.dtype(dtype)],
      'shape': list(shape),
      'data_offsets': [offset, offset + nbytes],
    }
    offset += nbytes
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # the data starts aligned
  temporary = f'{path}.tmp'
  with open(temporary, 'wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for name in tensors:
      for block in get(name):
        file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8))
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
