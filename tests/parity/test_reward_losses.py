"""Reward losses beside TRL's (and, for steps, torch's): value and gradient."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.losses import reward

torch = pytest.importorskip('torch')
pytest.importorskip('trl')
trl_stubs = importlib.import_module('tests.parity.trl_stubs')


@pytest.mark.parametrize('center', [None, 0.01])
@pytest.mark.parametrize('with_margin', [True, False])
def test_bradley_terry(with_margin, center):
  rng = np.random.default_rng(0)
  chosen, rejected = rng.normal(size=(2, 7)).astype(np.float32) * 2
  margin = None
  if with_margin:
    margin = rng.uniform(0, 2, 7).astype(np.float32)
  leaves = [torch.tensor(x, requires_grad=True) for x in (chosen, rejected)]
  theirs = trl_stubs.reward(
    *leaves, None if margin is None else torch.tensor(margin), center
  )
  theirs.backward()

  def loss(c, r):
    loss_sum, weight_sum, _ = reward.bradley_terry_loss(
      c, r, margin=margin, center_coef=center or 0.0
    )
    return loss_sum / weight_sum

  value, grads = jax.value_and_grad(loss, (0, 1))(
    jnp.asarray(chosen), jnp.asarray(rejected)
  )
  np.testing.assert_allclose(value, theirs.detach(), rtol=1e-5)
  for ours, leaf in zip(grads, leaves):
    np.testing.assert_allclose(ours, leaf.grad, rtol=1e-5, atol=1e-6)


def test_token_classification_is_that_of_transformers():
  rng = np.random.default_rng(1)
  logits = rng.normal(size=(3, 6, 2)).astype(np.float32)
  labels = rng.integers(0, 2, (3, 6))
  labels[rng.random((3, 6)) < 0.6] = -100
  leaf = torch.tensor(logits, requires_grad=True)
  theirs = torch.nn.CrossEntropyLoss()(
    leaf.view(-1, 2), torch.tensor(labels).view(-1)
  )
  theirs.backward()

  def loss(x):
    sums = reward.token_classification_loss(x, jnp.asarray(labels))
    return sums[0] / sums[1]

  value, grad = jax.value_and_grad(loss)(jnp.asarray(logits))
  np.testing.assert_allclose(value, theirs.detach(), rtol=1e-5)
  np.testing.assert_allclose(grad, leaf.grad, rtol=1e-5, atol=1e-6)
