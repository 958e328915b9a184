"""Reward models' losses: numbers by hand, signs, sums that add up."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.losses import reward

bradley_terry_loss = jax.jit(
  reward.bradley_terry_loss, static_argnames='center_coef'
)
process_reward_loss = jax.jit(reward.process_reward_loss)
token_classification_loss = jax.jit(reward.token_classification_loss)
LOG_SIGMOID = lambda x: -math.log1p(math.exp(-x))


def test_bradley_terry_golden():
  chosen, rejected = jnp.array([2.0, 0.0]), jnp.array([1.0, 1.0])
  loss, weight, metrics = bradley_terry_loss(chosen, rejected)
  expected = -LOG_SIGMOID(1.0) - LOG_SIGMOID(-1.0)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert float(weight) == 2.0
  values = {name: float(value) for name, value in metrics.items()}
  assert values == {
    'reward_accuracy': 1.0,
    'reward_margin': 0.0,
    'chosen_reward': 2.0,
    'rejected_reward': 2.0,
  }
  loss, _, _ = bradley_terry_loss(
    chosen, rejected, margin=jnp.array([0.5, 2.0]), center_coef=0.01
  )
  expected = -LOG_SIGMOID(0.5) - LOG_SIGMOID(-3.0) + 0.01 * (9 + 1)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_bradley_terry_signs_ties_and_padding():
  chosen = jnp.array([0.5, 3.0, jnp.nan])
  rejected = jnp.array([0.5, -1.0, jnp.inf])
  weights = jnp.array([1, 2, 0])

  def loss(c, r):
    return bradley_terry_loss(c, r, weights)[0]

  value, (by_chosen, by_rejected) = jax.value_and_grad(loss, (0, 1))(
    chosen, rejected
  )
  np.testing.assert_allclose(
    value, math.log(2) - 2 * LOG_SIGMOID(4.0), rtol=1e-6
  )
  np.testing.assert_allclose(by_chosen, -by_rejected)
  np.testing.assert_array_equal(np.sign(by_chosen), [-1, -1, 0])
  metrics = bradley_terry_loss(chosen, rejected, weights)[2]
  assert float(metrics['reward_accuracy']) == 2.0  # a tie is no hit
  parts = [
    bradley_terry_loss(chosen[i], rejected[i], weights[i])
    for i in (slice(0, 1), slice(1, 3))
  ]
  np.testing.assert_allclose(parts[0][0] + parts[1][0], value, rtol=1e-6)


def test_process_reward_is_two_class_classification():
  rng = np.random.default_rng(0)
  scores = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 2, (3, 5)))
  marked = jnp.asarray(rng.integers(0, 2, (3, 5)))
  binary = process_reward_loss(scores, labels, marked)
  logits = jnp.stack([jnp.zeros_like(scores), scores], axis=-1)
  classes = token_classification_loss(
    logits, jnp.where(marked == 1, labels, -100)
  )
  np.testing.assert_allclose(binary[0], classes[0], rtol=1e-5)
  assert float(binary[1]) == float(classes[1]) == float(marked.sum())
  assert float(binary[2]['accuracy']) == float(classes[2]['accuracy'])


def test_process_reward_golden_and_sign():
  scores = jnp.array([[2.0, -1.0, jnp.inf]])
  labels, weights = jnp.array([[1.0, 0.25, 0.0]]), jnp.array([[1, 1, 0]])
  value, grad = jax.value_and_grad(
    lambda s: process_reward_loss(s, labels, weights)[0]
  )(scores)
  expected = (
    -LOG_SIGMOID(2.0) - 0.25 * LOG_SIGMOID(-1.0) - 0.75 * LOG_SIGMOID(1.0)
  )
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  sigmoid = 1 / (1 + np.exp(-np.array([2.0, -1.0])))
  np.testing.assert_allclose(grad[0, :2], sigmoid - [1.0, 0.25], rtol=1e-5)
  assert float(grad[0, 2]) == 0.0


def test_token_classification_drops_what_has_no_label():
  logits = jnp.array([[0.0, math.log(3.0)], [jnp.inf, jnp.nan], [0.0, 0.0]])
  labels = jnp.array([1, -100, 0])
  loss, weight, metrics = token_classification_loss(logits, labels)
  np.testing.assert_allclose(loss, math.log(4 / 3) + math.log(2), rtol=1e-6)
  assert float(weight) == 2.0
  assert float(metrics['accuracy']) == 2.0
  grad = jax.grad(lambda x: token_classification_loss(x, labels)[0])
  np.testing.assert_allclose(
    grad(logits), [[0.25, -0.25], [0, 0], [-0.5, 0.5]], atol=1e-6
  )


def test_reward_is_read_at_the_last_token_on_either_padding_side():
  values = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
  mask = jnp.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]])
  found = reward.at_last_token(values, mask)
  np.testing.assert_array_equal(found, [2.0, 6.0, 0.0])


def test_mismatched_shapes_are_named():
  with pytest.raises(ValueError, match=r'margin has shape \(1,\)'):
    bradley_terry_loss(jnp.ones(2), jnp.ones(2), margin=jnp.ones(1))
