"""Filters: hand-computed goldens, and a sort-based oracle in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.decode import filters

INF = np.inf


@functools.cache
def batched(name):
  return jax.jit(jax.vmap(getattr(filters, name)))


def kept(name, probs, *settings):
  """Ids that survive the filter on rows of probabilities."""
  logits = jnp.log(jnp.asarray(probs, jnp.float32))
  rows = len(logits)
  settings = [jnp.broadcast_to(jnp.asarray(s), (rows,)) for s in settings]
  out = np.asarray(batched(name)(logits, *settings))
  alive = out > -INF
  # Survivors keep their logits bit for bit.
  np.testing.assert_array_equal(out[alive], np.asarray(logits)[alive])
  return [np.flatnonzero(row).tolist() for row in alive]


def test_top_k_keeps_the_largest_and_their_ties():
  logits = jnp.array(
    [[3.0, 1.0, 2.0, 2.0, -INF], [-0.0, 0.0, -5.0, 2.0**-99, 4.0]]
  )
  run = lambda k: np.asarray(batched('top_k')(logits, jnp.array([k, k])))
  np.testing.assert_array_equal(
    run(2), [[3, -INF, 2, 2, -INF], [-INF, -INF, -INF, 2.0**-99, 4]]
  )
  np.testing.assert_array_equal(
    run(3), [[3, -INF, 2, 2, -INF], [0, 0, -INF, 2.0**-99, 4]]
  )
  np.testing.assert_array_equal(run(9), logits)
  np.testing.assert_array_equal(
    run(1), [[3, -INF, -INF, -INF, -INF], [-INF] * 4 + [4]]
  )


def test_top_p_goldens():
  probs = [[0.3, 0.1, 0.1, 0.5], [0.15, 0.3, 0.3, 0.25]]
  cut = lambda p: np.float32(1.0 - p)
  assert kept('top_p', probs, cut(0.8)) == [[0, 3], [1, 2, 3]]
  assert kept('top_p', probs, cut(0.5)) == [[3], [1, 2]]
  # Of equals the higher id goes first.
  assert kept('top_p', probs, cut(0.25)) == [[3], [1]]
  assert kept('top_p', probs, cut(0.85)) == [[0, 1, 3], [1, 2, 3]]
  assert kept('top_p', [[0.25] * 4], cut(0.6)) == [[0, 1, 2]]
  # The likeliest stays however small p is.
  assert kept('top_p', probs, cut(1e-12)) == [[3], [1]]


def test_min_p_goldens():
  probs = [[0.9, 0.0274, 0.047, 0.0274], [0.97, 0.01, 0.01, 0.01]]
  assert kept('min_p', probs, 0.05) == [[0, 2], [0]]
  assert kept('min_p', probs, 1.0) == [[0], [0]]


def test_typical_prefers_what_is_near_the_entropy():
  # Second row: H = 1.332; surprises .916 and 1.609, so .2 is nearer (.277)
  # than .4 (.416), and two of the three make .4 < .5: the third ties.
  probs = [[0.97, 0.01, 0.01, 0.01], [0.4, 0.2, 0.2, 0.2]]
  assert kept('typical', probs, 0.5) == [[0], [1, 2, 3]]
  assert kept('typical', probs, 0.9) == [[0], [0, 1, 2, 3]]


def test_epsilon_and_eta_goldens():
  probs = [[0.87, 0.099, 0.001, 0.03], [0.4, 0.299, 0.101, 0.2]]
  assert kept('epsilon', probs, 0.1) == [[0], [0, 1, 2, 3]]
  assert kept('epsilon', probs, 0.9) == [[0], [0]]
  # Cutoffs min(.0625, .25 exp(-H)): H = .639 and .428, .132 and .163.
  probs = [[0.0, 0.1, 0.8, 0.1], [0.01, 0.04, 0.9, 0.05]]
  assert kept('eta', probs, 0.0625) == [[1, 2, 3], [2]]


def test_xtc_spares_the_least_likely_of_the_likely():
  keys = jax.random.split(jax.random.key(0), 4)
  probs = [
    [0.5, 0.3, 0.15, 0.05],
    [0.05, 0.15, 0.5, 0.3],
    [0.85, 0.09, 0.03, 0.03],  # one likely token: nothing happens
    [0.4, 0.2, 0.2, 0.2],  # of equals the highest id is spared
  ]
  run = lambda chance: np.asarray(
    batched('xtc')(
      jnp.log(jnp.array(probs)), jnp.full(4, chance), jnp.full(4, 0.1), keys
    )
  )
  alive = [np.flatnonzero(row > -INF).tolist() for row in run(1.0)]
  assert alive == [[2, 3], [0, 1], [0, 1, 2, 3], [3]]
  assert (run(0.0) > -INF).all()


def test_xtc_acts_with_its_probability():
  keys = jax.random.split(jax.random.key(1), 4000)
  logits = jnp.zeros((4000, 2))
  out = batched('xtc')(logits, jnp.full(4000, 0.3), jnp.full(4000, 0.5), keys)
  share = np.mean(np.isinf(np.asarray(out)).any(axis=-1))
  # 4 standard deviations of a binomial share.
  assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)


def softmax(logits):
  weights = np.exp(logits - logits.max())
  return weights / weights.sum()


def oracle_top_k(logits, k):
  return logits >= np.sort(logits)[::-1][min(k, len(logits)) - 1]


def oracle_top_p(logits, cut):
  order = np.argsort(logits, kind='stable')
  gone = np.cumsum(softmax(logits)[order]) <= cut
  gone[-1] = False
  keep = np.empty(len(logits), bool)
  keep[order] = ~gone
  return keep


def oracle_typical(logits, mass):
  probs = softmax(logits)
  with np.errstate(divide='ignore', invalid='ignore'):
    surprise = -np.log(probs)
    entropy = np.nansum(probs * surprise)
  distance = np.abs(surprise - entropy)
  ranked = np.sort(distance)
  total = np.cumsum(probs[np.argsort(distance, kind='stable')])
  last = min(np.sum(total < mass), len(logits) - 1)
  return distance <= ranked[last]


@pytest.mark.parametrize(
  ('name', 'oracle', 'settings'),
  [
    ('top_k', oracle_top_k, [1, 2, 17, 100, 499, 500, 9999]),
    ('top_p', oracle_top_p, [0.999, 0.9, 0.5, 0.31, 0.1, 0.01, 1e-4]),
    ('typical', oracle_typical, [0.001, 0.1, 0.2, 0.5, 0.9, 0.97, 0.999]),
  ],
)
def test_search_finds_what_sorting_finds(name, oracle, settings):
  rng = np.random.default_rng(3)
  dtype = np.int32 if name == 'top_k' else np.float32
  values = np.array(settings, dtype)
  for scale in (0.01, 3.0, 40.0):
    logits = rng.normal(0.0, scale, (len(values), 500)).astype(np.float32)
    logits[:, ::7] = -INF
    out = batched(name)(jnp.asarray(logits), jnp.asarray(values))
    for row in range(len(values)):
      expected = oracle(logits[row].astype(np.float64), values[row])
      np.testing.assert_array_equal(
        np.asarray(out[row]) > -INF,
        expected & (logits[row] > -INF),
        err_msg=f'{name} {values[row]} scale {scale}',
      )
