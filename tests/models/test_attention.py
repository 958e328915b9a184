"""Attention of few queries and of many: one result, no copy of the values."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models.attention import attend
from llm.models.cache import Segment


def _arrays(queries, heads, groups, batch=2, slots=48, size=16):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  q = draw(batch, queries, heads, groups, size)
  k, v = draw(batch, heads, slots, size), draw(batch, heads, size, slots)
  mask = jnp.asarray(rng.random((batch, queries, slots)) < 0.7)
  return q, k, v, mask


def _attend(q, k, v, mask):
  return attend(q, [Segment(k, v, mask)], scale=0.25)


# 16 weights of a key head are the most that come second (`_FEW_QUERIES`).
@pytest.mark.parametrize(('queries', 'groups'), [(17, 1), (24, 2)])
def test_each_query_alone_is_as_all_at_once(queries, groups):
  q, k, v, mask = _arrays(queries, heads=3, groups=groups)
  together = jax.jit(_attend)(q, k, v, mask)
  scores = np.einsum('btkgh,bksh->bkgts', q, k, dtype=np.float64) * 0.25
  scores = np.where(mask[:, None, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum('bkgts,bkhs->btkgh', weights, v)
  np.testing.assert_allclose(together, expected, atol=1e-6)
  for t in (0, queries - 1):
    alone = jax.jit(_attend)(q[:, t : t + 1], k, v, mask[:, t : t + 1])
    np.testing.assert_allclose(alone[:, 0], expected[:, t], atol=1e-6)


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of XLA:CPU alone')
def test_a_decode_step_copies_no_values():
  arrays = _arrays(1, heads=4, groups=1, batch=1)
  program = jax.jit(_attend).lower(*arrays).compile().as_text()
  moved = re.findall(r'= \w+\[([\d,]+)\]\S* (?:copy|transpose)\(', program)
  assert moved  # of the queries and the weights
  sizes = [math.prod(map(int, shape.split(','))) for shape in moved]
  assert max(sizes) < arrays[2].size
