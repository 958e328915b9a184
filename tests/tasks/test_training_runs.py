"""How a training run ends, and what the same command does then."""

import json
import math
import os
import pathlib
import shutil

import numpy as np
import pytest

from llm import api, config_args
from llm.errors import RunError, UserError
from llm.runs import report
from llm.tasks import run, supervised

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def start(model_folder, write_rows, tmp_path, monkeypatch):
  """start('train.steps=4', …) runs it and returns the rows of its metrics."""
  monkeypatch.setattr(report, 'plot_loss', lambda *args: None)  # slow
  rows = [{'prompt': 'ab', 'completion': f'c{i}'} for i in range(8)]
  path = write_rows(*rows)
  workdir = tmp_path / 'run'

  def start(*changes):
    config = config_args.load_config(str(ROOT / 'configs' / 'sft.py'))
    fields = {
      'model.path': model_folder,
      'data.path': path,
      'data.max_length': 16,
      'train.batch_size': 2,
      'optim.warmup_steps': 0,
      'optim.lr': 1e-3,
      'optim.schedule': 'constant',
      'export': tmp_path / 'out',
    }
    fields |= dict(change.split('=', 1) for change in changes)
    args = [f'--config.{name}={value}' for name, value in fields.items()]
    config_args.override_config(config, args)
    run.run_task(config, str(workdir))
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]

  return start


def exported(tmp_path):
  return (tmp_path / 'out' / 'model.safetensors').read_bytes()


def test_a_finished_run_is_exported_again_or_prolonged(start, tmp_path, capsys):
  rows = start('train.steps=3')
  assert [row['step'] for row in rows] == [1, 2, 3]
  first = exported(tmp_path)
  shown = capsys.readouterr().err
  assert 'first example, 6 tokens, 3 learned\n<|bos|>ab⟦c0<|eos|>⟧' in shown
  lines = (tmp_path / 'run' / 'preview.jsonl').read_text().splitlines()
  learned = [json.loads(line) for line in lines]
  assert [row['example'] for row in learned] == list(range(1, 9))
  assert learned[7]['text'] == '<|bos|>abc7<|eos|>'
  assert learned[7]['loss_weights'] == [0.0] * 3 + [1.0] * 3
  shutil.rmtree(tmp_path / 'out')
  capsys.readouterr()
  assert start('train.steps=3') == rows
  assert 'all 3 steps are done: nothing to train' in capsys.readouterr().err
  assert exported(tmp_path) == first
  longer = start('train.steps=5')
  assert longer[:3] == rows and [row['step'] for row in longer[3:]] == [4, 5]
  assert 'resumes from the checkpoint of step 3' in capsys.readouterr().err
  assert exported(tmp_path) != first
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert result['steps'] == 5 and result['loss'] == longer[-1]['loss']


def test_a_run_that_diverges_stops_with_its_last_good_state(
  start, tmp_path, model_folder
):
  diverging = ('optim.lr=1e38', 'train.steps=9', 'train.max_bad_steps=3')
  for again in range(2):  # the same command stops again, at once
    with pytest.raises(RunError) as caught:
      start(*diverging, 'optim.clip_norm=0.0')
    message = str(caught.value)
    assert 'had no finite gradient (train.max_bad_steps=3)' in message
    assert (
      'before them: start anew, in another workdir, with a smaller' in message
    )
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert math.isfinite(rows[0]['loss'])
  assert rows[-1]['skipped'] >= 3 and rows[-1]['step'] < 9
  assert (tmp_path / 'run' / 'checkpoints').is_dir()
  assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_the_best_state_is_kept_and_exported(
  start, tmp_path, write_rows, monkeypatch
):
  held_out = write_rows({'prompt': 'ab', 'completion': 'c0'}, name='held.jsonl')
  scores = iter([3.0, 1.0, 2.0, 2.5])
  monkeypatch.setattr(
    supervised,
    'make_evaluate',
    lambda *_: lambda p: {'eval_loss': next(scores)},
  )
  fields = ('train.eval_every=1', 'train.keep=1', f'data.eval_path={held_out}')
  start('train.steps=4', 'train.export=best', *fields)
  kept = sorted(p.name for p in (tmp_path / 'run' / 'checkpoints').iterdir())
  assert kept == ['2', '4']
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert result['exported_step'] == 2 and result['best_eval_loss'] == 1.0
  best = exported(tmp_path)
  # The same run may export its last state afterwards, for nothing is trained.
  start('train.steps=4', *fields)
  last = exported(tmp_path)
  shutil.rmtree(tmp_path / 'run')
  scores = iter([1.0, 1.0])
  start('train.steps=2', *fields)
  assert exported(tmp_path) == best != last


def test_a_full_disk_at_the_export_is_one_message(start, tmp_path, monkeypatch):
  def fail(path, *args, **kwargs):
    os.makedirs(path)
    pathlib.Path(path, 'model.safetensors.tmp').write_text('half')
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr('llm.runs.exports.save_hf', fail)
    with pytest.raises(RunError, match='^export=.*out.: No space left'):
      start('train.steps=2')
  rows = start('train.steps=2')
  assert len(rows) == 2
  model, params, _ = api.load(str(tmp_path / 'out'))
  assert all(np.isfinite(x).all() for x in params['final_norm'].values())


def test_a_run_keeps_its_held_out_rows_and_its_base(
  start, tmp_path, write_rows, model_folder
):
  row = {'prompt': 'ab', 'completion': 'c0'}
  held_out = f'data.eval_path={write_rows(row, name="held.jsonl")}'
  start('train.steps=1', held_out)
  write_rows(row | {'completion': 'c1'}, name='held.jsonl')
  with pytest.raises(UserError, match='of another run: held_out is'):
    start('train.steps=2', held_out)
  shutil.rmtree(tmp_path / 'run')
  base = shutil.copytree(model_folder, tmp_path / 'base')
  start('train.steps=1', f'model.path={base}')
  [weights] = base.glob('*.safetensors')
  content = bytearray(weights.read_bytes())
  content[len(content) // 2] ^= 1
  weights.write_bytes(content)
  with pytest.raises(UserError, match='of another run: model.weights is'):
    start('train.steps=2', f'model.path={base}')
