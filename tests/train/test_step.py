"""The step against the same arithmetic by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm.train import state as state_lib
from llm.train.step import make_eval_step, make_train_step


def _loss(params, frozen, batch, keys):
  """Weighted squared error of a line through 0, with its own metric."""
  del frozen, keys
  error = params['kernel'] * batch['x'] - batch['y']
  w = batch['w']
  return (w * error**2).sum(), w.sum(), {'error': (w * error).sum()}


BATCH = {
  'x': jnp.array([1.0, 2.0, 3.0]),
  'y': jnp.array([2.0, 2.0, 0.0]),
  'w': jnp.array([1.0, 3.0, 0.0]),
}


KEY = jax.random.key(0)


def _state(tx, value=3.0, ema=False):
  params = {'kernel': jnp.array(value)}
  return state_lib.init_state(params, tx, jax.random.key(0), ema=ema)


def test_step_golden():
  # error = (1, 4, 9), weights (1, 3, 0): loss (1 + 48) / 4, gradient
  # (2·1·1 + 3·2·4·2) / 4, and SGD with rate 0.1.
  tx = optax.sgd(0.1)
  state, metrics = jax.jit(make_train_step(_loss, tx))(_state(tx), BATCH, KEY)
  np.testing.assert_allclose(metrics['loss'], 12.25)
  np.testing.assert_allclose(metrics['grad_norm'], 12.5)
  np.testing.assert_allclose(metrics['error'], 13 / 4)
  np.testing.assert_allclose(state.params['kernel'], 3.0 - 1.25, rtol=1e-6)
  assert float(metrics['weight']) == 4.0
  assert int(state.step) == 1


def test_weight_zero_is_a_dropped_row():
  tx = optax.adam(0.1)
  step = make_train_step(_loss, tx)
  full, _ = step(_state(tx), BATCH, KEY)
  kept, _ = step(_state(tx), {k: v[:2] for k, v in BATCH.items()}, KEY)
  np.testing.assert_allclose(full.params['kernel'], kept.params['kernel'])


def test_a_batch_without_weight_changes_nothing():
  tx = optax.sgd(0.1)
  batch = BATCH | {'w': jnp.zeros(3)}
  state, metrics = make_train_step(_loss, tx)(_state(tx), batch, KEY)
  assert float(state.params['kernel']) == 3.0
  assert [float(metrics[k]) for k in ('loss', 'grad_norm')] == [0.0, 0.0]


def test_each_step_has_its_own_key_and_a_replay_repeats_it():
  def noisy(params, frozen, batch, keys):
    del frozen, batch
    noise = jax.random.normal(keys[0])
    return params['kernel'] * noise, jnp.ones(()), {'noise': noise}

  tx = optax.sgd(0.1)
  step = jax.jit(make_train_step(noisy, tx))

  def run():
    state, seen = _state(tx), []
    for _ in range(3):
      rng = state_lib.step_key(state)
      state, metrics = step(state, BATCH, rng)
      seen.append(float(metrics['noise']))
    return seen

  assert run() == run()
  assert len(set(run())) == 3


def test_donated_state_is_usable_and_lowers_the_loss():
  tx = optax.adam(0.3, 0.9, 0.99)
  step = jax.jit(make_train_step(_loss, tx), donate_argnums=0)
  state, losses = _state(tx), []
  for _ in range(50):
    state, metrics = step(state, BATCH, KEY)
    losses.append(float(metrics['loss']))
  # Least squares over weights (1, 3): k = (1·2 + 3·4) / (1 + 3·4).
  np.testing.assert_allclose(state.params['kernel'], 14 / 13, atol=0.02)
  assert losses[-1] < 0.1 * losses[0]


def test_microbatches_draw_and_weigh_as_one_batch():
  def noisy(params, frozen, batch, keys):
    x = batch['x'] + jax.vmap(jax.random.normal)(keys)
    loss = batch['w'] * jnp.tanh(params['kernel'] * x + frozen)
    return loss.sum(), batch['w'].sum(), {'x': (batch['w'] * x).sum()}

  x = jnp.arange(8.0)
  batch = {'x': x, 'w': jnp.array([0.0, 5.0, 1.0, 2.0, 0.0, 0.0, 0.0, 3.0])}
  tx = optax.sgd(1.0)
  results = []
  for k in (1, 2, 4, 8):
    step = make_train_step(noisy, tx, microbatches=k)
    state, metrics = step(_state(tx, 0.1), batch, KEY, jnp.array(0.5))
    results.append((state.params, metrics))
  for other in results[1:]:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
      results[0],
      other,
    )
  with pytest.raises(ValueError, match='8 rows .* microbatches=3'):
    make_train_step(noisy, tx, microbatches=3)(_state(tx), batch, KEY)


def test_clipping_scales_a_long_gradient_only():
  # The gradient of `test_step_golden` is 12.5.
  tx = optax.sgd(0.1)
  for clip, used in ((5.0, 5.0), (20.0, 12.5)):
    step = make_train_step(_loss, tx, clip_norm=clip)
    state, metrics = step(_state(tx), BATCH, KEY)
    np.testing.assert_allclose(state.params['kernel'], 3 - 0.1 * used, 1e-6)
    np.testing.assert_allclose(metrics['grad_norm'], 12.5)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_counted(value):
  tx = optax.adam(0.1)
  step = jax.jit(make_train_step(_loss, tx, ema_decay=0.9))
  state, _ = step(_state(tx, ema=True), BATCH, KEY)
  bad = BATCH | {'y': BATCH['y'].at[1].set(value)}
  after, metrics = step(state, bad, KEY)
  after, _ = step(after, bad, KEY)
  for name in ('params', 'opt_state', 'ema'):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(state, name), getattr(after, name)
    )
  assert float(metrics['skipped']) == 1.0
  assert float(metrics['bad_streak']) == 1.0
  assert (int(after.step), int(after.skipped), int(after.bad_streak)) == (
    3,
    2,
    2,
  )
  good, _ = step(after, BATCH, KEY)
  assert (int(good.skipped), int(good.bad_streak)) == (2, 0)


def test_moving_average_golden():
  # SGD as in `test_step_golden`: 3 -> 1.75; 0.9 * 3 + 0.1 * 1.75.
  tx = optax.sgd(0.1)
  step = make_train_step(_loss, tx, ema_decay=0.9)
  state, _ = step(_state(tx, ema=True), BATCH, KEY)
  np.testing.assert_allclose(state.ema['kernel'], 2.875, rtol=1e-6)


def test_eval_sums_add_up_over_batches():
  evaluate = make_eval_step(_loss)
  params = {'kernel': jnp.array(3.0)}
  whole = evaluate(params, BATCH, KEY)
  parts = [
    evaluate(params, {k: v[i : i + 1] for k, v in BATCH.items()}, KEY)
    for i in range(3)
  ]
  assert {k: float(sum(p[k] for p in parts)) for k in whole} == {
    'loss': 49.0,
    'weight': 4.0,
    'error': 13.0,
  }
  assert {k: float(v) for k, v in whole.items()} == {
    'loss': 49.0,
    'weight': 4.0,
    'error': 13.0,
  }
