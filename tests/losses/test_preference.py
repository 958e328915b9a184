"""Preference losses: numbers by hand, signs, and sums that add up."""

import math

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import optax
import pytest

from llm.losses import preference, sequences
from llm.train.state import init_state
from llm.train.step import make_train_step

PAIRS = 6


def _case(seed=0, pairs=PAIRS):
  """Summed log-probabilities and lengths of random answers."""
  rng = np.random.default_rng(seed)
  arrays = {
    name: -rng.uniform(0.5, 20.0, pairs).astype(np.float32)
    for name in ('chosen', 'rejected', 'ref_chosen', 'ref_rejected')
  }
  for name in ('chosen_tokens', 'rejected_tokens'):
    arrays[name] = rng.integers(1, 9, pairs).astype(np.float32)
  arrays['desirable'] = rng.integers(0, 2, pairs).astype(bool)
  return arrays


REF = ('chosen', 'rejected', 'ref_chosen', 'ref_rejected')
LENGTHS = ('chosen_tokens', 'rejected_tokens')
FREE = ('chosen', 'rejected', 'chosen_tokens', 'rejected_tokens')
CPO = ('chosen', 'rejected', 'chosen_tokens')
RATED = ('chosen', 'ref_chosen', 'desirable')

# name: (function, names of its arrays, settings)
LOSSES = {
  'dpo': (preference.dpo_loss, REF, {}),
  'cdpo': (preference.cdpo_loss, REF, dict(label_smoothing=0.2)),
  'robust': (preference.robust_dpo_loss, REF, dict(label_smoothing=0.2)),
  'hinge': (preference.hinge_loss, REF, {}),
  'ipo_sum': (preference.ipo_loss, REF, dict(logprobs='sum')),
  'ipo_mean': (preference.ipo_loss, REF + LENGTHS, {}),
  'dpo_norm': (preference.dpo_norm_loss, REF + LENGTHS, {}),
  'rpo': (preference.rpo_loss, (*REF, 'chosen_tokens'), {}),
  'rpo_seq': (
    preference.rpo_loss,
    (*REF, 'chosen_tokens'),
    dict(nll='sequence'),
  ),
  'simpo': (preference.simpo_loss, FREE, {}),
  'cpo': (preference.cpo_loss, CPO, {}),
  'orpo': (preference.orpo_loss, FREE, {}),
  'kto': (preference.kto_loss, RATED, {}),
}
BATCH_MEANS = ('rpo', 'cpo', 'orpo')  # a part is a mean over all tokens
PAIRED = [name for name in LOSSES if name != 'kto']


def _call(name, case, rows=slice(None), weights=None, **more):
  function, names, settings = LOSSES[name]
  arrays = [jnp.asarray(case[n][rows]) for n in names]
  return function(*arrays, weights=weights, **settings, **more)


def _assert_sums_equal(a, b, rtol=1e-5):
  assert sorted(a[2]) == sorted(b[2])
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-5)


# By hand: h_w = -2 - -3 = 1, h_l = -4 - -2 = -2, d = 3; n_w = 2, n_l = 4.
HAND = dict(
  chosen=[-2.0],
  rejected=[-4.0],
  ref_chosen=[-3.0],
  ref_rejected=[-2.0],
  chosen_tokens=[2.0],
  rejected_tokens=[4.0],
  desirable=[True],
)
SIGMOID = lambda x: 1 / (1 + math.exp(-x))
LOG_SIGMOID = lambda x: math.log(SIGMOID(x))
# Both answers have a mean log-probability of -1: equal odds.
HAND_LOSSES = {
  'dpo': -LOG_SIGMOID(0.3),
  'cdpo': -0.8 * LOG_SIGMOID(0.3) - 0.2 * LOG_SIGMOID(-0.3),
  'robust': (-0.8 * LOG_SIGMOID(0.3) + 0.2 * LOG_SIGMOID(-0.3)) / 0.6,
  'hinge': 1 - 0.3,
  'ipo_sum': (3 - 5) ** 2,
  'ipo_mean': (1 / 2 + 2 / 4 - 5) ** 2,
  'dpo_norm': -LOG_SIGMOID(5 * (1 / 2 + 2 / 4)),
  'rpo': -LOG_SIGMOID(0.3) + 2 / 2,
  'rpo_seq': -LOG_SIGMOID(0.3) + 2 / 2,
  'simpo': -LOG_SIGMOID(2 * (-1 + 1) - 0.5),
  'cpo': -LOG_SIGMOID(0.1 * (-2 + 4)) + 2 / 2,
  'orpo': 1 + 0.1 * math.log(2),
  'kto': 1 - SIGMOID(0.1 * 1),
}


