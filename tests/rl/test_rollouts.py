"""Minibatches of a rollout: whole groups, and a state between rollouts."""

from types import SimpleNamespace

import jax
import numpy as np

from llm.data.prompts import Prompt
from llm.decode.completion import Completion
from llm.parallel.mesh import make_mesh
from llm.rewards.rater import Ratings
from llm.rl.groups import Groups
from llm.rl.rollouts import Rollout, Rollouts
from llm.text.tokenizer import load_tokenizer

GROUPS, SIZE = 4, 2  # prompts of a rollout, completions of each


class Maker:
  """Rollout n has the rows 100 n, 100 n + 1, …"""

  def __init__(self):
    self.place = 0

  def make(self, params, number):
    del params
    self.place += GROUPS
    rows = 100 * number + np.arange(GROUPS * SIZE)
    completion = Completion([97], [0.0], [0.0], [], [], [], 'stop', 1, {})
    groups = Groups(
      [Prompt((98,), {})] * len(rows),
      [completion] * len(rows),
      Ratings(rows.astype(np.float32), {}),
    )
    return Rollout({'row': rows}, {'number': number}, groups)

  def finish(self, batch):
    return batch | {'twice': 2 * batch['row']}, {'tokens': len(batch['row'])}

  def is_known(self, number):
    return number % 2 == 0

  def get_state(self):
    return {'place': self.place}

  def set_state(self, state):
    self.place = state['place']


def _rollouts(minibatches, epochs):
  config = SimpleNamespace(
    seed=0,
    train=SimpleNamespace(batch_size=GROUPS),
    rollout=SimpleNamespace(
      group_size=SIZE, minibatches=minibatches, epochs=epochs
    ),
  )
  train_model = SimpleNamespace(
    mesh=make_mesh(
      SimpleNamespace(data=1, fsdp=1, tensor=1), jax.devices()[:1]
    ),
    spec=SimpleNamespace(tokenizer=load_tokenizer('bytes')),
  )
  return Rollouts(config, train_model, Maker())


def _next(rollouts):
  batch, stats = rollouts.next_batch(SimpleNamespace(params=None))
  np.testing.assert_array_equal(batch['twice'], 2 * batch['row'])
  assert stats['tokens'] == len(batch['row'])
  return np.asarray(batch['row']).tolist(), stats['number']


def test_an_epoch_has_every_group_once_and_in_one_piece():
  rollouts = _rollouts(minibatches=2, epochs=2)
  steps = [_next(rollouts) for _ in range(8)]
  assert [number for _, number in steps] == [0] * 4 + [1] * 4
  for rows, _ in steps:
    firsts = rows[::SIZE]
    assert rows == [first + i for first in firsts for i in range(SIZE)]
    assert all(first % SIZE == 0 for first in firsts)
  epochs = [steps[i][0] + steps[i + 1][0] for i in range(0, 8, 2)]
  assert [sorted(rows) for rows in epochs] == [
    [100 * number + i for i in range(8)] for number in (0, 0, 1, 1)
  ]
  assert epochs[0] != epochs[1]


def test_one_step_a_rollout_keeps_the_order():
  assert _next(_rollouts(minibatches=1, epochs=1)) == ([*range(8)], 0)


def test_a_rollout_that_is_used_up_resumes_at_the_next_one():
  rollouts = _rollouts(minibatches=2, epochs=1)
  assert rollouts.is_whole() and rollouts.completions() == []
  whole = []
  for _ in range(4):
    _next(rollouts)
    whole.append(rollouts.is_whole())
  # Where the next rollout follows from the state (every second one here).
  assert whole == [False, False, False, True]
  assert [row['reward'] for row in rollouts.completions()[:2]] == [101.0, 100.0]
  state = rollouts.get_state()
  assert state == {'rollouts': 2, 'place': 8}
  other = _rollouts(minibatches=2, epochs=1)
  _next(other)  # is left behind
  other.set_state(state)
  assert _next(other) == _next(rollouts)
