"""Online and iterative DPO runs that are killed and started again."""

from concurrent import futures
import json

import pytest

from tests.tasks.test_resume import Run, finish, kill

FIELDS = {
  'train.batch_size': 2,
  'train.eval_every': 0,
  'rollout.max_new_tokens': 8,
  'optim.name': 'sgd',
  'rewards': "(('matches', 1.0, {'pattern': '[a-z].*'}), ('ends', 0.5))",
}


def online(run):
  """Killed; then told to stop in the middle of a rollout."""
  kill(run, 6)
  status, message = run.start('broken', 'SIGTERM', at=19)
  assert status == 143, message
  stopped = run.saved('broken')[-1]
  assert 19 < stopped < 24 and stopped % 2 == 0
  finish(run)


def iterative(run):
  """Killed while the reference is neither the first model nor the policy."""
  status, message = run.start('whole')
  assert status == 0, message
  status, message = run.start('broken', 'SIGKILL', at=14)
  assert status == -9, message
  finish(run)
  rows = run.rows('whole')
  kls = [row['kl'] for row in rows if 'kl' in row]
  assert min(map(abs, kls)) < 1e-4 < max(map(abs, kls))


@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_broken_runs_become_the_unbroken_ones(tmp_path, model_folder):
  rows = [{'prompt': f'{i}+{i}='} for i in range(7)]
  path = tmp_path / 'prompts.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  shared = FIELDS | {'model.path': model_folder, 'data.path': path}
  runs = []
  for kind, fields in (
    ('online', {'rollout.epochs': 2}),
    ('iterative', {'rollout.minibatches': 2, 'rollout.reference_every': 2}),
  ):
    folder = tmp_path / kind
    folder.mkdir()
    runs.append(Run('online_preference', shared | fields, folder))
  with futures.ThreadPoolExecutor(2) as pool:
    for end in [pool.submit(online, runs[0]), pool.submit(iterative, runs[1])]:
      end.result()
