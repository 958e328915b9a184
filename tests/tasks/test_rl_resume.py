"""Reinforcement runs that are killed and started again, by real processes."""

import json

import pytest

from tests.tasks.test_resume import Run, finish, stop

# A rollout is four steps, and a checkpoint comes after each.
FIELDS = {
  'data.seed': 1,  # no rollout with the same prompt twice: another program
  'train.batch_size': 2,
  'train.eval_every': 0,
  'rollout.group_size': 4,
  'rollout.max_new_tokens': 8,
  'rollout.minibatches': 2,
  'rollout.epochs': 2,
  'optim.name': 'sgd',
  'rewards': "(('matches', 1.0, {'pattern': '[a-z].*'}), ('ends', 0.5))",
}


@pytest.fixture
def make_run(tmp_path, forks, model_folder):
  def make(**fields):
    rows = [{'prompt': f'{i}+{i}='} for i in range(7)]
    path = tmp_path / 'prompts.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    shared = FIELDS | {'model.path': model_folder, 'data.path': path}
    return Run(forks, 'rl', shared | fields, tmp_path)

  return make


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_group_relative(make_run):
  """Killed in the middle of a rollout."""
  run = make_run()
  status, message = run.start('whole')
  assert status == 0, message
  status, message = run.start('broken', 'SIGKILL', at=10)
  assert status == -9, message
  finish(run)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_with_values(make_run):
  """Told to stop in a rollout; the KL's coefficient has moved by then."""
  ppo = {'loss.name': 'ppo', 'loss.kl_target': 0.5, 'loss.kl_horizon': 100.0}
  run = make_run(**ppo)
  assert stop(run, 13) % 4 == 0  # not before the rollout is used up
  finish(run)
  coefs = {row['kl_coef'] for row in run.rows('whole')}
  assert len(coefs) == 6
