"""What a run writes: `config.json`, `run.json`, metrics and its result."""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
from typing import Any, Mapping

import jax
import ml_collections
import numpy as np

from llm.parallel import distributed

_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
  'sentencepiece',
  'tokenizers',
  'safetensors',
  'ml_collections',
)


def enable_compilation_cache() -> None:
  """Keeps compiled programs on disk, so that a second start is quick.

  The folder is JAX's own setting (`JAX_COMPILATION_CACHE_DIR`) where that is
  set, else `$LLM_CACHE_DIR/xla`, else `llm-jax/xla` in the user's cache
  folder. JAX's key covers its version, the backend and the program; nothing
  is ever evicted, and the folder may be deleted at any time.
  """
  if jax.config.jax_compilation_cache_dir is None:
    folder = os.path.join(cache_dir(), 'xla')
    jax.config.update('jax_compilation_cache_dir', folder)
  # By default only programs that took over a second are kept: on a CPU that
  # leaves out nearly all of the many that a first token waits for.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def prepare_workdir(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Writes `config.json` and `run.json` to the folder.

  `run.json` has the versions, the git commit of the code (null outside of a
  checkout; "+" appended where tracked files differ from it) and the devices.
  """
  if not distributed.is_writer():
    return
  write_json(os.path.join(workdir, 'config.json'), config.to_dict())
  devices = jax.devices()
  record = {
    'versions': {'python': platform.python_version()} | _versions(),
    'git_commit': git_commit(),
    'platform': devices[0].platform,
    'device_kind': devices[0].device_kind,
    'device_count': len(devices),
    'process_count': jax.process_count(),
    'machine': platform.machine(),
    'cpu_count': os.cpu_count(),
  }
  write_json(os.path.join(workdir, 'run.json'), record)


def append_metrics(workdir: str, row: Mapping[str, Any]) -> None:
  """Appends one object to `metrics.jsonl`; on disk when this returns.

  Values may be scalars of Python, NumPy or JAX. JSON has neither not-a-number
  nor infinity: both are written as null.
  """
  line = json.dumps(_to_json(row), allow_nan=False) + '\n'
  path = os.path.join(workdir, 'metrics.jsonl')
  with open(path, 'a', encoding='utf-8') as file:
    file.write(line)


def write_result(workdir: str, result: Mapping[str, Any]) -> None:
  """Writes `result.json`, the row that a sweep gathers from this run."""
  write_json(os.path.join(workdir, 'result.json'), result)


def write_json(path: str, value: Any) -> None:
  """Writes a JSON file whole or not at all; numbers as `append_metrics`."""
  partial = f'{path}.partial'
  with open(partial, 'w', encoding='utf-8') as file:
    json.dump(_to_json(value), file, indent=2, allow_nan=False)
    file.write('\n')
  os.replace(partial, path)


def git_commit() -> str | None:
  """Returns the commit of the checkout this file is in, or None."""
  root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))

  def git(*args: str) -> str:
    return subprocess.run(
      ('git', '-C', root, *args), capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    # An installed package may lie inside of somebody else's checkout.
    git('ls-files', '--error-unmatch', os.path.abspath(__file__))
    commit = git('rev-parse', 'HEAD')
    changed = git('status', '--porcelain', '--untracked-files=no')
  except (OSError, subprocess.CalledProcessError):
    return None
  return commit + ('+' if changed else '')


def cache_dir() -> str:
  """`$LLM_CACHE_DIR`, else `llm-jax` in the user's cache folder."""
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return os.environ.get('LLM_CACHE_DIR') or os.path.join(home, 'llm-jax')


def _versions() -> dict[str, str | None]:
  versions = {}
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = None
  return versions


def _to_json(value: Any) -> Any:
  """The value as the types that JSON has."""
  if isinstance(value, Mapping):
    return {k: _to_json(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_to_json(v) for v in value]
  if isinstance(value, (np.ndarray, np.generic, jax.Array)):
    return _to_json(np.asarray(value).tolist())
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if callable(value):
    return f'{value.__module__}.{value.__qualname__}'
  raise TypeError(f'cannot write a {type(value).__name__} as JSON: {value!r}')
