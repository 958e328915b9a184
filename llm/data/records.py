"""Rows of data files, each with its file and number for messages.

JSON lines, JSON lists, Parquet and plain text, also compressed; one file,
several, a folder or a pattern.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import glob
import gzip
import json
import pathlib
import re
from typing import Any, BinaryIO
import zlib

import zstandard

from llm.data import parquet_rows
from llm.errors import UserError
from llm.text import json_rows
from llm.text.json_rows import Bad
from llm.text.messages import show

KINDS = ('.jsonl', '.ndjson', '.json', '.parquet', '.txt')
_CHUNK = 1 << 20
_BOM = '\ufeff'
# How files begin that are something else than their name says, and the remedy.
_TO_UTF8 = 'write it as UTF-8 (iconv -f {} -t UTF-8)'
_OTHER = (
  (rb'\xff\xfe\0\0|\0\0\xfe\xff', 'UTF-32', _TO_UTF8.format('UTF-32')),
  (rb'\xff\xfe|\xfe\xff', 'UTF-16', _TO_UTF8.format('UTF-16')),
  (rb'[^\0]\0[^\0]\0', 'UTF-16', _TO_UTF8.format('UTF-16LE')),
  (rb'\0[^\0]\0[^\0]', 'UTF-16', _TO_UTF8.format('UTF-16BE')),
  (rb'\x1f\x8b', 'compressed by gzip', 'let its name end in .gz'),
  (rb'\x28\xb5\x2f\xfd', 'compressed by zstd', 'let its name end in .zst'),
  (rb'PAR1', 'a Parquet file', 'let its name end in .parquet'),
  (rb'PK\x03\x04', 'a ZIP archive', 'unpack it'),
  (
    rb'version https://git-lfs',
    'a pointer of Git LFS, not the data',
    'fetch the data (git lfs pull)',
  ),
)
# Files that often stand beside data and hold none.
_ABOUT = ('LICENSE', 'LICENCE', 'README', 'NOTICE', 'MANIFEST')


@dataclasses.dataclass(frozen=True)
class Record:
  """One row, as it stands in its file.

  `row` counts from 1: the line of JSON lines (blank lines count), the element
  of a JSON list or Parquet file, the document of a text.
  """

  value: dict[str, Any]
  file: str
  row: int
  field: str = 'data.path'

  @property
  def where(self) -> str:
    """The row in words, for the beginning of error messages."""
    return f'{self.field}: {self.file}, row {self.row}'


def read_records(
  path,
  *,
  field: str = 'data.path',
  separator: str | None = None,
  on_bytes: Callable[[int, int], None] | None = None,
  on_bad: Callable[[Record, str], None] | None = None,
) -> Iterator[Record]:
  """Yields every row of every file, in order.

  The kind of a file is its suffix: `.jsonl` (`.ndjson`), `.json` (a list, one
  object, or JSON lines) and `.txt`, each also with `.gz` or `.zst` after it,
  and `.parquet`. A text gives rows of the form {'text': …}.

  Args:
    path: a file, a folder (all files of a known kind in it, by name,
      but for hidden ones and LICENSE, README and the like), a pattern
      such as 'data/*.jsonl', or a list of these.
    field: the config field that holds `path`, for messages.
    separator: stands between the documents of a text and belongs to none;
      line ends around a document are left out, and so are empty documents. None
      takes a whole file as one document.
    on_bytes: called with (bytes read, bytes in all) before each row.
    on_bad: called with a row that is no JSON object (its value is {}) and why,
      and the rows after it are read; None: it is an error.

  Raises:
    UserError: there is no file; a file is empty, broken or of an unknown kind;
      or a row is not a JSON object. The message names file and row.
  """
  files = find_files(path, field)
  total = sum(file.stat().st_size for file in files)
  before = 0
  for file in files:
    empty = True
    with file.open('rb') as raw:
      for number, value in _rows(raw, file, field, separator):
        if on_bytes is not None:
          on_bytes(before + raw.tell(), total)
        empty = False
        if isinstance(value, dict):
          yield Record(value, str(file), number, field)
          continue
        why = f'a JSON object is needed, not {show(value)}'
        if isinstance(value, Bad):
          why = value.why
        record = Record({}, str(file), number, field)
        if on_bad is None:
          raise UserError(f'{record.where}: {why}')
        on_bad(record, why)
      if empty:
        raise UserError(f'{field}: {file} holds no rows; remove or fill it')
    before += file.stat().st_size


def find_files(path, field: str = 'data.path') -> list[pathlib.Path]:
  """The files that `path` stands for, see `read_records`.

  Raises:
    UserError: there are none, or one is of no known kind.
  """
  if isinstance(path, (list, tuple)):
    if not path:
      raise UserError(f'{field} names no file')
    return [file for part in path for file in find_files(part, field)]
  if not isinstance(path, (str, pathlib.Path)) or not str(path):
    raise UserError(f'{field}={path!r}: name a file, a folder or a pattern')
  name, path = str(path), pathlib.Path(path)
  if path.is_dir():
    files = sorted(
      file
      for file in path.iterdir()
      if _kind(file)[0] and file.is_file() and not _is_about(file.name)
    )
    if not files:
      raise UserError(
        f'{field}={name!r}: the folder has no file of a known kind'
        f' ({", ".join(KINDS)})'
      )
    return files
  if path.is_file():
    files = [path]
  elif glob.has_magic(name):
    found = map(pathlib.Path, sorted(glob.glob(name, recursive=True)))
    files = [file for file in found if file.is_file()]
    if not files:
      raise UserError(f'{field}={name!r}: no file matches')
  else:
    raise UserError(f'{field}={name!r} does not exist: name a file or folder')
  for file in files:
    if not _kind(file)[0]:
      raise UserError(
        f'{field}: {file} is of no known kind; known are {", ".join(KINDS)},'
        ' all but Parquet also with .gz or .zst'
      )
  return files


def _is_about(name: str) -> bool:
  """True for hidden files and for those about the data, such as LICENSE.txt."""
  return name.startswith('.') or name.upper().startswith(_ABOUT)


def is_text(file: pathlib.Path) -> bool:
  """True for a `.txt`, compressed or not."""
  return _kind(file)[0] == '.txt'


def is_read_by_row(file: pathlib.Path) -> bool:
  """True where the first row costs little, however large the file is."""
  return _kind(file)[0] in ('.jsonl', '.ndjson', '.parquet')


def _kind(file: pathlib.Path) -> tuple[str, str]:
  """The suffix of a file's kind ('' if unknown) and that of its compression."""
  packed = file.suffix if file.suffix in ('.gz', '.zst') else ''
  kind = pathlib.Path(file.stem).suffix if packed else file.suffix
  known = kind in KINDS and not (packed and kind == '.parquet')
  return (kind if known else ''), packed


