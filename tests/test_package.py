"""What `pip install .` makes of the project, in a folder of its own."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.fixtures import ROOT

BUILD = 'from setuptools import build_meta; build_meta.build_sdist("dist")'


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """The folder of an installation, made from the source distribution."""
  copy = tmp_path_factory.mktemp('copy')  # builds leave their folders behind
  for name in ('llm', 'configs'):
    ignore = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / name, copy / name, ignore=ignore)
  for name in ('LICENSE', 'MANIFEST.in', 'README.md', 'constraints.txt'):
    shutil.copy(ROOT / name, copy)
  for name in ('pyproject.toml', 'setup.py'):
    shutil.copy(ROOT / name, copy)
  call(sys.executable, '-c', BUILD, cwd=copy)
  (source,) = (copy / 'dist').iterdir()
  folder = tmp_path_factory.mktemp('site')
  options = ['--quiet', '--no-deps', '--no-build-isolation', '--no-index']
  options += ['--no-compile', '--target', folder]
  call(sys.executable, '-m', 'pip', 'install', *options, source, cwd=copy)
  return folder


def call(*command, **options):
  done = subprocess.run(command, capture_output=True, text=True, **options)
  assert done.returncode == 0, done.stderr
  return done.stdout


def files(folder):
  found = folder.rglob('*')
  return {
    str(path.relative_to(folder))
    for path in found
    if path.is_file() and '__pycache__' not in path.parts
  }


def test_it_has_all_files_and_the_configs_inside(site):
  inside = {f'configs/{name}' for name in files(ROOT / 'configs')}
  assert files(site / 'llm') == files(ROOT / 'llm') | inside
  assert {path.name for path in site.iterdir() if path.is_dir()} == {
    'bin',
    'llm',
    next(site.glob('llm_jax-*.dist-info')).name,
  }


def test_its_metadata(site):
  (found,) = importlib.metadata.distributions(path=[str(site)])
  about = found.metadata
  assert about['Name'] == 'llm-jax' and about['Requires-Python'] == '>=3.11'
  assert about['Home-page'].startswith('https://')
  assert found.read_text('METADATA').endswith((ROOT / 'README.md').read_text())
  assert any(file.name == 'LICENSE' for file in found.files)
  # What training alone imports is an extra.
  core = [line for line in found.requires if 'extra ==' not in line]
  train = [line for line in found.requires if 'extra == "train"' in line]
  assert not any(line.startswith(('grain', 'pyarrow')) for line in core)
  assert any(line.startswith('grain') for line in train)


def test_the_command_finds_the_configs_from_any_folder(site, tmp_path):
  own = tmp_path / 'generate.py'
  own.write_text(
    'import ml_collections\n'
    'def get_config(arg=None):\n'
    "  return ml_collections.ConfigDict({'mine': arg or 'x'})\n"
  )
  environ = os.environ | {'PYTHONPATH': str(site)}
  command = site / 'bin' / 'llm-jax'

  def show(*args):
    return call(command, *args, '--help', cwd=tmp_path, env=environ)

  assert '--workdir' in show()
  text = show('--config=generate')
  assert 'prompts_file' in text and 'mine: ' not in text
  assert 'mine: x' in show('--config=generate.py')
  assert 'mine: seven' in show(f'--config={own}:seven')
  assert 'task: quickstart' in show('--config=quickstart:smoke')
  where = 'import llm, pathlib; print(pathlib.Path(llm.__file__).parent)'
  where = call(sys.executable, '-c', where, cwd=tmp_path, env=environ)
  assert pathlib.Path(where.strip()) == site / 'llm'
