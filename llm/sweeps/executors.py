"""Running the processes of a sweep on this machine.

A run's state is on disk, so that a sweep may be killed at any moment: its
folder holds `log.txt` and what its task writes, and `DONE` once all of that is
complete. A folder without `DONE` is what a killed or failed run left behind:
it is emptied before the run starts again.
"""

import contextlib
import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import time
from typing import Callable, Iterator, Sequence

WAITING, RUNNING, DONE, FAILED = 'waiting', 'running', 'done', 'failed'
SKIPPED = 'done before'

_POLL_S = 0.05
_TAIL_BYTES = 1 << 16
_GRACE_S = 5.0  # between asking a process to end and ending it


@dataclasses.dataclass
class Run:
  """One process of a sweep. Times are seconds; `state` is one of the above."""

  id: str
  overrides: dict
  workdir: str
  command: Sequence[str]
  state: str = WAITING
  started: float = 0.0
  wall_s: float = 0.0
  why: str = ''  # of a failure

  @property
  def log_path(self) -> str:
    return os.path.join(self.workdir, 'log.txt')

  @property
  def result_path(self) -> str:
    return os.path.join(self.workdir, 'result.json')

  @property
  def done_path(self) -> str:
    return os.path.join(self.workdir, 'DONE')


def run_local(
  runs: Sequence[Run],
  parallel: int,
  on_change: Callable[[Run | None], None],
) -> None:
  """Runs all that are not done yet, up to `parallel` processes at a time.

  A failed run does not stop the others. Whatever ends this function early
  (an interrupt, a termination signal) also ends the running processes.

  Args:
    runs: updated in place.
    parallel: processes at a time.
    on_change: called with a run whose state has changed, and a few times a
      second with None.
  """
  for run in runs:
    if os.path.exists(run.done_path):
      run.state = SKIPPED
      on_change(run)
  waiting = [run for run in runs if run.state == WAITING]
  running: list[tuple[Run, subprocess.Popen]] = []
  with _terminate_as_interrupt():
    try:
      while waiting or running:
        while waiting and len(running) < parallel:
          run = waiting.pop(0)
          running.append((run, _start(run)))
          on_change(run)
        time.sleep(_POLL_S)
        for run, process in tuple(running):
          run.wall_s = time.monotonic() - run.started
          if process.poll() is not None:
            running.remove((run, process))
            _finish(run, process.returncode)
            on_change(run)
        on_change(None)
    finally:
      _end([process for _, process in running])


@contextlib.contextmanager
def locked(folder: str, on_wait: Callable[[], None]) -> Iterator[None]:
  """Holds the folder's lock, waiting for whoever has it.

  The processes of a sweep inherit the lock. So a sweep that starts again after
  a kill waits for the runs that outlived it, and two sweeps never write to one
  folder.
  """
  os.makedirs(folder, exist_ok=True)
  with open(os.path.join(folder, '.lock'), 'w') as file:
    os.set_inheritable(file.fileno(), True)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      on_wait()
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def tail(path: str, lines: int = 20) -> list[str]:
  """Returns the last lines of a text file; none where there is no file."""
  try:
    with open(path, 'rb') as file:
      file.seek(max(0, os.path.getsize(path) - _TAIL_BYTES))
      return file.read().decode(errors='replace').splitlines()[-lines:]
  except FileNotFoundError:
    return []


def _start(run: Run) -> subprocess.Popen:
  shutil.rmtree(run.workdir, ignore_errors=True)
  os.makedirs(run.workdir)
  run.state, run.started = RUNNING, time.monotonic()
  with open(run.log_path, 'wb') as log:
    return subprocess.Popen(
      run.command,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      env=os.environ | {'PYTHONUNBUFFERED': '1'},  # the log keeps up
      close_fds=False,  # hands the lock on
      start_new_session=True,  # the terminal's Ctrl-C reaches the sweep alone
    )


def _finish(run: Run, status: int) -> None:
  """Judges a run whose process has ended, and marks it where it is done."""
  run.state = FAILED
  if status < 0:
    run.why = f'ended by {signal.Signals(-status).name}'
  elif status:
    run.why = f'exit status {status}'
  elif not os.path.exists(run.result_path):
    run.why = 'its task wrote no result.json'
  else:
    run.state = DONE
    with open(run.done_path, 'w') as file:
      file.write(f'{run.wall_s:.3f}\n')


def _end(processes: Sequence[subprocess.Popen]) -> None:
  """Ends processes and their children: first SIGTERM, then SIGKILL."""
  for process in processes:
    _signal(process, signal.SIGTERM)
  deadline = time.monotonic() + _GRACE_S
  for process in processes:
    try:
      process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      _signal(process, signal.SIGKILL)
      process.wait()


def _signal(process: subprocess.Popen, number: int) -> None:
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, number)


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
  """Lets a termination signal unwind the stack as Ctrl-C does."""

  def interrupt(number, frame):
    raise KeyboardInterrupt

  before = signal.signal(signal.SIGTERM, interrupt)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
