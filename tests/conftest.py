"""What all tests share: the CPU backend, and which folders are left out."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Before anything imports jax. The tolerances of the tests are those of float32
# on a CPU; JAX_PLATFORMS in the environment says otherwise.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)


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
  return reasons


def pytest_ignore_collect(collection_path, config):
  folder = collection_path.relative_to(ROOT).parts[1:2]
  return True if folder and folder[0] in _left_out() else None


def pytest_terminal_summary(terminalreporter):
  for folder, reason in _left_out().items():
    terminalreporter.write_line(f'not run: tests/{folder}: {reason}')


@pytest.fixture(scope='session', autouse=True)
def cache_folder(tmp_path_factory):
  """Keeps the caches of the user who runs the tests as they are."""
  folder = tmp_path_factory.mktemp('cache')
  os.environ['LLM_CACHE_DIR'] = str(folder)
  return folder


@pytest.fixture
def run_python(tmp_path):
  """Runs a program in a fresh process, on `devices` simulated CPU devices."""

  def run(code: str, devices: int = 1) -> str:
    flag = f'--xla_force_host_platform_device_count={devices}'
    done = subprocess.run(
      [sys.executable, '-c', code],
      cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flag},
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  return run
