"""Reinforcement runs that are killed and started again, by real processes."""

from concurrent import futures
import json

import pytest

from tests.tasks.test_resume import Run, finish

# A rollout is four steps, and a checkpoint comes after each.
FIELDS = {
  'train.batch_size': 2,
  'train.eval_every': 0,
  'rollout.group_size': 4,
  'rollout.max_new_tokens': 8,
  'rollout.minibatches': 2,
  'rollout.epochs': 2,
  'optim.name': 'sgd',
  'rewards': "(('matches', 1.0, {'pattern': '[a-z].*'}), ('ends', 0.5))",
}


def group_relative(run):
  """Killed in the middle of a rollout; then told to stop in one."""
  status, message = run.start('whole')
  assert status == 0, message
  status, message = run.start('broken', 'SIGKILL', at=6)
  assert status == -9, message
  status, message = run.start('broken', 'SIGTERM', at=13)
  assert status == 143, message
  stopped = run.saved('broken')[-1]
  # Not before the rollout is used up.
  assert 13 < stopped < 24 and stopped % 4 == 0
  assert f'stopped by SIGTERM after step {stopped}, which' in message
  finish(run)


def with_values(run):
  """Killed; the KL's coefficient has moved by then."""
  status, message = run.start('whole')
  assert status == 0, message
  status, message = run.start('broken', 'SIGKILL', at=14, delay=0.02)
  assert status == -9, message
  finish(run)
  coefs = {row['kl_coef'] for row in run.rows('whole')}
  assert len(coefs) == 6


@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_broken_runs_become_the_unbroken_ones(tmp_path, model_folder):
  rows = [{'prompt': f'{i}+{i}='} for i in range(7)]
  path = tmp_path / 'prompts.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  shared = FIELDS | {'model.path': model_folder, 'data.path': path}
  ppo = {'loss.name': 'ppo', 'loss.kl_target': 0.5, 'loss.kl_horizon': 100.0}
  runs = []
  for kind, fields in (('grpo', {}), ('ppo', ppo)):
    folder = tmp_path / kind
    folder.mkdir()
    runs.append(Run('rl', shared | fields, folder))
  with futures.ThreadPoolExecutor(2) as pool:
    ends = [pool.submit(group_relative, runs[0])]
    ends += [pool.submit(with_values, runs[1])]
    for end in ends:
      end.result()
