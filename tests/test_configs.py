"""Every config file of the project: it resolves and its task exists."""

import ast
import pathlib

import pytest

from llm import config_args
from llm.errors import UserError
from llm.tasks.run import TASKS

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
EXPERIMENTS = sorted((ROOT / 'experiments').glob('*/config.py'))

pytestmark = pytest.mark.parametrize(
  'path', CONFIGS + EXPERIMENTS, ids=lambda p: str(p.relative_to(ROOT))
)


def test_it_resolves_to_a_locked_config_with_a_task(path):
  config = config_args.load_config(str(path))
  assert config.is_locked
  assert callable(config.task) or config.task in TASKS


def test_an_unknown_argument_is_refused(path):
  with pytest.raises(UserError, match='no_such_bundle'):
    config_args.load_config(f'{path}:no_such_bundle')


def test_its_docstring_has_the_command(path):
  text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
  assert f'--config={path.relative_to(ROOT)}' in text