def _rows(raw, file, field, separator) -> Iterator[tuple[int, Any]]:
  """(number, value) of each row of one open file."""
  kind, packed = _kind(file)
  if kind == '.parquet':
    _check_begin(raw.read(64), f'{field}: {file}', _OTHER[-1:])
    raw.seek(0)
    return enumerate(parquet_rows.read_rows(raw, f'{field}: {file}'), 1)
  chunks = _checked(_decompress(raw, packed), file, field)
  if kind == '.txt':
    return _documents(chunks, file, field, separator)
  if kind == '.json':
    return _json(b''.join(chunks), file, field)
  return _json_lines(_lines(chunks))


def _json_lines(lines) -> Iterator[tuple[int, Any]]:
  parser = json_rows.Parser()
  for number, line in enumerate(lines, 1):
    try:
      # Files that were joined have a mark of UTF-8 in their middle.
      text = line.decode().lstrip(_BOM).strip()
    except UnicodeDecodeError as error:
      yield (
        number,
        Bad(f'not UTF-8 at byte {error.start} of the line; write it as UTF-8'),
      )
      continue
    if not text:
      continue
    value = parser.row(text)
    if text in ('[', '{'):
      value = Bad(
        'not an object in one line; a file that is one list, or has objects'
        ' over several lines, is named .json'
      )
    yield number, value


def _json(data: bytes, file, field) -> Iterator[tuple[int, Any]]:
  text = _decode(data, file, field).lstrip(_BOM)
  if not text.strip():
    return iter(())
  try:
    return enumerate(json_rows.Parser().rows(text), 1)
  except json.JSONDecodeError as error:
    if error.msg == 'Extra data':  # After a first object: JSON lines.
      return _json_lines(data.split(b'\n'))
    raise UserError(f'{field}: {file} is not valid JSON ({error})') from None
  except RecursionError:
    raise UserError(
      f'{field}: {file} is nested too deeply; write it flatter'
    ) from None


def _documents(chunks, file, field, separator) -> Iterator[tuple[int, Any]]:
  text = _decode(b''.join(chunks), file, field)
  text = re.sub(f'^{_BOM}+', '', text, flags=re.MULTILINE)
  if separator is None:
    parts = [text]
  elif not separator:
    raise UserError('data.separator is empty: give the text between documents')
  else:
    parts = [part.strip('\r\n') for part in text.split(separator)]
  parts = [part for part in parts if part.strip()]
  return enumerate(({'text': part} for part in parts), 1)


def _decompress(raw: BinaryIO, packed: str) -> Iterator[bytes]:
  if packed == '.zst':
    yield from _zstandard(raw)
    return
  stream = gzip.GzipFile(fileobj=raw) if packed else raw
  while chunk := stream.read(_CHUNK):
    yield chunk


def _zstandard(raw: BinaryIO) -> Iterator[bytes]:
  """Reads every frame; unlike the library's reader it notices a cut file."""
  frame = None
  while data := raw.read(_CHUNK):
    while data:
      if frame is None:
        frame = zstandard.ZstdDecompressor().decompressobj()
      if chunk := frame.decompress(data):
        yield chunk
      data = frame.unused_data if frame.eof else b''
      if frame.eof:
        frame = None
  if frame is not None:
    raise EOFError('it ends inside of a frame')


def _checked(chunks: Iterable[bytes], file, field) -> Iterator[bytes]:
  """The chunks; names a file that is broken, or of another kind."""
  is_first = True
  try:
    for chunk in chunks:
      if is_first:
        _check_begin(chunk[:64], f'{field}: {file}', _OTHER)
      is_first = False
      yield chunk
  except (
    EOFError,
    gzip.BadGzipFile,
    zlib.error,
    zstandard.ZstdError,
  ) as error:
    raise UserError(
      f'{field}: {file} is cut off or broken ({error}); fetch it again'
    ) from None


def _check_begin(begin: bytes, name: str, others) -> None:
  """Refuses a file that begins as one of `others` does."""
  for pattern, what, remedy in others:
    if re.match(pattern, begin):
      raise UserError(f'{name} is {what}; {remedy}')


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
  """Splits at newlines only; `splitlines` splits at other characters too."""
  rest = []
  for chunk in chunks:
    first, *others = chunk.split(b'\n')
    rest.append(first)
    if others:
      yield b''.join(rest)
      yield from others[:-1]
      rest = [others[-1]]
  yield b''.join(rest)


def _decode(data: bytes, file, field) -> str:
  try:
    return data.decode()
  except UnicodeDecodeError as error:
    raise UserError(
      f'{field}: {file} is not UTF-8 at byte {error.start}; write it as UTF-8'
    ) from None
