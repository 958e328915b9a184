"""Cross entropy against hand-computed numbers, and what a weight means."""

import math

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from llm.losses import common, language

cross_entropy_loss = jax.jit(language.cross_entropy_loss)


def _case(seed=0, shape=(2, 3), vocab=5):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(*shape, vocab)).astype(np.float32)
  targets = rng.integers(0, vocab, shape)
  weights = rng.uniform(0.5, 2.0, shape).astype(np.float32)
  return jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(weights)


def test_cross_entropy_golden():
  # Probabilities by hand: logits log(1, 2, 5) are 1/8, 2/8, 5/8; equal logits
  # are 1/3 each.
  logits = jnp.log(jnp.array([[[1.0, 2.0, 5.0], [7.0, 7.0, 7.0]]]))
  targets = jnp.array([[1, 0]])
  weights = jnp.array([[2.0, 0.5]])
  loss_sum, weight_sum, metrics = cross_entropy_loss(logits, targets, weights)
  expected = 2.0 * math.log(4.0) + 0.5 * math.log(3.0)
  np.testing.assert_allclose(loss_sum, expected, rtol=1e-6)
  assert float(weight_sum) == 2.5
  # The first is a miss (token 2 is likelier), the tie goes to token 0.
  assert float(metrics['correct']) == 0.5


def test_token_logprobs_are_float32_and_stable():
  logits = jnp.array([[1e4, 0.0], [-1e4, 0.0]], jnp.bfloat16)
  logprobs = common.token_logprobs(logits, jnp.array([0, 1]))
  assert logprobs.dtype == jnp.float32
  np.testing.assert_array_equal(logprobs, [0.0, 0.0])


def test_weight_zero_is_a_dropped_row():
  logits, targets, weights = _case(shape=(4, 3))
  weights = weights.at[2].set(0.0)
  kept = jnp.array([0, 1, 3])
  masked = cross_entropy_loss(logits, targets, weights)
  dropped = cross_entropy_loss(logits[kept], targets[kept], weights[kept])
  for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(dropped)):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  grads = jax.grad(lambda x: cross_entropy_loss(x, targets, weights)[0])
  assert not np.any(np.asarray(grads(logits)[2]))


def test_weight_zero_drops_an_impossible_target():
  logits = jnp.array([[0.0, -jnp.inf], [0.0, 0.0]])
  loss_sum, weight_sum, _ = cross_entropy_loss(
    logits, jnp.array([1, 1]), jnp.array([0.0, 1.0])
  )
  np.testing.assert_allclose(loss_sum, math.log(2.0), rtol=1e-6)
  assert float(weight_sum) == 1.0


def test_sums_add_up_over_parts():
  logits, targets, weights = _case(shape=(4, 3))
  whole = cross_entropy_loss(logits, targets, weights)
  parts = [
    cross_entropy_loss(logits[i : i + 1], targets[i : i + 1], w)
    for i, w in enumerate(jnp.split(weights, 4))
  ]
  added = jax.tree.map(lambda *xs: sum(xs), *parts)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(added)):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_gradient_is_softmax_minus_one_hot():
  logits, targets, weights = _case()

  def loss(x):
    return cross_entropy_loss(x, targets, weights)[0]

  expected = weights[..., None] * (
    jax.nn.softmax(logits) - jax.nn.one_hot(targets, logits.shape[-1])
  )
  np.testing.assert_allclose(jax.grad(loss)(logits), expected, atol=1e-6)
  check_grads(loss, (logits,), order=1, modes=['rev'], atol=1e-2, rtol=1e-2)


def test_mismatched_shapes_are_named():
  logits, targets, weights = _case()
  with pytest.raises(ValueError, match=r'weights has shape \(2, 2\)'):
    language.cross_entropy_loss(logits, targets, weights[:, :2])
  with pytest.raises(ValueError, match=r'tokens has shape \(2, 2\)'):
    language.cross_entropy_loss(logits, targets[:, :2], weights[:, :2])


def test_next_token_targets_golden():
  tokens = jnp.array([[5, 6, 7, 8, 9, 0]])
  segment_ids = jnp.array([[1, 1, 1, 2, 2, 0]])
  targets, weights = language.next_token_targets(
    tokens, segment_ids > 0, segment_ids
  )
  np.testing.assert_array_equal(targets, [[6, 7, 8, 9, 0, 0]])
  np.testing.assert_array_equal(weights, [[1, 1, 0, 1, 0, 0]])
  # Only token 7 is to be predicted: from position 1, where 6 stands.
  mask = tokens == 7
  _, weights = language.next_token_targets(tokens, mask, segment_ids)
  np.testing.assert_array_equal(weights, [[0, 1, 0, 0, 0, 0]])
