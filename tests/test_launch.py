"""The command line, in this process where nothing depends on a fresh one."""

import json
import os
import subprocess
import sys

import pytest

from llm import command
from tests.fixtures import ROOT

CONFIG = """
import ml_collections
from llm.config_args import parse_arg
from llm.errors import UserError

def task(config, workdir):
  if config.fail == 'user':
    raise UserError('steps=0: must be at least 1\\n(see above)')
  if config.fail == 'path':
    open('/no/such/file')
  if config.fail == 'interrupt':
    raise KeyboardInterrupt
  if config.fail == 'bug':
    raise ZeroDivisionError('a bug')
  print('steps', config.train.steps)

def get_config(arg=None):
  arg = parse_arg(arg, steps=2)
  return ml_collections.ConfigDict(
    {'task': task, 'fail': '', 'train': {'steps': arg.steps}})
"""


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / 'config.py'
  path.write_text(CONFIG)
  return path


def call(*args):
  return command.main(['launch.py', *map(str, args)])


def test_a_run_writes_its_records(config_file, tmp_path, capsys):
  workdir = tmp_path / 'a' / 'b'
  assert call(f'--config={config_file}:steps=5', f'--workdir={workdir}') == 0
  assert capsys.readouterr().out == 'steps 5\n'
  config = json.loads((workdir / 'config.json').read_text())
  assert config['train'] == {'steps': 5}
  assert config['task'].endswith('.task')
  run = json.loads((workdir / 'run.json').read_text())
  assert run['device_kind'] and run['versions']['jax']


def test_a_field_is_set_by_its_full_name(config_file, capsys):
  assert call('--config', config_file, '--config.train.steps=7') == 0
  assert capsys.readouterr().out == 'steps 7\n'


def test_help_names_the_flags_and_the_fields(config_file, capsys):
  assert call('--help', f'--config={config_file}') == 0
  out = capsys.readouterr().out
  assert '--workdir' in out and 'steps: 2' in out


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ([], 'no --config: name one'),
    (['--cofig=x.py'], 'unknown flag --cofig; did you mean --config?'),
    (['--config=missing.py'], "--config 'missing.py': no such file"),
    (['--config.train.steps=3'], '--config.train.steps=3 needs --config=FILE'),
    (['CONFIG', '--config.train.stpes=3'], 'mean --config.train.steps?'),
    (['CONFIG', '--config.foo.bar=1'], 'unknown field --config.foo.bar'),
    (['CONFIG', '--config.train.steps=abc'], 'takes a whole number'),
    (['CONFIG', '--wrkdir=x'], 'did you mean --workdir?'),
    (['CONFIG', 'x'], "unexpected argument 'x'"),
    (['CONFIG', '--report'], '--report rebuilds a sweep'),
    (['CONFIG', '--sweep=s.py'], 'a sweep names its own config'),
    (['CONFIG:stpes=3'], 'did you mean steps?'),
    (['CONFIG', '--config.fail=user'], 'steps=0: must be at least 1 (see'),
    (['CONFIG', '--config.fail=path'], '/no/such/file: No such file'),
  ],
)
def test_bad_input_is_one_line_and_status_2(args, message, config_file, capsys):
  args = [arg.replace('CONFIG', f'--config={config_file}') for arg in args]
  assert call(*args) == 2
  err = capsys.readouterr().err
  assert err.startswith('error: ') and err.count('\n') == 1
  assert message in err


def test_an_unknown_task_is_named(tmp_path, capsys):
  path = tmp_path / 'config.py'
  path.write_text(
    'import ml_collections\n'
    'def get_config():\n'
    "  return ml_collections.ConfigDict({'task': 'genrate'})\n"
  )
  assert call(f'--config={path}') == 2
  assert 'did you mean generate?' in capsys.readouterr().err
  assert call(f'--config={path}:smoke') == 2
  assert 'takes no argument' in capsys.readouterr().err


def test_an_interrupt_ends_with_130(config_file):
  assert call(f'--config={config_file}', '--config.fail=interrupt') == 130


def test_a_bug_keeps_its_traceback(config_file):
  with pytest.raises(ZeroDivisionError):
    call(f'--config={config_file}', '--config.fail=bug')


LAZY = """
import sys
import ml_collections

def task(config, workdir):
  import jax
  jax.jit(lambda x: x * 3 + 1)(2.0)
  heavy = {'matplotlib', 'optax', 'flax', 'orbax', 'torch', 'rich'}
  print(sorted(heavy & set(sys.modules)))

def get_config(arg=None):
  return ml_collections.ConfigDict({'task': task})
"""


def test_a_fresh_start_is_light_and_keeps_what_it_compiles(
  tmp_path, monkeypatch
):
  for name in list(os.environ):
    if name.startswith(('JAX_COMPILATION_CACHE', 'JAX_PERSISTENT_CACHE')):
      monkeypatch.delenv(name)
  monkeypatch.setenv('LLM_CACHE_DIR', str(tmp_path / 'cache'))
  path = tmp_path / 'config.py'
  path.write_text(LAZY)
  done = subprocess.run(
    [sys.executable, ROOT / 'launch.py', f'--config={path}'],
    capture_output=True,
    text=True,
    cwd=tmp_path,  # the project need not be the current folder
  )
  assert (done.returncode, done.stdout) == (0, '[]\n'), done.stderr
  assert any((tmp_path / 'cache' / 'xla').iterdir())
