"""What a step frees is there for the next one, without a page fault."""

import json
import subprocess
import sys

import pytest

# A thread of its own, as XLA has them: outside glibc's main arena.
_CODE = """
import ctypes, json, resource, threading
from llm.tasks.host_memory import keep_freed_memory
kept = keep_freed_memory() if {keep} else None
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
faults = []
def use():
  for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t({size})))
    ctypes.memset(block, 1, {size})
    libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=use)
thread.start()
thread.join()
print(json.dumps([kept, faults]))
"""


def _faults(keep, size):
  code = _CODE.format(keep=keep, size=size)
  run = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  return json.loads(run.stdout)


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc is on Linux')
def test_a_freed_block_is_used_again():
  size = 128 * 2**20
  kept, faults = _faults(keep=True, size=size)
  if not kept:
    pytest.skip('this C library has no such settings')
  _, fresh = _faults(keep=False, size=size)
  assert max(faults[1:]) < 32 < min(fresh[1:])  # 64 with huge pages
