"""Runs that are killed, or told to stop, and started again: real processes."""

import json
import re

import numpy as np
import orbax.checkpoint as ocp
import pytest

from llm.checkpoints import sealed

STEPS, EVERY = 24, 4
SHARED = {
  'train.steps': STEPS,
  'train.checkpoint_every': EVERY,
  'train.eval_every': 6,
  'train.log_every': 1,
  'data.max_length': 32,
  'optim.lr': 1e-2,
  'optim.warmup_steps': 5,
}


class Run:
  """One kind of training, with a workdir for each way that it goes."""

  def __init__(self, forks, kind, fields, folder):
    self.forks = forks
    fields = SHARED | fields
    self.args = [f'--config=configs/{kind}.py']
    self.args += [f'--config.{name}={value}' for name, value in fields.items()]
    self.folder = folder

  def start(self, name, event='none', at=0, delay=0.0):
    """Runs to its end, whatever that is; returns (status, output)."""
    args = [*self.args, f'--workdir={self.folder / name}']
    return self.forks.run(args, event, at, delay)

  def saved(self, name):
    """The steps that have a checkpoint."""
    folder = self.folder / name / 'checkpoints'
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())

  def rows(self, name, file='metrics.jsonl'):
    """Rows without the times."""
    path = self.folder / name / file
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
      {k: v for k, v in row.items() if not k.endswith('_s')} for row in rows
    ]

  def state(self, name):
    """(leaf name -> array, record) of the last checkpoint."""
    path = self.folder / name / 'checkpoints' / str(STEPS)
    return ocp.PyTreeCheckpointer().restore(path / 'state'), sealed.verify(path)

  def compare(self):
    """Checks that 'broken' has become what 'whole' is, bit for bit."""
    assert self.rows('broken') == self.rows('whole')
    assert [row['step'] for row in self.rows('whole')] == [*range(1, STEPS + 1)]
    whole, record = self.state('whole')
    broken, other = self.state('broken')
    assert other == record  # the place in the data, metrics, shapes
    assert set(broken) == set(whole)
    for leaf, array in whole.items():
      assert np.asarray(broken[leaf]).dtype == np.asarray(array).dtype
      assert np.asarray(broken[leaf]).tobytes() == np.asarray(array).tobytes()


def kill(run, seed):
  """The whole run, and another killed after a random step.

  By then the second save has waited for the first one.
  """
  status, message = run.start('whole')
  assert status == 0, message
  rng = np.random.default_rng(seed)
  step = int(rng.integers(2 * EVERY + 1, 19))
  moment = {'at': step, 'delay': round(rng.uniform(0.0, 0.03), 4)}
  status, message = run.start('broken', 'SIGKILL', **moment)
  assert status == -9, message
  assert STEPS not in run.saved('broken')
  assert len(run.rows('broken')) >= moment['at']


def stop(run, at):
  """The whole run, and another told to stop; returns the step that it saved."""
  status, message = run.start('whole')
  assert status == 0, message
  status, message = run.start('broken', 'SIGTERM', at=at)
  assert status == 143, message
  stopped = run.saved('broken')[-1]
  assert 'SIGTERM: saves and stops' in message
  assert f'stopped by SIGTERM after step {stopped}, which was saved' in message
  assert at < stopped < STEPS
  return stopped


def finish(run):
  status, message = run.start('broken')
  assert status == 0, message
  assert 'resumes from the checkpoint of step' in message
  run.compare()
  return message


# The tests read arrays as they are, for whichever devices.
pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')


def test_pretraining(tmp_path, forks):
  """Killed; then the disk is full; then a checkpoint is cut short."""
  text = '\n'.join(f'line {i}, and its square {i * i}.' for i in range(60))
  (tmp_path / 'text.txt').write_text(text)
  shape = {'embed_dim': 32, 'hidden_dim': 16, 'num_layers': 1, 'num_heads': 2}
  shape |= {'num_kv_heads': 1, 'head_dim': 8}
  run = Run(
    forks,
    'pretrain',
    {f'model.{name}': value for name, value in shape.items()}
    | {
      'data.path': tmp_path / 'text.txt',
      'tokenizer.path': 'bytes',
      'data.eval_fraction': 0.1,
      'train.batch_size': 4,
      'train.ema_decay': 0.9,
      'sample.prompts': "('line 7',)",
      'sample.max_new_tokens': 3,
    },
    tmp_path,
  )
  kill(run, 1)
  # A full disk, which every larger file meets.
  status, message = run.start('broken', 'full', at=18)
  assert status == 1
  assert 'Traceback' not in message and message.count('\nerror: ') == 1
  before = run.saved('broken')
  assert len(before) > 1
  # Of the next save's step, or of an evaluation that was the best so far.
  failed = re.search(r'the checkpoint of step (\d+) was not saved', message)
  assert before[-1] < int(failed[1]) <= before[-1] + EVERY
  kept = ', '.join(map(str, before))
  assert f'checkpoints there that are whole: {kept}; mend this' in message
  # What was written is cut short afterwards.
  newest = run.folder / 'broken' / 'checkpoints' / str(before[-1])
  largest = max(newest.rglob('*'), key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:-1])
  message = finish(run)
  assert f'damaged checkpoint passed over, step {before[-2]} is used' in message
  assert f'{newest}: {largest.relative_to(newest)}: ' in message
  samples = run.rows('broken', 'samples.jsonl')
  assert samples == run.rows('whole', 'samples.jsonl')
  assert [row['step'] for row in samples] == [6, 12, 18, 24]


def test_fine_tuning(tmp_path, forks, model_folder):
  """Packed rows in several epochs, with noise; told to stop."""
  chat = [
    {
      'messages': [
        {'role': 'user', 'content': 'Say ' + 'a' * (i % 5)},
        {'role': 'assistant', 'content': 'b' * (1 + i % 7)},
      ]
    }
    for i in range(16)
  ]
  lines = '\n'.join(map(json.dumps, chat))
  (tmp_path / 'chat.jsonl').write_text(lines)
  run = Run(
    forks,
    'sft',
    {
      'model.path': model_folder,
      'data.path': tmp_path / 'chat.jsonl',
      'data.eval_fraction': 0.2,
      'train.batch_size': 2,
      'loss.neftune_alpha': 5.0,
    },
    tmp_path,
  )
  stopped = stop(run, 18)
  message = finish(run)
  assert f'resumes from the checkpoint of step {stopped}' in message
  assert run.rows('whole')[-1]['epoch'] > 3


def test_adapters(tmp_path, forks, model_folder):
  """Dropout on the adapters' input, rows in buckets of length."""
  rows = [{'prompt': 'abc', 'completion': f'd{i:03}'} for i in range(20)]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  run = Run(
    forks,
    'lora',
    {
      'model.path': model_folder,
      'data.path': tmp_path / 'rows.jsonl',
      'data.packing': False,
      'train.batch_size': 4,
      'lora.rank': 2,
      'lora.dropout': 0.3,
    },
    tmp_path,
  )
  kill(run, 3)
  finish(run)
