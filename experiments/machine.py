"""What the measurements of all experiments say about the machine."""

from collections.abc import Sequence
import importlib.metadata
import os
import platform


def describe() -> dict[str, str | int | float]:
  """The processor, its cores, and how busy it is with other work.

  `load` is the number of processes that wanted a core, averaged over the last
  minute: before a measurement on a quiet machine it is below 1.
  """
  load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else -1.0
  return {'cpu': _cpu_name(), 'cores': _cores(), 'load': round(load, 2)}


def versions(packages: Sequence[str]) -> dict[str, str | None]:
  """The version of each package; None where it is not installed."""
  found = {}
  for package in packages:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = None
  return found


def use_cores(count: int) -> None:
  """Keeps this process on its first `count` cores; call before JAX starts.

  XLA makes as many threads as the process has cores and has no option for
  fewer.
  """
  if hasattr(os, 'sched_setaffinity'):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:count])


def _cores() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _cpu_name() -> str:
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      for line in file:
        if line.startswith('model name'):
          return ' '.join(line.split(':', 1)[1].split())
  except OSError:
    pass
  return platform.processor() or platform.machine()
