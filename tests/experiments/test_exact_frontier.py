"""The exact frontier: what is counted is counted right."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from experiments.exact_frontier import analyze, language, learners, measure
from experiments.exact_frontier.language import World
from experiments.exact_frontier.learners import Settings
from llm import config_args
from llm.errors import UserError
from llm.losses import policy, preference

CONFIG = 'experiments/exact_frontier/config.py:smoke'


@pytest.fixture(scope='module')
def world():
  return language.make_world(7)


def small_world(probs, reward):
  """A language of a few strings, for the functions that only count."""
  return World({}, np.log(np.asarray(probs)), np.asarray(reward, np.float64))


def test_the_policy_is_a_distribution_over_all_strings(world):
  assert language.STRINGS.shape == (7776, 5)
  assert len({tuple(string) for string in language.STRINGS.tolist()}) == 7776
  logprobs = np.asarray(language.all_logprobs(world.params), np.float64)
  np.testing.assert_allclose(np.exp(logprobs).sum(), 1.0, atol=1e-5)
  np.testing.assert_allclose(np.exp(world.ref).sum(), 1.0, atol=1e-12)
  np.testing.assert_allclose(logprobs, world.ref, atol=1e-5)


def test_a_string_is_as_likely_as_its_tokens_one_by_one(world):
  ids = jnp.array([0, 1, 4711, 7775])
  tables = language.prefix_tables(world.params)
  tokens, values = language.at_tokens(tables, ids)
  assert tokens.shape == values.shape == (4, 5)
  for i, row in zip(ids.tolist(), np.asarray(tokens), strict=True):
    np.testing.assert_allclose(row, one_by_one(world.params, i), atol=1e-5)
    np.testing.assert_allclose(row.sum(), world.ref[i], atol=1e-5)


def one_by_one(params, number):
  """Log-probabilities of a string's tokens by a cell that reads one token."""
  p = {name: np.asarray(value, np.float64) for name, value in params.items()}
  width, out = language.WIDTH, []
  state = np.tanh(p['start'])
  for token in language.STRINGS[number]:
    logits = state @ p['head'] + p['head_bias']
    out.append(logits[token] - np.logaddexp.reduce(logits))
    old, new = state @ p['state'] + p['bias'], p['token'][token]
    gates = 1.0 / (1.0 + np.exp(-(old + new)[: 2 * width]))
    reset, keep = gates[:width], gates[width:]
    fresh = np.tanh(new[2 * width :] + reset * old[2 * width :])
    state = (1.0 - keep) * fresh + keep * state
  return out


def test_rewards_are_standardised_and_of_one_law(world):
  weights = np.exp(world.ref)
  np.testing.assert_allclose(weights @ world.reward, 0.0, atol=1e-12)
  np.testing.assert_allclose(weights @ world.reward**2, 1.0)
  assert len(np.unique(np.round(world.reward, 9))) > 1000
  # ln of a gamma variable of shape a: its skewness is psi''(a) / psi'(a)^1.5.
  shape = language.REWARD_SHAPE
  skewness = special.polygamma(2, shape) / special.polygamma(1, shape) ** 1.5
  np.testing.assert_allclose(weights @ world.reward**3, skewness, atol=0.03)


def test_grades_are_quantiles_in_the_order_of_the_scores():
  score = np.array([3.0, -1.0, 5.0])
  weights = np.array([0.5, 0.3, 0.2])
  expected = np.log(
    special.gammaincinv(language.REWARD_SHAPE, [0.55, 0.15, 0.9])
  )
  np.testing.assert_allclose(language.grade(score, weights), expected)


