"""Experts without capacity against a loop over tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models.moe import MoE, block_plan, route
from tests.models import tiny


def naive(params, x, config):
  """The definition: token by token, expert by expert."""
  out = np.zeros_like(x)
  for i, token in enumerate(x):
    logits = params['router']['kernel'] @ token
    p = np.exp(logits - logits.max())
    p /= p.sum()
    chosen = np.argsort(-p, kind='stable')[: config.experts_per_token]
    weights = p[chosen]
    if config.norm_topk_prob:
      weights = weights / weights.sum()
    for weight, e in zip(weights, chosen, strict=True):
      gate = params['gate_up']['kernel'][e, 0] @ token
      up = params['gate_up']['kernel'][e, 1] @ token
      hidden = gate / (1 + np.exp(-gate)) * up
      out[i] += weight * (params['down']['kernel'][e] @ hidden)
  return out


@functools.cache
def experts():
  """Parameters, whatever the rows and the normalisation are."""
  moe = MoE(tiny.config('experts'))
  params = jax.jit(moe.init)(jax.random.key(0), np.zeros((1, 1, 32)))['params']
  return jax.tree.map(lambda w: np.asarray(w) * 20, params)


@pytest.mark.parametrize('rows', [1, 7, 300])
@pytest.mark.parametrize('normalise', [True, False])
def test_moe_equals_the_loop(rows, normalise):
  config = tiny.config('experts', norm_topk_prob=normalise)
  x = np.random.default_rng(0).normal(size=(1, rows, 32)).astype(np.float32)
  got = jax.jit(MoE(config).apply)({'params': experts()}, x)
  want = naive(experts(), x[0], config)
  np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)


def test_block_plan_trace():
  slot, owner = block_plan(jnp.array([2, 0, 2, 2]), 3, 2)
  assert slot.tolist() == [2, 0, 3, 4]
  assert owner.tolist()[:3] == [0, 2, 2]


def test_route_normalises_over_the_chosen():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
  weights, experts = route(logits, 2, True)
  np.testing.assert_allclose(weights, [[0.625, 0.375]], rtol=1e-6)
  assert experts.tolist() == [[0, 1]]
  weights, _ = route(logits, 2, False)
  np.testing.assert_allclose(weights, [[0.5, 0.3]], rtol=1e-6)
