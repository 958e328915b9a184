"""When the loop logs, evaluates, saves and stops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm.errors import RunError
from llm.train.loop import Hooks, Schedule, fit
from llm.train.state import init_state
from llm.train.step import make_train_step


def _loss(params, frozen, batch, keys):
  del frozen, keys
  return (params * batch).sum(), jnp.asarray(batch.size, float), {}


TX = optax.sgd(1.0)
STEP = jax.jit(make_train_step(_loss, TX), donate_argnums=0)


def _run(schedule, values=None, **kwargs):
  """Trains a number whose gradient is the batch's mean; returns all calls."""
  seen = {'rows': [], 'saved': [], 'drawn': []}

  def next_batch(state):
    position = len(seen['drawn'])
    seen['drawn'].append(position)
    value = 1.0 if values is None else values[position]
    return jnp.full((2,), value), {'epoch': 7, 'tokens': 2}

  def save(state, scores):
    seen['saved'].append((int(state.step), float(state.params), dict(scores)))
    seen['held'] = jax.tree.map(jnp.copy, state)

  state = init_state(jnp.array(0.0), TX, jax.random.key(0))
  kwargs = {'save': save, 'evaluate': None} | kwargs
  try:
    hooks = Hooks(seen['rows'].append, **kwargs)
    seen['state'] = fit(state, STEP, next_batch, schedule, hooks)
  except (RunError, IndexError) as error:
    seen['error'] = str(error)
  return seen


def test_one_row_a_step_and_the_same_numbers_as_by_hand():
  seen = _run(Schedule(steps=4))
  assert [r['step'] for r in seen['rows']] == [1, 2, 3, 4]
  np.testing.assert_allclose([r['loss'] for r in seen['rows']], [0, -1, -2, -3])
  assert list(seen['rows'][0])[:4] == ['step', 'loss', 'tokens', 'tokens_per_s']
  assert all(r['tokens'] == 2 and r['epoch'] == 7 for r in seen['rows'])
  assert all(r['tokens_per_s'] > 0 and r['data_s'] >= 0 for r in seen['rows'])
  assert seen['saved'] == [(4, -4.0, {})]


def test_what_is_done_is_saved_where_no_batch_can_be_made():
  # The fourth value is missing: `next_batch` raises.
  seen = _run(Schedule(steps=9, log_every=2, save_every=2), [1.0] * 3)
  assert 'index' in seen['error']
  assert [row['step'] for row in seen['rows']] == [2]
  assert [step for step, *_ in seen['saved']] == [2, 3]
  # Not again what was saved before, not without asking, not in a bad streak.
  seen = _run(Schedule(steps=9, save_every=3), [1.0] * 3)
  assert [step for step, *_ in seen['saved']] == [3]
  seen = _run(Schedule(steps=9), [1.0] * 3, may_save=lambda: False)
  assert seen['saved'] == [] and len(seen['rows']) == 3
  seen = _run(Schedule(steps=9), [1.0, math.nan])
  assert seen['saved'] == [] and len(seen['rows']) == 2


def test_evaluation_and_saving_at_their_steps_and_at_the_end():
  def evaluate(state):
    return {'eval_loss': float(state.params)}

  schedule = Schedule(steps=7, log_every=4, eval_every=3, save_every=2)
  seen = _run(schedule, evaluate=evaluate)
  # Logged every 4 steps and wherever there are scores or a save.
  assert [
    (r['step'], r['tokens'], r.get('eval_loss')) for r in seen['rows']
  ] == [
    (2, 4, None),
    (3, 2, -3.0),
    (4, 2, None),
    (6, 4, -6.0),
    (7, 2, -7.0),
  ]
  assert [(s, scores) for s, _, scores in seen['saved']] == [
    (2, {}),
    (4, {}),
    (6, {'eval_loss': -6.0}),
    (7, {'eval_loss': -7.0}),
  ]


def test_an_evaluation_before_the_first_step_has_a_row_of_its_own():
  def evaluate(state):
    return {'eval_loss': float(state.params)}

  schedule = Schedule(steps=2, eval_first=True)
  rows = _run(schedule, evaluate=evaluate)['rows']
  assert [(r['step'], r.get('eval_loss')) for r in rows] == [
    (0, 0.0),
    (1, None),
    (2, -2.0),
  ]
  assert set(rows[0]) == {'step', 'eval_loss', 'eval_s'}
  assert not any('eval_loss' in r for r in _run(schedule)['rows'])


def test_stops_when_asked_and_saves_what_it_has():
  answers = iter([False, False, True])
  seen = _run(Schedule(steps=10), should_stop=lambda: next(answers))
  assert int(seen['state'].step) == 3
  assert seen['saved'] == [(3, -3.0, {})]
  assert [r['step'] for r in seen['rows']] == [1, 2, 3]


@pytest.mark.parametrize('log_every', [1, 2, 50])
def test_a_run_that_keeps_diverging_stops_with_its_last_good_parameters(
  log_every,
):
  values = [1.0, 1.0, *[math.nan] * 3, 1.0]
  schedule = Schedule(
    steps=100, log_every=log_every, save_every=2, max_bad_steps=3
  )
  seen = _run(schedule, values)
  assert 'no finite gradient' in seen['error']
  assert 'optim.lr' in seen['error']
  assert seen['saved'] == [(2, -2.0, {}), (5, -2.0, {})]  # none in between
  assert len(seen['drawn']) == 5  # not one more, however seldom rows are
  never = lambda *_: pytest.fail('called')
  with pytest.raises(RunError, match='the last 3 steps up to step 5 had no'):
    fit(seen['held'], STEP, never, schedule, Hooks(never, save=never))


def test_the_best_state_is_saved_when_it_is_evaluated():
  losses = iter([3.0, 1.0, 2.0])

  def evaluate(state):
    return {'eval_loss': next(losses)}

  schedule = Schedule(steps=6, eval_every=2, save_every=5)
  is_best = lambda scores: scores['eval_loss'] == 1.0
  seen = _run(schedule, evaluate=evaluate, is_best=is_best)
  assert [(s, scores) for s, _, scores in seen['saved']] == [
    (4, {'eval_loss': 1.0}),
    (5, {}),
    (6, {'eval_loss': 2.0}),
  ]


def test_tokens_and_their_rate_are_of_all_steps_since_the_row_before():
  now = iter(range(1000))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('time.perf_counter', lambda: next(now) * 1.0)
    rows = _run(Schedule(steps=7, log_every=3))['rows']
  assert [(r['step'], r['tokens']) for r in rows] == [(3, 6), (6, 6), (7, 2)]
  # Two readings a step for the data, one as the next step runs for the row.
  np.testing.assert_allclose(
    [r['tokens_per_s'] for r in rows], [6 / 9, 6 / 7, 2]
  )


def test_single_bad_steps_do_not_stop_a_run():
  values = [1.0, math.inf, 1.0, math.nan, 1.0]
  seen = _run(Schedule(steps=5, max_bad_steps=2), values)
  assert [r['skipped'] for r in seen['rows']] == [0, 1, 1, 2, 2]
  assert float(seen['state'].params) == -3.0


@pytest.mark.parametrize('steps', [3, 5])
def test_a_finished_run_does_nothing(steps):
  state = init_state(jnp.array(0.0), TX, jax.random.key(0))
  for _ in range(steps):
    state, _ = STEP(state, jnp.ones(2), jax.random.key(0))
  never = lambda *_: pytest.fail('called')
  out = fit(state, STEP, never, Schedule(steps=3), Hooks(never, save=never))
  assert int(out.step) == steps
