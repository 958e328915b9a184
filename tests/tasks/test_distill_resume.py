"""A distillation that is killed becomes the unbroken one."""

import json

import pytest

from tests.tasks.test_resume import Run, finish, kill


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_a_killed_run_becomes_the_unbroken_one(
  tmp_path, forks, model_folder, teacher_folder
):
  """Batches of the student and of the teacher, in several epochs."""
  rows = [{'prompt': f'{i}+{i}=', 'completion': 'x'} for i in range(11)]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  run = Run(
    forks,
    'distill',
    {
      'model.path': model_folder,
      'teacher.path': teacher_folder,
      'data.path': tmp_path / 'rows.jsonl',
      'data.eval_fraction': 0.2,
      'train.batch_size': 2,
      'rollout.seq_kd': True,
      'rollout.max_new_tokens': 8,
    },
    tmp_path,
  )
  kill(run, 5)
  finish(run)
  flags = [row['on_policy'] for row in run.rows('whole')]
  assert 4 < sum(flags) < 20
