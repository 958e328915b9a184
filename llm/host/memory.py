"""How glibc holds a program's memory: in huge pages, and kept once freed."""

from collections.abc import Mapping
import ctypes
import os
import sys

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
# Bytes. Larger blocks go back to the system as they are freed, and so does what
# is free beyond the second number: mallopt takes no larger one.
_LARGEST_KEPT, _MOST_KEPT = 2**30, 2**31 - 1

# Has the kernel's choice in [brackets]: huge pages never, for those who ask
# (madvise), or always.
_HUGE_PAGES = '/sys/kernel/mm/transparent_hugepage/enabled'
TUNABLES = 'GLIBC_TUNABLES'  # settings, separated by colons
_ASK = 'glibc.malloc.hugetlb'


def restart_with_huge_pages() -> None:
  """Starts this program anew, in the same process, with huge pages.

  A page of 4 KiB is found through a table in memory that a model's weights
  outgrow many times over, and each first touch of one is a fault. With pages of
  2 MiB a training step takes 0.95 of the time on a CPU, decoding one row 0.93,
  and less where memory is scattered (docs/running.md). glibc (2.35 and newer)
  reads the setting once, as a program starts. Call it first, and in the main
  program alone.

  Nothing happens where the kernel gives no huge pages on demand, and where
  GLIBC_TUNABLES has the setting already, be it off
  (`glibc.malloc.hugetlb=0`).
  """
  environ = with_huge_pages(os.environ)
  if environ == os.environ or not _on_demand():
    return
  os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def with_huge_pages(environ: Mapping[str, str]) -> dict[str, str]:
  """The environment in which glibc asks for huge pages, unless told not to."""
  tunables = environ.get(TUNABLES, '')
  if _ASK in tunables:
    return dict(environ)
  return {**environ, TUNABLES: f'{tunables}:{_ASK}=1'.lstrip(':')}


def _on_demand() -> bool:
  """Whether this kernel gives huge pages to those who ask."""
  try:
    with open(_HUGE_PAGES, encoding='ascii') as file:
      return '[madvise]' in file.read()
  except OSError:
    return False


def keep_freed_memory() -> bool:
  """Has glibc keep blocks of up to 1 GiB that are freed, for the next step.

  XLA:CPU takes the temporaries of a program as one block, each time it runs.
  By default glibc maps a block of that size anew and unmaps it afterwards, so
  that every step pays a page fault for each 4 KiB it touches: measured, a
  seventh of a training step on a CPU. Blocks are kept in the main arena only,
  which is why there is one for all threads.

  Call it before JAX starts its threads. The most that stays with the process is
  2 GiB.

  Returns:
    Whether this is glibc and all was set; elsewhere nothing changes.
  """
  if not sys.platform.startswith('linux'):
    return False
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:
    return False
  wanted = (
    (_ARENA_MAX, 1),
    (_MMAP_THRESHOLD, _LARGEST_KEPT),
    (_TRIM_THRESHOLD, _MOST_KEPT),
  )
  return all([mallopt(name, value) for name, value in wanted])
