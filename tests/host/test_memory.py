"""Memory in huge pages, and without a page fault once it was used."""

import json
import os
import pathlib
import platform
import subprocess
import sys

import pytest

from llm.host import memory as host_memory

_ROOT = pathlib.Path(__file__).parents[2]

# A thread of its own, as XLA has them: outside glibc's main arena.
_CODE = """
import ctypes, json, resource, threading
from llm.host.memory import keep_freed_memory
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


def test_the_environment_asks_for_huge_pages_unless_it_says_something_of_them():
  ask = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
  assert host_memory.with_huge_pages({'A': 'b'}) == {'A': 'b'} | ask
  assert host_memory.with_huge_pages(ask) == ask
  off = {'GLIBC_TUNABLES': 'x=1:glibc.malloc.hugetlb=0'}
  assert host_memory.with_huge_pages(off) == off
  other = {'GLIBC_TUNABLES': 'glibc.malloc.perturb=1'}
  assert host_memory.with_huge_pages(other) == {
    'GLIBC_TUNABLES': 'glibc.malloc.perturb=1:glibc.malloc.hugetlb=1'
  }


_RESTARTED = """
import json, os, sys
from llm.host import memory as host_memory
host_memory._HUGE_PAGES = {modes!r}
host_memory.restart_with_huge_pages()
tunables = os.environ.get('GLIBC_TUNABLES')
print(json.dumps([tunables, sys.argv, sys.flags.utf8_mode, os.getpid()]))
"""


@pytest.mark.parametrize(
  ('modes', 'given', 'expected'),
  [
    ('always [madvise] never', None, 'glibc.malloc.hugetlb=1'),
    (
      'always [madvise] never',
      'glibc.malloc.hugetlb=0',
      'glibc.malloc.hugetlb=0',
    ),
    ('always madvise [never]', None, None),
    ('[always] madvise never', None, None),
    (None, None, None),
  ],
)
def test_a_program_starts_anew_where_huge_pages_are_to_be_asked_for(
  tmp_path, modes, given, expected
):
  path, script = tmp_path / 'enabled', tmp_path / 'script.py'
  if modes:
    path.write_text(modes)
  script.write_text(_RESTARTED.format(modes=str(path)))
  environ = dict(os.environ, PYTHONPATH=str(_ROOT))
  environ.pop('GLIBC_TUNABLES', None)
  if given:
    environ['GLIBC_TUNABLES'] = given
  with subprocess.Popen(
    [sys.executable, '-X', 'utf8', str(script), '--a', 'b c'],
    env=environ,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    found = json.loads(process.communicate()[0])
  # With the same arguments and options, in the same process.
  assert found == [expected, [str(script), '--a', 'b c'], 1, process.pid]


_ALLOCATED = """
import re
import jax
x = jax.numpy.ones(2**24)
x.block_until_ready()
memory = open('/proc/self/smaps_rollup').read()
print(re.search('AnonHugePages: +([0-9]+)', memory)[1])
"""


def _gives_huge_pages():
  library, version = platform.libc_ver()
  new = library == 'glibc' and [*map(int, version.split('.'))] >= [2, 35]
  return new and host_memory._on_demand()


@pytest.mark.skipif(not _gives_huge_pages(), reason='no huge pages on demand')
def test_arrays_lie_in_huge_pages():
  environ = dict(os.environ)
  environ.pop('GLIBC_TUNABLES', None)
  environ = host_memory.with_huge_pages(environ)
  done = subprocess.run(
    [sys.executable, '-c', _ALLOCATED],
    env=environ,
    capture_output=True,
    text=True,
    check=True,
  )
  # The kernel gives small ones where it finds no whole one: not all, then.
  assert int(done.stdout) * 1024 > 2**25
