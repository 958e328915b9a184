"""Imports point downwards only, as docs/architecture.md draws them."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'llm').rglob('*.py'))

# What a room may know besides itself and `llm.errors`. A room that is not
# listed may know every room but the ones at the top.
ALLOWED = {
  'models': set(),
  'losses': set(),
  'text': set(),
  'checkpoints': {'models', 'parallel'},
  'data': {'text'},
  'decode': {'models', 'losses'},
  'parallel': set(),
  'sweeps': {'config_args'},
  'train': {'decode', 'models'},
}
TOP = {'tasks', 'serve', 'sweeps'}
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
    if here in ALLOWED:
      assert parts[1] in ALLOWED[here], name
    elif here not in TOP:
      assert parts[1] not in TOP, name


def test_every_folder_is_a_package():
  # Without an __init__.py a folder is missing from what pip installs.
  folders = {path.parent for path in FILES}
  assert [f for f in folders if not (f / '__init__.py').exists()] == []