def test_the_frontier_is_what_brute_force_finds():
  world = small_world((0.5, 0.3, 0.2), (0.0, 1.0, 3.0))
  mean = np.exp(world.ref) @ world.reward
  grid = np.linspace(0.0, 1.0, 801)
  a, b = np.meshgrid(grid, grid)
  policies = np.stack([a, b, 1.0 - a - b], -1)[a + b <= 1.0]
  with np.errstate(divide='ignore', invalid='ignore'):
    terms = policies * (np.log(policies) - world.ref)
  kl = np.nan_to_num(terms).sum(axis=1)
  for limit in (0.05, 0.3, 1.0):
    best = (policies @ world.reward)[kl <= limit].max() - mean
    found = language.frontier_gain(world, limit)
    assert best <= found + 1e-9
    np.testing.assert_allclose(found, best, atol=0.01)
  # Beyond -log 0.2 there is nothing but the best string.
  np.testing.assert_allclose(language.frontier_gain(world, 9.0), 3.0 - mean)


def test_a_policy_on_the_frontier_has_all_of_its_gain(world):
  point = language.place(world, language.optimum(world, 0.8))
  assert point.kl > 0.2
  np.testing.assert_allclose(point.ratio, 1.0, atol=1e-9)
  start = language.place(world, world.ref)
  np.testing.assert_allclose((start.kl, start.gain), 0.0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize('corrected', [False, True])
def test_at_the_fixed_point_the_gradient_of_grpo_is_nothing(world, corrected):
  coef, size = 0.5, 16
  found = language.grpo_fixed_point(world, coef, size, corrected)
  np.testing.assert_allclose(np.exp(found).sum(), 1.0)
  probs = np.exp(found)
  centred = world.reward - probs @ world.reward
  advantages = centred * (1 - 1 / size) / np.sqrt(probs @ centred**2)
  ids = jnp.arange(language.COUNT)
  tokens = lambda tables: language.at_tokens((tables, tables), ids)[0]
  best, ref = (
    [
      jnp.asarray(x, jnp.float32).reshape(-1, 6)
      for x in language._conditionals(y)
    ]
    for y in (found, world.ref)
  )
  # The table's own expectation: each string weighs its probability.
  one = jax.vmap(
    lambda *row: policy.grpo_loss(
      *(x[None] for x in row[:3]), jnp.ones((1, 5), bool), row[3][None],
      kl_coef=coef, kl_corrected=corrected, reduction='sequence',
    )[0]
  )  # fmt: skip

  def loss(logits):
    logprobs = tokens([jax.nn.log_softmax(x) for x in logits])
    old = tokens(best)
    rows = one(logprobs, old, jnp.asarray(advantages, jnp.float32), tokens(ref))
    return jnp.asarray(probs, jnp.float32) @ rows

  at = lambda tables: max(
    float(jnp.abs(g).max()) for g in jax.grad(loss)(tables)
  )
  assert at(best) < 1e-5


@pytest.mark.parametrize('n', [1, 2, 3])
def test_best_of_n_is_what_enumeration_finds(n):
  probs = np.array([0.4, 0.3, 0.2, 0.1])
  world = small_world(probs, (1.0, 2.0, 2.0, -1.0))  # two are equally good
  expected = np.zeros(4)
  for drawn in itertools.product(range(4), repeat=n):
    best = max(drawn, key=lambda i: world.reward[i])  # the first of equals
    expected[best] += probs[list(drawn)].prod()
  found = np.exp(language.best_of_n(world, n))
  np.testing.assert_allclose(found, expected, atol=1e-12)


def test_best_of_n_has_less_kl_than_the_formula(world):
  fine = small_world(np.full(20_000, 1 / 20_000), np.arange(20_000.0))
  for n in (2, 16, 64):
    formula = np.log(n) - (n - 1) / n
    logprobs = language.best_of_n(world, n)
    np.testing.assert_allclose(np.exp(logprobs).sum(), 1.0, atol=1e-9)
    assert language.kl_and_gain(world, logprobs)[0] < formula
    # Where no string weighs anything it is exact.
    kl, _ = language.kl_and_gain(fine, language.best_of_n(fine, n))
    np.testing.assert_allclose(kl, formula, atol=1e-4)


def test_pairs_are_labelled_by_bradley_and_terry(world):
  wins = lambda pairs: world.reward[pairs.chosen] > world.reward[pairs.rejected]
  right = measure.draw_pairs(world, 0, 20_000)
  margin = np.abs(world.reward[right.chosen] - world.reward[right.rejected])
  expected = (1.0 / (1.0 + np.exp(-margin)))[margin > 0].mean()
  share = wins(right)[margin > 0].mean()
  np.testing.assert_allclose(share, expected, atol=0.01)
  flipped = measure.draw_pairs(world, 0, 20_000, flipped=0.3)
  np.testing.assert_allclose(
    (flipped.chosen == right.rejected)[margin > 0].mean(), 0.3, atol=0.01
  )
  coin = measure.draw_pairs(world, 0, 20_000, flipped=0.5)
  np.testing.assert_allclose(wins(coin)[margin > 0].mean(), 0.5, atol=0.02)


def test_near_duplicates_differ_in_the_last_token(world):
  pairs = measure.near_duplicates(world, 0, 500)
  chosen, rejected = (language.STRINGS[ids] for ids in pairs)
  np.testing.assert_array_equal(chosen[:, :-1], rejected[:, :-1])
  assert (chosen[:, -1] != rejected[:, -1]).all()


def test_samples_follow_the_policy(world):
  ids = learners._sample(jax.random.key(0), world.params, 100_000)
  found = np.bincount(language.STRINGS[ids, 0], minlength=6) / 100_000
  first = np.exp(language.prefix_tables(world.params)[0][0][0])
  np.testing.assert_allclose(found, first, atol=0.01)


@pytest.mark.slow
def test_training_goes_where_the_reward_is(world):
  settings = Settings(steps=20, rate=3e-3, batch_size=64)
  train = learners.make_preference_trainer(preference.dpo_loss, settings)
  pairs = measure.draw_pairs(world, 0, 1000)
  point = language.place(world, train(world.params, pairs, 0, 0.5))
  assert point.gain > 0.1 and 0.5 < point.ratio < 1.0
  train = learners.make_rl_trainer('rloo', settings)
  reward = jnp.asarray(world.reward, jnp.float32)
  gain, loss = (
    language.place(world, train(world.params, sign * reward, 0, 0.5)).gain
    for sign in (1.0, -1.0)
  )
  assert gain > 0.1 and loss < -0.1


def test_extremes_and_leads_are_those_of_the_rows():
  rows = [
    {'config.part': 'dpo', 'config.seed': seed}
    | {f'dpo_{beta}.ratio': 0.9 + 0.1 * seed for beta in measure.BETAS}
    for seed in range(2)
  ]
  rows[1]['dpo_0.1.ratio'] = 0.7
  np.testing.assert_allclose(
    analyze.extremes(rows, 'dpo', measure.BETAS), (0.8, 0.95)
  )
  noise = [
    {'config.part': 'noise', 'config.seed': seed}
    | {'few.dpo_0.2.ratio': 0.5, 'few.cdpo_0.2.ratio': 0.6 + 0.1 * seed}
    for seed in (1, 0)
  ]
  lead = analyze.lead(noise, 'cdpo', 'few', 0.2)
  np.testing.assert_allclose(lead, (0.1, 0.2))
  np.testing.assert_allclose(analyze.standard_errors(lead.tolist()), 3.0)
  other = {'config.part': 'other_betas', 'config.seed': 1}
  other['few.dpo_0.2_0.1.ratio'] = 0.75
  behind = analyze.behind_other_beta([*noise, other], 'few', 0.2, 0.1)
  np.testing.assert_allclose(behind, [-0.05])


def test_what_a_run_needs_is_said(tmp_path):
  config = config_args.load_config(CONFIG)
  with pytest.raises(UserError, match='no --workdir'):
    measure.run(config, None)
  config.part = 'ppo'
  with pytest.raises(UserError, match="part='ppo': use one of dpo, exact"):
    measure.run(config, str(tmp_path))