@pytest.mark.parametrize('name', LOSSES)
def test_golden_of_one_pair(name):
  case = {key: np.asarray(value) for key, value in HAND.items()}
  loss_sum, weight_sum, metrics = _call(name, case)
  np.testing.assert_allclose(loss_sum, HAND_LOSSES[name], rtol=1e-5)
  assert float(weight_sum) == 1.0
  if name in ('dpo', 'cdpo', 'robust', 'hinge', 'rpo', 'ipo_sum'):
    np.testing.assert_allclose(metrics['reward_margin'], 0.3, rtol=1e-5)
    np.testing.assert_allclose(metrics['chosen_reward'], 0.1, rtol=1e-5)
    np.testing.assert_allclose(metrics['rejected_reward'], -0.2, rtol=1e-5)
    assert float(metrics['reward_accuracy']) == 1.0
    assert float(metrics['chosen_logprob']) == -2.0


def test_losses_at_the_reference():
  case = _case()
  case['ref_chosen'], case['ref_rejected'] = case['chosen'], case['rejected']
  expected = {
    'dpo': math.log(2),
    'cdpo': math.log(2),
    'robust': math.log(2),
    'hinge': 1.0,
    'ipo_sum': 25.0,
    'ipo_mean': 25.0,
    'dpo_norm': math.log(2),
    'kto': 0.5,
  }
  for name, value in expected.items():
    loss_sum, weight_sum, metrics = _call(name, case)
    np.testing.assert_allclose(loss_sum / weight_sum, value, rtol=1e-6)
    assert float(metrics['reward_accuracy']) == 0.0  # a tie is no hit


@pytest.mark.parametrize('name', PAIRED)
def test_gradient_raises_the_better_answer(name):
  # From the reference, where every margin is still to be made.
  case = _case(seed=3)
  case['ref_chosen'], case['ref_rejected'] = case['chosen'], case['rejected']

  def loss(chosen, rejected):
    arrays = case | {'chosen': chosen, 'rejected': rejected}
    return _call(name, arrays)[0]

  by_chosen, by_rejected = jax.grad(loss, (0, 1))(
    jnp.asarray(case['chosen']), jnp.asarray(case['rejected'])
  )
  assert np.all(np.asarray(by_chosen) < 0)
  assert np.all(np.asarray(by_rejected) > 0)


@pytest.mark.parametrize('name', LOSSES)
def test_gradient_by_differences_and_no_gradient_to_the_reference(name):
  case = _case(seed=1, pairs=3)
  for key in REF:
    case[key] = case[key] / 4
  names = [n for n in LOSSES[name][1] if n in REF]

  def loss(*arrays):
    return _call(name, case | dict(zip(names, arrays)))[0]

  arrays = [jnp.asarray(case[n]) for n in names]
  policy = [i for i, n in enumerate(names) if not n.startswith('ref')]

  def of_policy(*moved):
    filled = list(arrays)
    for i, x in zip(policy, moved):
      filled[i] = x
    return loss(*filled)

  moved = tuple(arrays[i] for i in policy)
  check_grads(of_policy, moved, 1, ['rev'], atol=2e-2, rtol=2e-2)
  if len(policy) < len(names):
    reference = [i for i in range(len(names)) if i not in policy]
    for grad in jax.grad(loss, tuple(reference))(*arrays):
      assert not np.any(np.asarray(grad))


