"""All programs are compiled in one process, whose reports the tests read."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def _programs(names, shape, targets):
  return [(name, shape, target) for name in names for target in targets]


# Every program of a small shape, and of a real one those that docs/compilers.md
# gives figures of.
SMALL = _programs(
  ('prefill', 'decode', 'score', 'sft', 'dpo', 'grpo'),
  'small',
  ('h100', 'v5e:4'),
)
LARGE = _programs(('prefill', 'decode'), '1b', ('h100', 'v5e'))


@pytest.fixture(scope='session')
def reports():
  """{(program, shape, target): the row that compile.py prints}."""
  done = subprocess.run(
    [sys.executable, HERE / 'compile.py', *map(':'.join, SMALL + LARGE)],
    cwd=ROOT,
    # The programs that users run, and not those of tests/conftest.py.
    env={
      **os.environ,
      'PYTHONPATH': str(ROOT),
      'XLA_FLAGS': '',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '0',
      'JAX_ENABLE_COMPILATION_CACHE': 'false',
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  return {(r['program'], r['shape'], r['target']): r for r in rows}
