"""Over-optimisation: its networks, its rewards, its curves and its goals."""

import itertools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.exact_frontier import language
from experiments.overoptimisation import (
  analyze,
  curves,
  measure,
  networks,
  policy,
)
from experiments.overoptimisation import gold as gold_lib
from experiments.overoptimisation import proxy as proxy_lib
from llm import config_args
from llm.errors import UserError

CONFIG = 'experiments/overoptimisation/config.py:smoke'


@pytest.fixture(scope='module')
def params():
  return language.init_params(jax.random.key(7))


def test_token_by_token_it_is_the_policy_of_the_small_language(params):
  strings = jnp.asarray(language.STRINGS[::97])
  logprobs = networks.token_logprobs(params, strings)
  found = networks.taken(logprobs, strings).sum(axis=1)
  expected = language.all_logprobs(params)[::97]
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_samples_come_with_their_own_log_probabilities(params):
  strings, logprobs = networks.sample(params, jax.random.key(0), 4096, 7)
  assert strings.shape == (4096, 7) and logprobs.shape == (4096, 7, 6)
  expected = networks.token_logprobs(params, strings)
  np.testing.assert_allclose(logprobs, expected, atol=1e-5)
  shares = np.bincount(strings[:, 0], minlength=6) / 4096
  np.testing.assert_allclose(shares, np.exp(logprobs[0, 0]), atol=0.03)


def test_the_kl_of_prefixes_is_that_of_all_strings(params):
  other = language.init_params(jax.random.key(8))
  logs = np.asarray(language.all_logprobs(params), np.float64)
  ref = np.asarray(language.all_logprobs(other), np.float64)
  strings, logprobs = networks.sample(params, jax.random.key(0), 20_000, 5)
  found = policy.kl_of_prefixes(
    logprobs, networks.token_logprobs(other, strings)
  )
  np.testing.assert_allclose(found, np.exp(logs) @ (logs - ref), rtol=0.02)


def test_gold_pays_triples_and_charges_their_repetition():
  worth = jnp.arange(216.0)
  plain = gold_lib.Gold(worth, jnp.zeros(()), jnp.ones(()))
  number = lambda a, b, c: 36 * a + 6 * b + c
  strings = jnp.array([[0, 1, 2, 3, 4], [5, 5, 5, 5, 5], [1, 2, 1, 2, 1]])
  expected = [
    number(0, 1, 2) + number(1, 2, 3) + number(2, 3, 4),
    3 * number(5, 5, 5) - 3 * gold_lib.PENALTY,  # three pairs of equals
    2 * number(1, 2, 1) + number(2, 1, 2) - gold_lib.PENALTY,
  ]
  np.testing.assert_allclose(gold_lib.score(plain, strings), expected)


def test_gold_is_standardised_by_samples_and_by_weights(params):
  strings, _ = networks.sample(params, jax.random.key(0), 512, 20)
  gold = gold_lib.make_gold(jax.random.key(1), strings)
  values = np.asarray(gold_lib.score(gold, strings))
  np.testing.assert_allclose((values.mean(), values.std()), (0, 1), atol=1e-5)
  few = jnp.array([[0, 1, 2], [3, 4, 5]])
  weights = jnp.array([0.2, 0.8])
  gold = gold_lib.make_gold(jax.random.key(1), few, weights)
  values = gold_lib.score(gold, few)
  moments = (weights @ values, weights @ values**2)
  np.testing.assert_allclose(moments, (0.0, 1.0), atol=1e-5)


def test_labels_are_those_of_bradley_and_terry_and_of_a_coin():
  strings = jnp.arange(8000)[:, None]
  rewards = jnp.where(strings[:, 0] < 4000, 1.0, 0.0)  # the first is better
  right, coin = proxy_lib.compare(jax.random.key(0), strings, rewards)
  share = np.mean(right.chosen < 4000)
  np.testing.assert_allclose(share, 1 / (1 + np.exp(-1.0)), atol=0.02)
  np.testing.assert_allclose(np.mean(coin.chosen < 4000), 0.5, atol=0.03)
  for pairs in (right, coin):
    both = np.sort(np.stack([pairs.chosen, pairs.rejected]), axis=0)[..., 0]
    np.testing.assert_array_equal(both, strings.reshape(2, 4000))


@pytest.mark.slow
def test_a_proxy_learns_an_order_from_the_pairs_it_knows():
  rng = np.random.default_rng(0)
  strings = jnp.asarray(rng.integers(0, 6, (400, 6)), jnp.int32)
  zeros = jnp.sum(strings == 0, axis=1)
  first, second = jnp.split(strings, 2)
  wins = (zeros[:200] > zeros[200:])[:, None]
  better, worse = jnp.where(wins, first, second), jnp.where(wins, second, first)
  # From the hundredth pair on everything says the opposite.
  known = (jnp.arange(200) < 100)[:, None]
  pairs = proxy_lib.Pairs(
    jnp.where(known, better, worse), jnp.where(known, worse, better)
  )
  settings = proxy_lib.Settings(width=8, steps=60, rate=3e-2, batch_size=32)
  train = jax.jit(proxy_lib.make_trainer(settings))
  proxy = train(jax.random.key(0), pairs, 100, strings)
  scores = np.asarray(proxy_lib.score(proxy, strings))
  np.testing.assert_allclose((scores.mean(), scores.std()), (0, 1), atol=1e-4)
  assert np.corrcoef(scores, zeros)[0, 1] > 0.6