@pytest.mark.parametrize('name', LOSSES)
def test_microbatches_permutation_and_padding(name):
  case = _case(seed=2)
  more = {}
  if name in BATCH_MEANS:
    more['tokens_per_pair'] = jnp.asarray(case['chosen_tokens'].mean())
  whole = _call(name, case)
  parts = [_call(name, case, rows=slice(i, None, 3), **more) for i in range(3)]
  _assert_sums_equal(whole, jax.tree.map(lambda *xs: sum(xs), *parts))
  _assert_sums_equal(whole, _call(name, case, rows=[3, 5, 1, 0, 4, 2]))
  # Two pairs of padding, full of what a padded row may hold.
  padded = {
    key: np.concatenate([value, [np.nan, -np.inf]]).astype(np.float32)
    for key, value in case.items()
  }
  weights = jnp.asarray([1.0] * PAIRS + [0.0, 0.0])

  def loss(x):
    return _call(name, padded | {'chosen': x}, weights=weights, **more)[0]

  _assert_sums_equal(whole, _call(name, padded, weights=weights))
  grad = jax.grad(loss)(jnp.asarray(padded['chosen']))
  plain = jax.grad(lambda x: _call(name, case | {'chosen': x})[0])(
    jnp.asarray(case['chosen'])
  )
  np.testing.assert_allclose(grad[:PAIRS], plain, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(grad[PAIRS:], [0.0, 0.0])


def test_tokens_per_pair_may_be_a_column():
  case = _case()
  scalar = _call('rpo', case, tokens_per_pair=4.0)
  column = _call('rpo', case, tokens_per_pair=jnp.full(PAIRS, 4.0))
  _assert_sums_equal(scalar, column)


def test_rpo_in_the_train_step_has_one_gradient_for_any_microbatches():
  case = _case()
  rng = np.random.default_rng(0)
  batch = {key: jnp.asarray(value) for key, value in case.items()}
  batch['features'] = jnp.asarray(rng.normal(size=(PAIRS, 2, 3)), jnp.float32)
  batch['tokens_per_pair'] = jnp.full(PAIRS, case['chosen_tokens'].mean())

  def loss_fn(params, frozen, batch, keys):
    moved = jnp.einsum('pcd,d->pc', batch['features'], params)
    arrays = batch | {
      'chosen': batch['chosen'] + moved[:, 0],
      'rejected': batch['rejected'] + moved[:, 1],
    }
    return preference.rpo_loss(
      *(arrays[n] for n in (*REF, 'chosen_tokens')),
      tokens_per_pair=batch['tokens_per_pair'],
    )

  found = []
  tx = optax.sgd(1.0)
  state = init_state(jnp.zeros(3), tx, jax.random.key(0))
  for microbatches in (1, 2, 3, 6):
    step = make_train_step(loss_fn, tx, microbatches=microbatches)
    moved, metrics = jax.jit(step)(state, batch, jax.random.key(0))
    found.append((moved.params, metrics['loss'], metrics['nll']))
  for other in found[1:]:
    for a, b in zip(found[0], other):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_rpo_term_is_a_mean_over_tokens():
  case = _case()
  plain = _call('dpo', case)[0]
  loss, _, metrics = _call('rpo', case, alpha=2.0)
  nll = -case['chosen'].sum() / case['chosen_tokens'].sum()
  np.testing.assert_allclose(loss / PAIRS, plain / PAIRS + 2 * nll, rtol=1e-5)
  np.testing.assert_allclose(metrics['nll'] / PAIRS, nll, rtol=1e-5)


def test_robust_is_unbiased_and_cdpo_has_a_finite_optimum():
  case = _case()
  flipped = case | {
    a: case[b]
    for a, b in (
      ('chosen', 'rejected'),
      ('rejected', 'chosen'),
      ('ref_chosen', 'ref_rejected'),
      ('ref_rejected', 'ref_chosen'),
    )
  }
  mean = 0.8 * _call('robust', case)[0] + 0.2 * _call('robust', flipped)[0]
  np.testing.assert_allclose(mean, _call('dpo', case)[0], rtol=1e-5)
  best = math.log(0.8 / 0.2) / 0.1
  zero = jnp.zeros(1)
  grad = jax.grad(
    lambda d: preference.cdpo_loss(d, zero, zero, zero, label_smoothing=0.2)[0]
  )
  np.testing.assert_allclose(grad(jnp.array([best])), [0.0], atol=1e-7)
  for value in (-0.1, 0.5):
    with pytest.raises(ValueError, match='label_smoothing'):
      preference.robust_dpo_loss(zero, zero, zero, zero, label_smoothing=value)


def test_simpo_margin_by_both_names():
  case = _case()
  by_gamma = _call('simpo', case, beta=4.0, gamma=2.0)
  _assert_sums_equal(by_gamma, _call('simpo', case, beta=4.0, gamma_ratio=0.5))
  with pytest.raises(ValueError, match='both name the margin'):
    _call('simpo', case, gamma=1.0, gamma_ratio=0.5)


def test_ipo_readings_differ_and_are_checked():
  case = _case()
  arrays = [jnp.asarray(case[n]) for n in REF]
  with pytest.raises(ValueError, match='needs chosen_tokens'):
    preference.ipo_loss(*arrays)
  with pytest.raises(ValueError, match="logprobs='both'"):
    preference.ipo_loss(*arrays, logprobs='both')
  one = jnp.ones(PAIRS)
  same = preference.ipo_loss(*arrays, one, one)
  _assert_sums_equal(same, preference.ipo_loss(*arrays, logprobs='sum'))


def test_orpo_over_the_prompt_too():
  case = _case()
  prompt = jnp.linspace(-5.0, -1.0, PAIRS)
  tokens = jnp.arange(1.0, PAIRS + 1)
  loss, _, metrics = _call('orpo', case, prompt=prompt, prompt_tokens=tokens)
  without, _, before = _call('orpo', case)
  total = case['chosen'].sum() + float(prompt.sum())
  nll = -total / (case['chosen_tokens'].sum() + float(tokens.sum()))
  np.testing.assert_allclose(metrics['nll'] / PAIRS, nll, rtol=1e-5)
  np.testing.assert_allclose(
    loss - without, metrics['nll'] - before['nll'], rtol=1e-3
  )
  with pytest.raises(ValueError, match='go together'):
    _call('orpo', case, prompt=prompt)


def test_orpo_of_a_certain_answer_is_finite():
  one = jnp.ones(1)

  def loss(x):
    return preference.orpo_loss(x, -one, one, one)[0]

  value, grad = jax.value_and_grad(loss)(jnp.zeros(1))
  assert np.isfinite(value) and np.isfinite(grad[0])


def test_kto_weights_and_kl():
  logp, ref = jnp.array([-1.0, -3.0]), jnp.array([-2.0, -1.0])
  good = jnp.array([True, False])
  loss, weight, metrics = preference.kto_loss(
    logp, ref, good, 0.5, desirable_weight=2.0, undesirable_weight=3.0
  )
  # h = 1, -2; good: 1 - 0.5 above z, bad: 2.5 below it.
  expected = 2 * (1 - SIGMOID(0.05)) + 3 * (1 - SIGMOID(0.25))
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert float(weight) == 2.0
  values = {name: float(value) for name, value in metrics.items()}
  assert values == pytest.approx(
    {
      'reward_accuracy': 2.0,
      'reward_margin': 0.3,
      'desirable': 1.0,
      'desirable_reward': 0.1,
      'undesirable_reward': -0.2,
      'kl': 1.0,
      'logprob': -4.0,
    }
  )
  grad = jax.grad(lambda x: preference.kto_loss(x, ref, good, 0.5)[0])(logp)
  assert grad[0] < 0 < grad[1]


@pytest.mark.parametrize('pairs', [1, 3])
@pytest.mark.parametrize('good', [True, False])
def test_kto_of_answers_of_one_kind(pairs, good):
  logp, ref = -jnp.arange(1.0, pairs + 1), -jnp.ones(pairs)
  z = preference.kto_kl(logp, ref, weights=jnp.zeros(pairs))
  assert float(z) == 0.0
  loss, grad = jax.value_and_grad(
    lambda x: preference.kto_loss(x, ref, jnp.full(pairs, good), z)[0]
  )(logp)
  assert np.isfinite(loss) and np.all(np.isfinite(grad))
  assert np.all(np.sign(grad) == (-1 if good else 1))


def test_kto_kl_golden():
  logp, ref = jnp.array([-1.0, -2.0, jnp.nan]), jnp.array([-2.0, -5.0, 0.0])
  weights = jnp.array([1, 1, 0])
  assert float(preference.kto_kl(logp, ref, weights)) == 2.0
  assert float(preference.kto_kl(ref, logp, weights)) == 0.0  # never negative
  grad = jax.grad(lambda x: preference.kto_kl(x, ref, weights))(logp)
  np.testing.assert_array_equal(grad, np.zeros(3))


def test_mismatched_shapes_are_named():
  case = {k: jnp.asarray(v) for k, v in _case().items()}
  with pytest.raises(ValueError, match=r'rejected has shape \(5,\)'):
    preference.dpo_loss(
      *(case[n][:5] if n == 'rejected' else case[n] for n in REF)
    )
  with pytest.raises(ValueError, match=r'weights has shape \(2,\)'):
    _call('dpo', case, weights=jnp.ones(2))


def test_sequence_logprobs_of_rows_and_packed_rows():
  logp = jnp.array([[-1.0, -2.0, -3.0, jnp.nan], [-4.0, -5.0, -6.0, -7.0]])
  mask = jnp.array([[0, 1, 1, 0], [1, 1, 0, 1]])
  sums, tokens = sequences.sequence_logprobs(logp, mask)
  np.testing.assert_array_equal(sums, [-5.0, -16.0])
  np.testing.assert_array_equal(tokens, [2.0, 3.0])
  ids = jnp.array([[1, 1, 2, 0], [1, 2, 2, 2]])
  sums, tokens = sequences.packed_sequence_logprobs(logp, mask, ids, 3)
  np.testing.assert_array_equal(sums, [[-2, -3, 0], [-4, -12, 0]])
  np.testing.assert_array_equal(tokens, [[1, 1, 0], [1, 2, 0]])
  grad = jax.grad(lambda x: sequences.sequence_logprobs(x, mask)[0].sum())
  np.testing.assert_array_equal(grad(logp), mask)


def test_tail_weights_golden():
  mask = jnp.array([[0, 1, 1, 1, 0, 1], [1, 1, 0, 0, 0, 0]])
  weights = sequences.tail_weights(mask, jnp.array([2, 2]), 0.25)
  np.testing.assert_array_equal(weights[0], [1, 1, 1, 0.25, 0.25, 0.25])
  np.testing.assert_array_equal(weights[1], np.ones(6))
  sums, tokens = sequences.sequence_logprobs(-jnp.ones((2, 6)), mask, weights)
  np.testing.assert_array_equal(sums, [-2.5, -2.0])
  np.testing.assert_array_equal(tokens, [4.0, 2.0])
