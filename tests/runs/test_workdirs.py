"""One run at a time in a workdir, and no trace of one that was refused."""

import os
import pathlib
import signal
import subprocess
import sys

import ml_collections
import pytest

from llm.errors import RunError, UserError
from llm.tasks import run

ROOT = pathlib.Path(__file__).parents[2]
HOLD = """
import sys, time
from llm.runs import workdirs
with workdirs.hold(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""


def names(folder):
  return sorted(str(p.relative_to(folder)) for p in folder.rglob('*'))


def start(workdir, task):
  config = ml_collections.ConfigDict({'task': task, 'value': 1})
  run.run_task(config, str(workdir))


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path):
  workdir = tmp_path / 'run'
  with subprocess.Popen(
    [sys.executable, '-c', HOLD, str(workdir)],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    text=True,
  ) as other:
    try:
      assert other.stdout.readline() == 'held\n'
      before = names(workdir)
      with pytest.raises(UserError) as caught:
        start(workdir, lambda config, workdir: pytest.fail('it ran'))
      assert str(caught.value).startswith(
        f'--workdir={workdir}: another run is at work there (process '
        f'{other.pid} on '
      )
      assert names(workdir) == before
    finally:
      other.send_signal(signal.SIGKILL)
  done = []
  start(workdir, lambda config, workdir: done.append(workdir))
  assert done == [str(workdir)]
  assert {'config.json', 'run.json'} <= set(names(workdir))


def refuse(config, workdir):
  pathlib.Path(workdir, 'checkpoints').mkdir(exist_ok=True)
  raise UserError('value=1: no')


def test_a_refused_run_leaves_no_new_folder(tmp_path):
  with pytest.raises(UserError, match='value=1: no'):
    start(tmp_path / 'a' / 'b', refuse)
  assert names(tmp_path) == []
  (tmp_path / 'mine').mkdir()
  for workdir in (tmp_path / 'mine' / 'b', tmp_path / 'mine'):
    with pytest.raises(UserError):
      start(workdir, refuse)
    assert names(tmp_path) == ['mine']
  (tmp_path / 'file').write_text('x')
  with pytest.raises(UserError, match='file: is a file; name a folder'):
    start(tmp_path / 'file', refuse)


def test_results_and_the_records_of_others_stay(tmp_path):
  def refuse_late(config, workdir):
    pathlib.Path(workdir, 'metrics.jsonl').write_text('{}\n')
    raise UserError('too late')

  with pytest.raises(UserError):
    start(tmp_path / 'new', refuse_late)
  assert 'metrics.jsonl' in names(tmp_path / 'new')
  assert 'config.json' in names(tmp_path / 'new')

  def fail(config, workdir):
    raise RunError('diverged')

  with pytest.raises(RunError):
    start(tmp_path / 'failed', fail)
  assert 'config.json' in names(tmp_path / 'failed')
  path = tmp_path / 'failed' / 'config.json'
  before = path.read_bytes()
  config = ml_collections.ConfigDict({'task': refuse, 'value': 2})
  with pytest.raises(UserError):
    run.run_task(config, str(tmp_path / 'failed'))
  assert path.read_bytes() == before
