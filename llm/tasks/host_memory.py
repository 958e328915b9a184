"""What the host does with memory that a program has freed."""

import ctypes
import sys

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
# Bytes. Larger blocks go back to the system as they are freed, and so does what
# is free beyond the second number: mallopt takes no larger one.
_LARGEST_KEPT, _MOST_KEPT = 2**30, 2**31 - 1


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
