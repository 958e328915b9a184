"""Programs are compiled once, in processes whose reports the tests read."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from llm.parallel import targets

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def _programs(names, shape, targets):
  return [(name, shape, target) for name in names for target in targets]


# Every program of a small shape, and those of a real one that two cores compile
# within four minutes. docs/compilers.md has figures of the others.
SMALL = _programs(
  ('prefill', 'decode', 'score', 'sft', 'dpo', 'grpo'),
  'small',
  ('h100', 'v5e:4'),
)
LARGE = [
  *_programs(('prefill', 'decode'), '1b', ('h100', 'v5e')),
  *_programs(('score', 'sft', 'dpo', 'grpo'), '1b', ('h100',)),
]


@pytest.fixture(scope='session')
def reports():
  """{(program, shape, target): the row that compile.py prints}."""
  keys = SMALL + LARGE
  # A process for each compiler: two cores have as much to do with either.
  runs = [
    _start([key for key in keys if key[2].split(':')[0] in kinds])
    for kinds in (targets.TPUS, targets.GPUS)
  ]
  rows = []
  for run in runs:
    out, errors = run.communicate()
    assert run.returncode == 0, errors[-4000:]
    rows += [json.loads(line) for line in out.splitlines()]
  return {(r['program'], r['shape'], r['target']): r for r in rows}


def _start(keys):
  return subprocess.Popen(
    [sys.executable, HERE / 'compile.py', *map(':'.join, keys)],
    cwd=ROOT,
    # The programs that users run, and not those of tests/conftest.py.
    env={
      **os.environ,
      'PYTHONPATH': str(ROOT),
      'XLA_FLAGS': '',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '0',
      'JAX_ENABLE_COMPILATION_CACHE': 'false',
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
