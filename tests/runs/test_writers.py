import importlib.machinery
import json
import sys
import types

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from llm.errors import RunError, UserError
from llm.runs.writers import open_writers, truncate_rows


def make_config(tensorboard=False, **wandb):
  wandb = {'project': None, 'name': None, 'mode': 'online'} | wandb
  log = {'tensorboard': tensorboard, 'wandb': wandb}
  return ml_collections.ConfigDict({'seed': 3, 'log': log})


def read_rows(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture
def wandb(monkeypatch):
  """A stand-in that notes what it is asked to do."""
  module = types.ModuleType('wandb')
  module.__spec__ = importlib.machinery.ModuleSpec('wandb', None)
  module.calls = []
  module.fails = set()

  def note(name):
    def call(*args, **kwargs):
      module.calls.append((name, args, kwargs))
      if name in module.fails:
        raise ConnectionError('no network')

    return call

  run = types.SimpleNamespace(
    log=note('log'), finish=note('finish'), define_metric=note('define_metric')
  )
  module.init = lambda **kwargs: note('init')(**kwargs) or run
  monkeypatch.setitem(sys.modules, 'wandb', module)
  return module


def test_json_lines_are_always_written(tmp_path):
  with open_writers(make_config(), str(tmp_path)) as write:
    write({'step': 1, 'loss': jnp.float32(0.5)})
    write({'step': 2, 'loss': np.float32(0.25), 'note': 'text'})
    # On disk at once, not at the end.
    assert read_rows(tmp_path) == [
      {'step': 1, 'loss': 0.5},
      {'step': 2, 'loss': 0.25, 'note': 'text'},
    ]


def test_a_row_that_cannot_be_written_stops_the_run(tmp_path):
  (tmp_path / 'metrics.jsonl').mkdir()
  with open_writers(make_config(), str(tmp_path)) as write:
    with pytest.raises(RunError, match='metrics.jsonl: Is a directory'):
      write({'step': 1})


def test_tensorboard_has_the_scalars_and_a_resume_hides_the_old(tmp_path):
  pytest.importorskip('tensorboard')
  from tensorboard.backend.event_processing import event_accumulator

  with open_writers(make_config(tensorboard=True), str(tmp_path)) as write:
    for step in (1, 2, 3):
      write({'step': step, 'loss': jnp.bfloat16(step / 2), 'note': 'text'})
  # Killed, restored from step 1.
  with open_writers(make_config(tensorboard=True), str(tmp_path)) as write:
    write({'step': 2, 'loss': 8.0, 'tokens': 64})
  events = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  assert sorted(events.Tags()['scalars']) == ['loss', 'tokens']
  assert [(e.step, e.value) for e in events.Scalars('loss')] == [
    (1, 0.5),
    (2, 8.0),
  ]
  assert [(e.step, e.value) for e in events.Scalars('tokens')] == [(2, 64.0)]


def test_wandb_gets_the_rows_and_the_config(tmp_path, wandb):
  config = make_config(project='p', name='n', mode='offline')
  with open_writers(config, str(tmp_path)) as write:
    write({'step': 1, 'loss': jnp.float32(0.5), 'note': 'text'})
  (_, _, init), *calls = wandb.calls
  assert init.pop('config') == config.to_dict()
  identifier = init.pop('id')
  assert init == {
    'project': 'p',
    'name': 'n',
    'mode': 'offline',
    'dir': str(tmp_path),
    'resume': 'allow',
  }
  assert calls == [
    ('define_metric', ('*',), {'step_metric': 'step'}),
    ('log', ({'step': 1, 'loss': 0.5},), {}),
    ('finish', (), {}),
  ]
  # The same command again resumes the same run.
  wandb.calls.clear()
  with open_writers(config, str(tmp_path)):
    pass
  assert wandb.calls[0][2]['id'] == identifier


@pytest.mark.parametrize('call', ['log', 'finish'])
def test_a_failing_copy_loses_no_row(tmp_path, wandb, call):
  wandb.fails = {call}
  with pytest.warns(RuntimeWarning, match='Biases failed.*: no network') as got:
    with open_writers(make_config(project='p'), str(tmp_path)) as write:
      write({'step': 1, 'loss': 0.5})
      write({'step': 2, 'loss': 0.25})
  assert len(got) == 1
  assert [row['step'] for row in read_rows(tmp_path)] == [1, 2]


def test_copies_are_closed_when_the_run_fails(tmp_path, wandb):
  with pytest.raises(KeyError):
    with open_writers(make_config(project='p'), str(tmp_path)):
      raise KeyError
  assert wandb.calls[-1][0] == 'finish'


def test_wandb_without_a_network_is_refused_at_the_start(tmp_path, wandb):
  wandb.fails = {'init'}
  match = "log.wandb.project='p': no network; .*mode=offline"
  with pytest.raises(UserError, match=match):
    with open_writers(make_config(project='p'), str(tmp_path)):
      pass


def test_an_unknown_mode_is_refused(tmp_path, wandb):
  match = "log.wandb.mode='off': must be one of .*'offline'"
  with pytest.raises(UserError, match=match):
    with open_writers(make_config(project='p', mode='off'), str(tmp_path)):
      pass


@pytest.mark.parametrize(
  'package, config',
  [
    ('wandb', make_config(project='p')),
    ('tensorboard', make_config(tensorboard=True)),
  ],
)
def test_an_absent_package_is_named(tmp_path, monkeypatch, package, config):
  for name in list(sys.modules):
    if name.split('.')[0] == package:
      monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, package, None)
  match = rf'{package} is not installed: pip install "llm-jax\[logging\]"'
  with pytest.raises(UserError, match=match):
    with open_writers(config, str(tmp_path)):
      pass


def line(step):
  return f'{{"step": {step}, "loss": NaN}}\n'


@pytest.mark.parametrize(
  'before, step, after',
  [
    (line(1) + line(2) + line(3), 2, line(1) + line(2)),
    (line(1) + line(2), 2, line(1) + line(2)),
    (line(1), 0, ''),
    ('', 5, ''),
    # Killed while it wrote: half a line, or all of it but the line's end.
    (line(1) + '{"step": 2, "lo', 5, line(1)),
    (line(1) + line(2).rstrip(), 5, line(1) + line(2)),
    (line(1) + '17', 5, line(1)),
  ],
)
def test_rows_after_the_restored_step_are_cut(tmp_path, before, step, after):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(before)
  truncate_rows(str(tmp_path), step)
  assert path.read_text() == after
  assert list(tmp_path.iterdir()) == [path]


def test_without_metrics_there_is_nothing_to_cut(tmp_path):
  truncate_rows(str(tmp_path), 3)
  assert list(tmp_path.iterdir()) == []


def test_a_broken_line_in_the_middle_is_refused(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(line(1) + '{"st\n' + line(2))
  with pytest.raises(UserError, match='metrics.jsonl, line 2: not a row'):
    truncate_rows(str(tmp_path), 1)
  assert (tmp_path / 'metrics.jsonl').read_text().count('\n') == 3
