"""Means over batches do not depend on how the rows are divided."""

import jax
import jax.numpy as jnp
import pytest

from llm.train.evaluate import mean_metrics
from llm.train.step import make_eval_step


def _loss(params, frozen, batch, keys):
  assert keys.shape == batch['weight'].shape
  weight = batch['weight']
  losses = params * frozen * batch['value']
  hits = weight * (batch['value'] > 2.0)
  return (weight * losses).sum(), weight.sum(), {'large': hits.sum()}


def test_each_row_counts_by_its_weight():
  step = jax.jit(make_eval_step(_loss))
  values, weights = jnp.array([1.0, 2.0, 4.0]), jnp.array([2.0, 0.0, 3.0])

  def means(*parts):
    batches = ({'value': values[p], 'weight': weights[p]} for p in parts)
    return mean_metrics(step, 0.5, batches, frozen=10.0)

  # (2 · 1 + 3 · 4) / 5 · 5, and 3 of 5.
  for found, weight in (
    means(slice(0, 3)),
    means(slice(0, 1), slice(1, 3)),
    means(slice(2, 3), slice(0, 1)),
  ):
    assert weight == 5.0
    assert found == pytest.approx({'loss': 14.0, 'large': 0.6})
