"""What all tests share: the CPU backend, and which folders are left out."""

import functools
import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from llm.parallel.targets import missing_compilers

ROOT = pathlib.Path(__file__).parents[1]
pytest_plugins = ('tests.fixtures',)

# Before anything imports jax. The tolerances of the tests are those of float32
# on a CPU; JAX_PLATFORMS in the environment says otherwise.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)
# Nearly all of the time that these tests take is that of tracing and compiling
# programs that then run for a moment. So they are compiled with few
# optimisations, in one piece, without the kernels of a library, and do not
# note which lines they come from.
# `JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS=` in the environment brings the
# programs that users run; .ci/run has tests/parity and tests/real run with
# those.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')
_xla_flags = [
  '--xla_cpu_parallel_codegen_split_count=1',
  '--xla_cpu_experimental_ynn_fusion_type=',
]
# Releases from 0.11 on end the process at this flag, which they do not know.
_jaxlib = importlib.metadata.version('jaxlib').split('.')
if tuple(map(int, _jaxlib[:2])) < (0, 11):
  _xla_flags.append('--xla_cpu_use_fusion_emitters=false')
os.environ.setdefault('XLA_FLAGS', ' '.join(_xla_flags))
# Tracing makes many objects and few of them in cycles.
gc.set_threshold(50_000)


def _left_out() -> dict[str, str]:
  """The folders that cannot run here, with what they need."""
  reasons = {}
  if not os.environ.get('LLM_DATA'):
    reasons['real'] = 'set LLM_DATA to a folder of real checkpoints and data'
  missing = [
    name
    for name in ('torch', 'transformers')
    if importlib.util.find_spec(name) is None
  ]
  if missing:
    reasons['parity'] = f'install the extra "parity" ({", ".join(missing)})'
  if missing := missing_compilers():
    reasons['aot'] = f'install the extra "aot" ({", ".join(missing)})'
  return reasons


def pytest_ignore_collect(collection_path, config):
  folder = collection_path.relative_to(ROOT).parts[1:2]
  return True if folder and folder[0] in _left_out() else None


def pytest_make_parametrize_id(val, argname):
  """Names a file by its argument: gzip's bytes hold the time of day."""
  return argname if isinstance(val, bytes) else None


def pytest_terminal_summary(terminalreporter):
  for folder, reason in _left_out().items():
    terminalreporter.write_line(f'not run: tests/{folder}: {reason}')


@pytest.fixture(scope='session', autouse=True)
def cache_folder(tmp_path_factory):
  """Keeps the caches of the user who runs the tests as they are."""
  folder = tmp_path_factory.mktemp('cache')
  os.environ['LLM_CACHE_DIR'] = str(folder)
  return folder


@pytest.fixture(scope='session', autouse=True)
def compiled_programs(tmp_path_factory):
  """One folder of compiled programs for all processes of this test run.

  Compiling is most of the time that the tests take. The folder is empty at
  first: nothing is kept from one run of the tests to the next.
  """
  import jax

  folder = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    folder = folder.parent  # what the workers have in common
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder / 'programs')
  jax.config.update('jax_compilation_cache_dir', str(folder / 'programs'))
  for name, value in (
    ('jax_persistent_cache_min_compile_time_secs', 0),
    ('jax_persistent_cache_min_entry_size_bytes', -1),
  ):
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)


@pytest.fixture(scope='session', autouse=True)
def lowering():
  """Lowers all programs of a process in one MLIR context.

  JAX makes a context for each program, and for a small program that is a
  quarter of its cost. The function is private, so it may be gone one day.
  """
  from jax._src.interpreters import mlir

  if hasattr(mlir, 'make_ir_context'):
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)


@pytest.fixture
def run_python(tmp_path):
  """Runs a program in a fresh process, on `devices` simulated CPU devices."""

  def run(code: str, devices: int = 1) -> str:
    flags = (
      f'{os.environ["XLA_FLAGS"]} '
      f'--xla_force_host_platform_device_count={devices}'
    )
    done = subprocess.run(
      [sys.executable, '-c', code],
      cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    # The compiler's warning that devices fetch whole arrays.
    assert 'Involuntary full remat' not in done.stderr, done.stderr
    return done.stdout

  return run
