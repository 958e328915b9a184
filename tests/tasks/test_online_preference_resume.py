"""Online and iterative DPO runs that are killed and started again."""

import json

import pytest

from tests.tasks.test_resume import Run, finish, kill, stop

FIELDS = {
  'data.seed': 1,  # no rollout with the same prompt twice: another program
  'train.batch_size': 2,
  'train.eval_every': 0,
  'rollout.max_new_tokens': 4,  # both answers of a pair fit one length
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
    return Run(forks, 'online_preference', shared | fields, tmp_path)

  return make


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_online(make_run):
  """Killed; the reference is the first model throughout."""
  run = make_run(**{'rollout.epochs': 2})
  kill(run, 6)
  finish(run)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_iterative(make_run):
  """Told to stop while the reference is neither the first model nor the policy.

  The signal comes in the middle of a rollout, which is used up first.
  """
  fields = {'rollout.minibatches': 2, 'rollout.reference_every': 2}
  run = make_run(**fields)
  assert stop(run, 13) % 2 == 0
  finish(run)
  rows = run.rows('whole')
  kls = [row['kl'] for row in rows if 'kl' in row]
  assert min(map(abs, kls)) < 1e-4 < max(map(abs, kls))
