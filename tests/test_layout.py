"""Imports point downwards only, as docs/architecture.md draws them."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'llm').rglob('*.py'))

# The rooms from the bottom up, and what each may import besides itself and
# `llm.errors`.
ALLOWED = {
  'errors': set(),
  'buckets': set(),
  'config_args': set(),
  'backend': set(),
  'models': {'backend'},
  'losses': {'backend'},
  'text': set(),
  'parallel': set(),
  'train': set(),
  'host': {'models'},
  'data': {'buckets', 'text'},
  'checkpoints': {'models', 'parallel', 'text'},
  'decode': {'buckets', 'losses', 'models'},
  'engine': {'checkpoints', 'config_args', 'decode', 'host', 'models', 'text'},
  'rewards': {
    'buckets', 'checkpoints', 'data', 'decode', 'losses', 'models', 'text',
  },
  'preview': {'buckets', 'data', 'host', 'text'},
  'runs': {
    'checkpoints', 'data', 'decode', 'engine', 'host', 'models', 'parallel',
    'preview', 'text', 'train',
  },
  'align': {
    'checkpoints', 'data', 'decode', 'host', 'losses', 'models', 'parallel',
    'rewards', 'runs', 'text', 'train',
  },
  'rl': {
    'align', 'data', 'decode', 'losses', 'models', 'parallel', 'rewards',
    'runs', 'text', 'train',
  },
  'evals': {'checkpoints', 'data', 'engine', 'host', 'models', 'runs'},
  'sweeps': {'config_args', 'evals'},
  'api': {'checkpoints', 'decode', 'engine', 'models', 'text'},
  'tasks': {
    'align', 'checkpoints', 'config_args', 'data', 'decode', 'engine', 'evals',
    'host', 'losses', 'models', 'parallel', 'preview', 'rewards', 'rl', 'runs',
    'text', 'train',
  },
  'command': {'config_args', 'sweeps', 'tasks'},
  'start': {'command', 'host'},
  '__init__': {'api'},
}  # fmt: skip
# Of the extras: a plain installation has none of them.
EXTRAS = {'torch', 'transformers', 'trl', 'peft', 'gguf', 'llama_cpp', 'pytest'}


def imports(path):
  """Yields every imported module's full name, lazy imports too."""
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def room(path):
  return path.relative_to(ROOT / 'llm').parts[0].removesuffix('.py')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
  here = room(path)
  for name in imports(path):
    parts = name.split('.')
    assert parts[0] not in EXTRAS, name
    if name.startswith('flax.linen'):
      assert here == 'models', f'{name}: Linen lives in llm/models only'
    if parts[0] != 'llm' or parts[1] in (here, 'errors'):
      continue
    assert parts[1] in ALLOWED[here], name


def test_rooms_stand_above_what_they_import():
  order = list(ALLOWED)
  for name, below in ALLOWED.items():
    assert all(order.index(other) < order.index(name) for other in below), name


def test_every_folder_is_a_package():
  # Without an __init__.py a folder is missing from what pip installs.
  folders = {path.parent for path in FILES}
  assert [f for f in folders if not (f / '__init__.py').exists()] == []
