"""Several processes: when they join, and that they are one run."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from llm.errors import UserError
from llm.parallel.distributed import initialize, is_writer

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import types, jax, numpy as np
from llm.parallel.distributed import initialize, is_writer
assert initialize() and initialize()  # the second time nothing happens
from llm.parallel.mesh import make_mesh
from llm.parallel.sharding import replicated, shard_batch
assert jax.device_count() == 4 and jax.local_device_count() == 2
mesh = make_mesh(types.SimpleNamespace(data=2, fsdp=2, tensor=1))
rows = np.arange(24.0, dtype=np.float32).reshape(8, 3)
batch = shard_batch({'x': rows}, mesh)
# Each process holds its own half of the rows, and no row twice.
own = sorted((s.index[0].start, s.data) for s in batch['x'].addressable_shards)
half = np.concatenate([x for _, x in own])
first = 4 * jax.process_index()
np.testing.assert_array_equal(half, rows[first : first + 4])
total = jax.jit(lambda b: (b['x'] ** 2).sum(), out_shardings=replicated(mesh))
print(is_writer(), float(total(batch)))
"""


def test_two_processes_are_one_run():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', PROGRAM],
      cwd=ROOT,
      env=os.environ
      | {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': str(i),
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    done = [p.communicate(timeout=120) for p in processes]
  finally:
    for p in processes:
      p.kill()
  assert [p.returncode for p in processes] == [0, 0], done
  want = sum(i * i for i in range(24))
  lines = [out.splitlines()[-1] for out, _ in done]
  assert lines == [f'True {want:.1f}', f'False {want:.1f}']


@pytest.mark.parametrize(
  'environ', ({}, {'SLURM_STEP_NUM_TASKS': '1', 'TPU_WORKER_HOSTNAMES': 'one'})
)
def test_one_process_needs_nothing(environ):
  assert not initialize(environ)
  assert is_writer()


def test_one_process_may_say_so():
  names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
  assert not initialize(dict(zip(names, ('host:1', '1', '0'), strict=True)))


@pytest.mark.parametrize(
  ('count', 'process', 'message'),
  (
    ('2', None, 'JAX_PROCESS_ID not set: a run of several processes needs'),
    ('2', '2', "JAX_PROCESS_ID='2', JAX_NUM_PROCESSES='2': use a number"),
    ('two', '0', "JAX_NUM_PROCESSES='two'"),
  ),
)
def test_wrong_variables_are_refused_by_name(count, process, message):
  environ = {'JAX_COORDINATOR_ADDRESS': 'h:1', 'JAX_NUM_PROCESSES': count}
  if process is not None:
    environ['JAX_PROCESS_ID'] = process
  with pytest.raises(UserError, match=message):
    initialize(environ)
