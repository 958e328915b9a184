"""A DPO run that is killed becomes the unbroken one."""

import json

import pytest

from tests.tasks.test_resume import Run, finish, kill


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_a_killed_run_becomes_the_unbroken_one(tmp_path, forks, model_folder):
  """Packed pairs of several epochs; the reference is made once."""
  pairs = [
    {'prompt': 'ab', 'chosen': 'c' * (1 + i % 5), 'rejected': f'd{i:02}'}
    for i in range(20)
  ]
  (tmp_path / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, pairs)))
  run = Run(
    forks,
    'preference',
    {
      'model.path': model_folder,
      'data.path': tmp_path / 'pairs.jsonl',
      'data.packing': True,
      'data.eval_fraction': 0.2,
      'train.batch_size': 2,
      'loss.name': 'rpo',
    },
    tmp_path,
  )
  kill(run, 4)
  finish(run)
  rows = run.rows('whole')
  assert rows[-1]['epoch'] > 3 and rows[-1]['loss'] < rows[0]['loss']
