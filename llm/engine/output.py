"""JSONL output that survives an interruption.

Each row carries `index` (which input), `sample` (which of its completions) and
`id`, a digest of all that decides the row. A run that finds its own unfinished
file keeps the finished rows and continues; a file of other inputs is never
overwritten but renamed to `OUT.jsonl.1`, `.2`, ….
"""

from collections.abc import Sequence
import dataclasses
import errno
import hashlib
import json
import os
import pathlib

from llm.engine.requests import Sample
from llm.errors import UserError

Key = tuple[int, int, str]  # index, sample, id
_MODEL_FILES = ('.safetensors', '.bin', '.json')


@dataclasses.dataclass
class Output:
  """An open output file, the keys it held already, and where old rows went."""

  path: pathlib.Path
  done: frozenset[Key]
  moved_to: pathlib.Path | None = None

  def note(self, total: int) -> str | None:
    """A remark on the file for the user, before work starts."""
    if self.moved_to:
      return f'{self.path} held rows of other inputs: now {self.moved_to}'
    if len(self.done) == total:
      return f'{self.path}: all {total} rows are finished, nothing to do'
    if self.done:
      return f'{self.path}: {len(self.done)} of {total} rows are finished'
    return None

  def write(self, row: dict) -> None:
    """Appends one row; the operating system has it when this returns."""
    with self.path.open('a', encoding='utf-8') as file:
      file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n')


def sample_keys(
  samples: Sequence[Sample], files: list, dtype: str
) -> list[Key]:
  """What a completion depends on, as the keys of its output rows.

  Args:
    samples: the completions to make.
    files: of the model, see `fingerprint`.
    dtype: of the computation.
  """
  keys = []
  for sample in samples:
    request = sample.request
    settings = dataclasses.asdict(sample.sampling)
    settings['logit_bias'] = sorted(settings['logit_bias'].items())
    row_id = digest(files, dtype, request.tokens, request.prompt, settings)
    keys.append((request.index, sample.number, row_id))
  return keys


def digest(*parts) -> str:
  """16 hex digits that stand for `parts` (anything that JSON can hold)."""
  text = json.dumps(parts, sort_keys=True, default=list)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(path: str) -> list:
  """Name, size and time of a model's files: changes when it is replaced."""
  root = pathlib.Path(path).resolve()
  files = [root]
  if root.is_dir():
    files = [f for f in sorted(root.iterdir()) if f.suffix in _MODEL_FILES]
  stats = [(f.name, f.stat()) for f in files]
  return [str(root), *((n, s.st_size, s.st_mtime_ns) for n, s in stats)]


def open_output(path: str, keys: list[Key], *, fresh: bool = False) -> Output:
  """Opens `path` for the rows `keys`.

  Args:
    path: the file; missing folders above it are made.
    keys: every row that the run will write.
    fresh: start anew even if the file holds finished rows of these inputs.

  Raises:
    UserError: the path is a folder, or a file that this command did not write.
  """
  check_output(path)
  out = pathlib.Path(path)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.touch()
  except OSError as error:
    raise _not_writable(path, error.strerror) from None
  found, end = _read_keys(out)
  if fresh or not found <= set(keys):
    same = found <= set(keys)
    moved_to = None if same else _move_aside(out)
    out.write_bytes(b'')
    return Output(out, frozenset(), moved_to)
  os.truncate(out, end)
  return Output(out, frozenset(found))


def check_output(path: str) -> None:
  """Refuses a path at which no file can be written; makes nothing."""
  out = pathlib.Path(path)
  if out.is_dir():
    raise UserError(f'output={path!r} is a folder: name a .jsonl file')
  there = out.absolute()
  while not there.exists():
    there = there.parent
  if there != out.absolute() and not there.is_dir():
    raise _not_writable(path, os.strerror(errno.ENOTDIR))
  if not os.access(there, os.W_OK):
    raise _not_writable(path, os.strerror(errno.EACCES))


def _not_writable(path: str, why: str | None) -> UserError:
  return UserError(
    f'output={path!r}: cannot be written ({why}); name a file in a folder that '
    'you may write to'
  )


def _read_keys(path: pathlib.Path) -> tuple[set[Key], int]:
  """Keys of the complete rows and the byte after the last of them."""
  keys, end = set(), 0
  for number, line in enumerate(path.read_bytes().splitlines(True), 1):
    if not line.endswith(b'\n'):  # the run was stopped while it wrote
      break
    try:
      row = json.loads(line)
      keys.add((int(row['index']), int(row['sample']), str(row['id'])))
    except (ValueError, KeyError, TypeError):
      raise UserError(
        f'output={str(path)!r} exists, and its line {number} was not written '
        'by this command: name another file'
      ) from None
    end += len(line)
  return keys, end


def _move_aside(path: pathlib.Path) -> pathlib.Path:
  number = 1
  while (target := path.with_name(f'{path.name}.{number}')).exists():
    number += 1
  return path.rename(target)
