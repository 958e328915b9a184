"""The folder of a run: one run at a time, and no trace of a refused one."""

import contextlib
import fcntl
import os
import pathlib
from typing import Iterator

from llm.errors import UserError
from llm.parallel.distributed import any_process, is_writer

RECORDS = ('config.json', 'run.json')
LOCK = '.lock'


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[None]:
  """Makes the folder and keeps every other run out of it.

  The lock is the kernel's, on the file `.lock`: it ends with the process,
  however that ends. Where the body raises a `UserError`, the folder is put back
  as it was, unless there are results by then: a mistyped command must not
  change what is known of the run that is there.

  Of several processes the first one does all of this.

  Raises:
    UserError: in all processes: another run holds the folder, or it is a file.
  """
  if os.path.lexists(workdir) and not os.path.isdir(workdir):
    raise UserError(f'--workdir={workdir}: is a file; name a folder')
  if not is_writer():
    _refuse_if(any_process(False), workdir)
    yield
    return
  made = _make_folders(workdir)
  names = set(os.listdir(workdir))
  with open(os.path.join(workdir, LOCK), 'a+', encoding='utf-8') as lock:
    _refuse_if(any_process(not _take(lock)), workdir)
    records = _read_records(workdir)
    try:
      yield
    except UserError:
      _put_back(workdir, records, names, made)
      raise


def _refuse_if(taken: bool, workdir: str) -> None:
  if taken:
    raise UserError(
      f'--workdir={workdir}: another run is at work there '
      f'({_holder(workdir)}); wait for its end, or name another folder'
    )


def _take(lock) -> bool:
  """Locks an open file and writes down by whom; False if another run has it."""
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:  # a file system without locks
    return True
  lock.truncate(0)
  lock.write(f'process {os.getpid()} on {os.uname().nodename}')
  lock.flush()
  return True


def _holder(workdir: str) -> str:
  with contextlib.suppress(OSError):
    return pathlib.Path(workdir, LOCK).read_text(encoding='utf-8')
  return 'unknown'


def _make_folders(workdir: str) -> list[str]:
  """Makes the folder; returns what was not there before, innermost first."""
  made, folder = [], os.path.abspath(workdir)
  while not os.path.lexists(folder):
    made.append(folder)
    folder = os.path.dirname(folder)
  os.makedirs(workdir, exist_ok=True)
  return made


def _read_records(workdir: str) -> dict[str, bytes]:
  before = {}
  for name in RECORDS:
    with contextlib.suppress(FileNotFoundError):
      before[name] = pathlib.Path(workdir, name).read_bytes()
  return before


def _put_back(
  workdir: str, records: dict[str, bytes], names: set[str], made: list[str]
) -> None:
  """Undoes what a refused run has done to the folder.

  Args:
    workdir: the folder.
    records: what was in its records.
    names: what was in it.
    made: folders that were not there, innermost first.
  """
  for name, content in records.items():
    pathlib.Path(workdir, name).write_bytes(content)
  new = [pathlib.Path(workdir, n) for n in {*os.listdir(workdir)} - names]
  ours = [path for path in new if path.name in (*RECORDS, LOCK)]
  others = [path for path in new if path not in ours]
  inside = [path for folder in others for path in folder.rglob('*')]
  if not all(path.is_dir() for path in (*others, *inside)):
    return  # it had begun, and these are results
  for path in ours:
    path.unlink()
  for folder in [*sorted(others + inside, reverse=True), *made]:
    with contextlib.suppress(OSError):  # another run has begun in it
      os.rmdir(folder)