@pytest.mark.parametrize('n', [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_sets(n):
  scores = np.array([0.3, -1.0, 2.0, 0.9, 0.1])
  values = np.array([10.0, 20.0, 30.0, -5.0, 1.0])
  best = [
    max(drawn, key=lambda i: scores[i])
    for drawn in itertools.combinations(range(5), n)
  ]
  expected = (scores[best].mean(), values[best].mean())
  np.testing.assert_allclose(curves.best_of_n(scores, values, n), expected)


def test_best_of_n_by_hand():
  # Of three the pairs are (a, b), (a, c), (b, c): best b, c, c.
  found = curves.best_of_n(np.array([1.0, 2.0, 3.0]), np.array([7.0, 1, 4]), 2)
  np.testing.assert_allclose(found, ((2 + 3 + 3) / 3, (1 + 4 + 4) / 3))
  np.testing.assert_allclose(curves.best_of_n_kl(2), np.log(2) - 0.5)


def test_fits_find_the_coefficients_of_both_forms():
  d = np.linspace(0.0, 5.0, 21)
  curve = d * 1.5 - 0.4 * d * np.log(np.maximum(d, 1e-9))
  np.testing.assert_allclose(curves.fit_rl(d**2, curve), (1.5, 0.4, 1.0))
  np.testing.assert_allclose(
    curves.fit_best_of_n(d**2, d * (0.9 - 0.2 * d)), (0.9, 0.2, 1.0)
  )
  other = curves.fit_rl(d**2, np.where(d > 2.5, 1.0, -1.0))
  assert other.r2 < 0.9


def rows_of(golds, proxy=(0.0, 1.0, 2.0)):
  """Rows of `long` with the given gold curves of the judge 30."""
  rows = []
  for seed, gold in enumerate(golds):
    row = {'config.part': 'long', 'config.seed': seed}
    for name, values in (('kl', (0, 1, 4)), ('proxy', proxy), ('gold', gold)):
      row |= {f'rl_30.{name}.{i:02d}': v for i, v in enumerate(values)}
    rows.append(row)
  return rows[::-1]


def test_peaks_falls_and_setbacks_are_those_of_the_rows():
  rows = rows_of([(0.0, 2.0, 1.0), (0.0, 1.0, 2.0)], proxy=(0.0, 4.0, 3.0))
  way = ('long', 'rl')
  found = analyze.curves_of(rows, way, 30)
  assert analyze.peaks(rows, way, 30) == [2.0, 2.0]
  assert curves.fall([0.0, 2.0, 1.0]) == (2.0, 1.0, 1)
  assert analyze.fall_share(found) == 1.0 - statistics.fmean((1, 2)) / 2.0
  assert analyze.setback(found) == 0.25
  np.testing.assert_allclose(analyze.mean_curve(found).gold, (0, 1.5, 1.5))
  np.testing.assert_allclose(analyze.mean_curve(found).kl, (0, 1, 4))


@pytest.mark.slow
def test_a_run_has_all_curves(monkeypatch):
  monkeypatch.setattr(networks, '_UNROLL', 1)  # less to compile
  config = config_args.load_config(CONFIG)
  config.length = 5
  result = measure.long(config)
  for judge in (*measure.JUDGES, measure.GOLD):
    found = analyze.curve(flat(result), f'rl_{judge}')
    assert [len(column) for column in found] == [3, 3, 3]
    np.testing.assert_allclose(found.kl[0], 0.0, atol=1e-4)
    assert found.kl[-1] > 0.0
  # Judged by gold itself, both rewards are one.
  np.testing.assert_allclose(found.proxy, found.gold)
  best = analyze.curve(flat(result), 'best_3000')
  assert (
    len(best.kl) == len(measure.SAMPLES) and (np.diff(best.proxy) > 0).all()
  )


def flat(result):
  return {
    f'{name}.{column}.{i}': value
    for name, points in result.items()
    if isinstance(points, dict)
    for column, values in points.items()
    for i, value in values.items()
  }


def test_what_a_run_needs_is_said(tmp_path):
  config = config_args.load_config(CONFIG)
  with pytest.raises(UserError, match='no --workdir'):
    measure.run(config, None)
  config.part = 'middle'
  with pytest.raises(UserError, match="part='middle': use one of long, short"):
    measure.run(config, str(tmp_path))
