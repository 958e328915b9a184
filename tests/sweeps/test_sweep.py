"""`launch.py --sweep` from end to end, with a config of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest

from llm import command
from tests.fixtures import ROOT

LAUNCH = str(ROOT / 'launch.py')

CONFIG = """
import os, time
import ml_collections

def task(config, workdir):
  from llm.runs import outputs
  print('x is', config.x)
  if config.x == 3:
    raise RuntimeError('boom')
  if config.x == 4 and not os.path.exists(config.gate):
    open(config.gate, 'w').close()
    time.sleep(60)
  outputs.write_result(workdir, {'y': 10.0 * config.x + config.seed})

def get_config(arg=None):
  return ml_collections.ConfigDict(
    {'task': task, 'x': 0, 'seed': 0, 'gate': ''})
"""

ANALYZE = """
def analyze(csv_path, out_dir):
  from llm.sweeps import report
  total = sum(row['y'] for row in report.read_csv(csv_path))
  with open(out_dir + '/figure.txt', 'w') as file:
    file.write(str(total))
"""


@pytest.fixture
def experiment(tmp_path):
  """Writes an experiment whose sweep() has the given body."""
  folder = tmp_path / 'experiment'
  folder.mkdir()
  (folder / 'config.py').write_text(CONFIG)
  (folder / 'analyze.py').write_text(ANALYZE)

  def write(*overrides):
    (folder / 'sweep.py').write_text(
      f'config = {str(folder / "config.py")!r}\n'
      f'parallel = 2\n'
      f'def sweep():\n  yield from {list(overrides)!r}\n'
    )
    return folder

  return write


def call(folder, *args):
  return command.main([LAUNCH, f'--sweep={folder}/sweep.py', *args])


def test_runs_report_and_rebuild(experiment, capsys):
  folder = experiment({'x': 1, 'seed': 0}, {'x': 1, 'seed': 1}, {'x': 3})
  assert call(folder) == 1  # one failed, the others finished
  out = capsys.readouterr().out
  assert '(exit status 1)' in out and 'RuntimeError: boom' in out
  results = folder / 'results'
  lines = (results / 'results.csv').read_text().splitlines()
  assert lines[0] == 'run,config.x,config.seed,y,wall_s'
  assert [line.split(',')[-3:-1] for line in lines[1:]] == [
    ['0', '10.0'],
    ['1', '11.0'],
  ]
  table = (results / 'table.md').read_text()
  assert '| 1 | 2 | 10.5 ± 6.4 |' in table
  assert (results / 'figure.txt').read_text() == '21.0'

  # What is done is not run again, and a sweep that shrinks reports on less.
  experiment({'x': 1, 'seed': 1})
  assert call(folder) == 0
  assert 'done before' in capsys.readouterr().out
  assert (results / 'figure.txt').read_text() == '11.0'

  (results / 'results.csv').write_text('run,config.x,y,wall_s\na,1,2.5,1\n')
  os.rename(results / 'runs', results / 'elsewhere')
  assert call(folder, '--report') == 0
  assert (results / 'figure.txt').read_text() == '2.5'
  # A run of the sweep that the csv does not have is named.
  assert 'not in results.csv: seed=1,x=1,' in capsys.readouterr().out
  assert not (results / 'runs').exists()


def test_a_killed_sweep_goes_on_where_it_was(experiment, tmp_path):
  gate = tmp_path / 'gate'
  folder = experiment({'x': 1}, {'x': 4, 'gate': str(gate)})
  out_dir = tmp_path / 'out'
  args = [f'--sweep={folder}/sweep.py', f'--workdir={out_dir}']
  first = subprocess.Popen(
    [sys.executable, LAUNCH, *args],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 60
  while not (gate.exists() and list(out_dir.glob('runs/x=1*/DONE'))):
    assert time.monotonic() < deadline and first.poll() is None
    time.sleep(0.05)
  first.send_signal(signal.SIGTERM)
  assert first.wait() == 130
  (done,) = out_dir.glob('runs/*/DONE')
  before = done.stat().st_mtime_ns

  assert command.main([LAUNCH, *args]) == 0
  assert done.stat().st_mtime_ns == before
  assert (out_dir / 'figure.txt').read_text() == '50.0'


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ([{'xx': 1}], 'unknown field --config.xx; did you mean --config.x?'),
    ([{'x': 'a'}], '--config.x=a: the field takes a whole number'),
    ([{'x': None}], 'leave x out'),
    ([{'x': 1}, {'x': 1}], 'the same run twice'),
    ([], 'yields no run'),
  ],
)
def test_a_bad_sweep_starts_nothing(overrides, message, experiment, capsys):
  folder = experiment(*overrides)
  assert call(folder) == 2
  assert message in capsys.readouterr().err
  assert not (folder / 'results').exists()


def test_a_report_without_results_is_refused(experiment, capsys):
  assert call(experiment({'x': 1}), '--report') == 2
  assert 'run the sweep without --report' in capsys.readouterr().err
