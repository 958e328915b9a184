"""Systems that take turns, each in a process of its own that sleeps in between.

The measuring process writes a request, a line of JSON, to the other's stdin and
reads the reply from its stdout.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from llm.errors import UserError
from llm.host import memory as host_memory

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def pages(name: str) -> tuple[str, bool]:
  """A system's name without `_huge_pages` or `_small_pages`, and which it has.

  Without either, a system has the memory of its users: 'ours' has huge pages,
  which `launch.py` turns on, the others what they get by default.
  """
  for suffix, huge in (('_huge_pages', True), ('_small_pages', False)):
    if name.endswith(suffix):
      return name.removesuffix(suffix), huge
  return name, name == 'ours'


def check_systems(
  systems: Sequence[str], needs: Mapping[str, str | None]
) -> None:
  """Refuses systems that cannot be measured.

  Args:
    systems: names, as `pages` takes them.
    needs: the package that each known system needs, or None.

  Raises:
    UserError: an unknown one, one that cannot run here, or ours is missing.
  """
  for name in systems:
    system, _ = pages(name)
    if system not in needs:
      raise UserError(
        f'systems has {name!r}: use some of {", ".join(needs)}, with '
        '_huge_pages or _small_pages behind it for the other kind of memory'
      )
    package = needs[system]
    if package and importlib.util.find_spec(package) is None:
      raise UserError(
        f'systems has {name!r}, and {package} is not installed: install the '
        "extra 'parity', or leave it out"
      )
  if 'ours' not in systems:
    raise UserError(f"systems={systems}: 'ours' must be one of them")


class Worker:
  """The other end of `python -m MODULE SYSTEM ...`; close it.

  Args:
    module: whose process answers.
    arguments: of its command line; the first names the system (see `pages`).
    threads: of torch and others; they make one per core unless told otherwise.
  """

  def __init__(self, module: str, arguments: list[str], threads: int):
    self._name = ' '.join([module, *arguments[:1]])
    system, huge_pages = pages(arguments[0])
    environ = dict(os.environ, OMP_NUM_THREADS=str(threads))
    environ.pop(host_memory.TUNABLES, None)
    if huge_pages:
      environ = host_memory.with_huge_pages(environ)
    self._process = subprocess.Popen(
      [sys.executable, '-m', module, system, *arguments[1:]],
      cwd=ROOT,
      env=environ,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def ask(self, **request: Any) -> dict[str, Any]:
    """Sends a request; returns the reply.

    Raises:
      RuntimeError: the process has ended; its stderr says why.
    """
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps(request) + '\n')
      self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      status = self._process.wait()
      raise RuntimeError(f'{self._name} ended with exit status {status}')
    return json.loads(line)

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()


class Requests:
  """The worker's end: requests that arrive, and their replies."""

  def __init__(self):
    # Libraries may print to stdout; it is kept for the replies.
    self._answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

  def __iter__(self) -> Iterator[dict[str, Any]]:
    return map(json.loads, sys.stdin)

  def answer(self, **values: Any) -> None:
    """Replies to the newest request."""
    self._answers.write(json.dumps(values) + '\n')
    self._answers.flush()


def take_turns(
  workers: dict[str, Worker], repetitions: int, **request: Any
) -> dict[str, list[dict[str, Any]]]:
  """The replies of each system to the same request, in order.

  The order of the systems shifts by one in each repetition, so that none of
  them always runs after the same other one.
  """
  answers = {name: [] for name in workers}
  names = list(workers)
  for repetition in range(repetitions):
    shift = repetition % len(names)
    for name in names[shift:] + names[:shift]:
      began = time.perf_counter()
      answers[name].append(workers[name].ask(**request))
      took = time.perf_counter() - began
      print(f'{repetition + 1}/{repetitions} {name}: {took:.2f} s', flush=True)
  return answers


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
  """How many times as fast 'ours' is as the fastest other, by paired turns.

  Returns:
    `median`, `least` and `most`; {} where there is no other system.
  """
  others = [seconds[name] for name in seconds if name != 'ours']
  if not others:
    return {}
  pairs = [
    min(theirs) / ours
    for ours, *theirs in zip(seconds['ours'], *others, strict=True)
  ]
  return {
    'median': statistics.median(pairs),
    'least': min(pairs),
    'most': max(pairs),
  }
