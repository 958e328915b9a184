"""Several processes: when they join, and that they are one run."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from llm import config_args
from llm.errors import UserError
from llm.parallel.distributed import initialize, is_writer
from llm.runs import report
from llm.tasks import run

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = '--xla_force_host_platform_device_count=2'
PROGRAM = """
import types, jax, numpy as np
from llm.parallel.distributed import any_process, initialize, is_writer, to_host
assert initialize() and initialize()  # the second time nothing happens
from llm.parallel.mesh import make_mesh
from llm.parallel.sharding import shard_batch
assert jax.device_count() == 4 and jax.local_device_count() == 2
mesh = make_mesh(types.SimpleNamespace(data=2, fsdp=2, tensor=1))
rows = np.arange(24.0, dtype=np.float32).reshape(8, 3)
batch = shard_batch({'x': rows}, mesh)
# Each process holds its own half of the rows, and no row twice.
own = sorted((s.index[0].start, s.data) for s in batch['x'].addressable_shards)
half = np.concatenate([x for _, x in own])
first = 4 * jax.process_index()
np.testing.assert_array_equal(half, rows[first : first + 4])
total = jax.jit(lambda b: (b['x'] ** 2).sum())(batch)
whole = to_host({'batch': batch, 'own': jax.numpy.arange(3)})
np.testing.assert_array_equal(whole['batch']['x'], rows)
np.testing.assert_array_equal(whole['own'], [0, 1, 2])
assert any_process(jax.process_index() == 1) and not any_process(False)
print(is_writer(), float(total))
"""


def run_two(*command):
  """Runs a command as two processes; returns their (stdout, stderr)."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, *command],
      cwd=ROOT,
      env=os.environ
      | {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {FLAGS}',
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
    done = [p.communicate(timeout=300) for p in processes]
  finally:
    for p in processes:
      p.kill()
  return [p.returncode for p in processes], done


def test_two_processes_are_one_run():
  codes, done = run_two('-c', PROGRAM)
  assert codes == [0, 0], done
  want = sum(i * i for i in range(24))
  lines = [out.splitlines()[-1] for out, _ in done]
  assert lines == [f'True {want:.1f}', f'False {want:.1f}']


def test_a_run_of_two_processes_is_that_of_one(tmp_path, monkeypatch):
  monkeypatch.setattr(report, 'plot_loss', lambda *args: None)  # slow
  (tmp_path / 'text.txt').write_text(
    '\n'.join(f'line {i}, and its square {i * i}.' for i in range(60))
  )
  shape = {'embed_dim': 32, 'hidden_dim': 16, 'num_layers': 1, 'num_heads': 2}
  shape |= {'num_kv_heads': 1, 'head_dim': 8}
  fields = {f'model.{name}': value for name, value in shape.items()} | {
    'tokenizer.path': 'bytes',
    'data.path': tmp_path / 'text.txt',
    'data.max_length': 32,
    'train.batch_size': 8,
    'train.steps': 2,
    'train.eval_every': 0,
    'train.checkpoint_every': 1,
    'optim.lr': 1e-2,
    'optim.schedule': 'constant',
    'optim.warmup_steps': 0,
  }
  args = [f'--config.{name}={value}' for name, value in fields.items()]
  codes, done = run_two(
    'launch.py',
    '--config=configs/pretrain.py',
    f'--workdir={tmp_path / "two"}',
    *args,
    '--config.mesh.data=2',
    '--config.mesh.fsdp=2',
    f'--config.export={tmp_path / "two_model"}',
  )
  assert codes == [0, 0], done
  config = config_args.load_config(str(ROOT / 'configs' / 'pretrain.py'))
  config_args.override_config(
    config, [*args, f'--config.export={tmp_path / "one_model"}']
  )
  run.run_task(config, str(tmp_path / 'one'))
  ours, theirs = (
    [json.loads(line) for line in path.read_text().splitlines()]
    for path in (tmp_path / n / 'metrics.jsonl' for n in ('two', 'one'))
  )
  assert [row['step'] for row in ours] == [1, 2]
  for mine, row in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(mine['loss'], row['loss'], rtol=1e-6)
  names = lambda folder: {path.name for path in folder.iterdir()}
  assert names(tmp_path / 'two') - {'loss.png'} == names(tmp_path / 'one')
  assert names(tmp_path / 'two' / 'checkpoints') == {'1', '2'}
  ours, theirs = (
    load_file(tmp_path / f'{name}_model' / 'model.safetensors')
    for name in ('two', 'one')
  )
  assert ours.keys() == theirs.keys()
  for name, weight in theirs.items():
    np.testing.assert_allclose(ours[name], weight, atol=1e-5, err_msg=name)


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
