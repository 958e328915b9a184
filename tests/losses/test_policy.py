"""Policy losses: numbers by hand, where the gradient is clipped, exact sums."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from llm.losses import policy

LENGTHS = np.array([3, 1, 5, 2, 4, 5])
ROWS, T = 6, 7


def _case(seed=0, spread=0.3):
  rng = np.random.default_rng(seed)
  shape = (ROWS, T)
  logp = -rng.uniform(0.1, 3.0, shape)
  case = {
    'logprobs': logp,
    'old_logprobs': logp + spread * rng.normal(size=shape),
    'advantages': rng.normal(size=ROWS),
    'mask': np.arange(T)[None] < LENGTHS[:, None],
    'ref_logprobs': logp + spread * rng.normal(size=shape),
    'entropy': rng.uniform(0, 2, shape),
    'row_weights': np.ones(ROWS),
    'group_lengths': policy.group_lengths(LENGTHS, 3),
  }
  return {
    name: jnp.asarray(value, None if name == 'mask' else jnp.float32)
    for name, value in case.items()
  }


VARIANTS = {
  'grpo': dict(reduction='sequence', kl_coef=0.04),
  'trl': dict(kl_coef=0.1, kl_corrected=True),
  'dr_grpo': dict(reduction='constant', max_length=7),
  'dapo': dict(clip_high=0.28),
  'dapo_group': dict(reduction='group', clip_high=0.28),
  'gspo': dict(
    reduction='sequence', ratio='sequence', clip_low=0.03, clip_high=0.04
  ),
  'rloo': dict(reduction='sequence', ratio='sequence_sum'),
  'bonus': dict(entropy_coef=0.01, dual_clip=3.0, log_ratio_limit=20.0),
}


def _call(name, case, rows=slice(None), **more):
  case = {k: None if v is None else v[rows] for k, v in case.items()}
  return policy.grpo_loss(**case, **VARIANTS[name] | more)


def _gradient(name, case):
  loss = lambda x: _call(name, case | {'logprobs': x})[0]
  return jax.grad(loss)(case['logprobs'])


def _assert_sums_equal(a, b, rtol=1e-5):
  assert sorted(a[2]) == sorted(b[2])
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize('name', VARIANTS)
def test_microbatches_permutation_and_padding(name):
  case = _case()
  whole = _call(name, case)
  parts = [_call(name, case, rows=slice(i, None, 3)) for i in range(3)]
  _assert_sums_equal(whole, jax.tree.map(lambda *xs: sum(xs), *parts))
  order = np.array([4, 2, 0, 5, 1, 3])
  _assert_sums_equal(whole, _call(name, case, rows=order))
  # Padded on the left instead of on the right, by what must not be read.
  shift = lambda x: jnp.roll(x, 2, axis=1)
  mask = shift(case['mask'])
  left = case | {'mask': mask}
  for key in ('logprobs', 'old_logprobs', 'ref_logprobs', 'entropy'):
    left[key] = jnp.where(mask, shift(case[key]), jnp.nan)
  _assert_sums_equal(whole, _call(name, left))

  right = shift(_gradient(name, case))
  found = _gradient(name, left)
  np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-7)
  assert not np.any(np.asarray(found)[~np.asarray(mask)])


@pytest.mark.parametrize('name', VARIANTS)
def test_rows_of_weight_zero_are_not_there(name):
  case = _case()
  kept = np.array([0, 3])
  weights = jnp.zeros(ROWS).at[kept].set(1.0)
  broken = case | {
    key: case[key].at[np.array([1, 2, 4, 5])].set(jnp.nan)
    for key in ('logprobs', 'old_logprobs', 'advantages', 'ref_logprobs')
  }
  broken['row_weights'] = weights
  _assert_sums_equal(_call(name, broken), _call(name, case, rows=kept))
  grad = np.asarray(_gradient(name, broken))
  assert np.all(np.isfinite(grad)) and not np.any(grad[[1, 2, 4, 5]])


@pytest.mark.parametrize('name', ['trl', 'gspo', 'bonus'])
def test_gradient_by_differences_and_only_through_the_policy(name):
  case = _case(spread=0.01)  # nothing is clipped

  def loss(x):
    return _call(name, case | {'logprobs': x})[0]

  check_grads(loss, (case['logprobs'],), 1, ['rev'], atol=2e-2, rtol=2e-2)

  def of_fixed(old, advantages, ref):
    fixed = dict(old_logprobs=old, advantages=advantages, ref_logprobs=ref)
    return _call(name, case | fixed)[0]

  fixed = case['old_logprobs'], case['advantages'], case['ref_logprobs']
  for grad in jax.grad(of_fixed, (0, 1, 2))(*fixed):
    assert not np.any(np.asarray(grad))


# r, A and whether the gradient is clipped away, at clip 0.2 / 0.3, dual clip 3.
CLIPPING = [
  (1.0, 1, False),
  (1.25, 1, False),
  (1.35, 1, True),
  (0.5, 1, False),
  (1.0, -1, False),
  (0.85, -1, False),
  (0.75, -1, True),
  (1.5, -1, False),
  (2.9, -1, False),
  (3.1, -1, True),
  (3.1, 1, True),
]


def test_clip_gradient_truth_table():
  ratios, signs, clipped = (np.array(x) for x in zip(*CLIPPING))
  logp = jnp.log(jnp.asarray(ratios, jnp.float32))[None]
  advantages = jnp.asarray(2.0 * signs, jnp.float32)[None]
  old, mask = jnp.zeros_like(logp), jnp.ones(logp.shape, bool)
  settings = dict(clip_low=0.2, clip_high=0.3)

  @functools.partial(jax.jit, static_argnums=1)
  def loss(x, dual_clip=None):
    return policy.ppo_policy_loss(
      x, old, advantages, mask, dual_clip=dual_clip, **settings
    )

  grad = jax.grad(lambda x: loss(x, 3.0)[0])(logp)[0]
  expected = np.where(clipped, 0.0, -2.0 * signs * ratios)
  np.testing.assert_allclose(grad, expected, rtol=1e-5)
  # Without the dual clip a bad answer that became likelier is not clipped.
  grad = jax.grad(lambda x: loss(x)[0])(logp)[0]
  np.testing.assert_allclose(grad[9], 2.0 * 3.1, rtol=1e-5)
  metrics = loss(logp)[2]
  assert float(metrics['clip_high']) == 2.0
  assert float(metrics['clip_low']) == 1.0
  assert float(metrics['clip_fraction']) == 3.0
  np.testing.assert_allclose(metrics['ratio'], ratios.sum(), rtol=1e-5)
  with pytest.raises(ValueError, match='dual_clip=1.3'):
    loss(logp, 1.3)


def test_values_of_the_clipped_loss():
  # The two that an inverted clip gets wrong: A < 0 takes the larger loss.
  logp = jnp.log(jnp.array([[1.5, 0.5]]))
  loss = policy.ppo_policy_loss(
    logp, jnp.zeros((1, 2)), -jnp.ones((1, 2)), jnp.ones((1, 2))
  )[0]
  np.testing.assert_allclose(loss, 1.5 + 0.8, rtol=1e-6)


def test_reductions_golden():
  # A = 1 at r = 1: each token's loss is -1; of A = -2: +2. Lengths 3 and 1.
  mask = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]])
  logp, advantages = jnp.zeros((2, 4)), jnp.array([1.0, -2.0])
  expected = {
    'token': (-3 + 2, 4),
    'sequence': (-1 + 2, 2),
    'constant': (-3 + 2, 2 * 10),
    'group': (-3 / 2 + 2 / 2, 2),
  }
  for reduction, (loss_sum, weight_sum) in expected.items():
    loss, weight, metrics = policy.grpo_loss(
      logp,
      None,
      advantages,
      mask,
      reduction=reduction,
      max_length=10,
      group_lengths=jnp.array([2.0, 2.0]),
    )
    assert (float(loss), float(weight)) == (loss_sum, weight_sum)
    # Whatever the loss is divided by, the mean ratio is 1.
    np.testing.assert_allclose(metrics['ratio'] / weight, 1.0, rtol=1e-6)


def test_on_policy_invariants():
  case = _case()
  advantages = policy.group_advantages(case['advantages'], 3)
  on_policy = case | {'old_logprobs': None, 'advantages': advantages}
  loss, _, metrics = _call('grpo', on_policy, kl_coef=0.0)
  np.testing.assert_allclose(loss, 0.0, atol=1e-5)
  assert float(metrics['clip_fraction']) == float(metrics['old_kl']) == 0.0
  loss, _, _ = _call('dapo', on_policy)
  assert abs(float(loss)) > 0.1  # unequal lengths
  # At r = 1 the clipped loss has REINFORCE's gradient.
  by_grpo = jax.grad(lambda x: _call('dapo', on_policy | {'logprobs': x})[0])(
    case['logprobs']
  )
  by_reinforce = jax.grad(
    lambda x: policy.reinforce_loss(x, advantages, case['mask'])[0]
  )(case['logprobs'])
  np.testing.assert_allclose(by_grpo, by_reinforce, rtol=1e-5)
  signs = np.sign(-np.asarray(advantages)[:, None] * case['mask'])
  np.testing.assert_array_equal(np.sign(by_grpo), signs)


def test_kl_and_entropy_enter_the_loss():
  case = _case(spread=0.5)
  plain = _call('dapo', case)[0]
  for name in ('k1', 'k2', 'k3'):
    loss, _, metrics = _call('dapo', case, kl_coef=0.3, kl_estimator=name)
    expected = plain + 0.3 * metrics[f'kl_{name}']
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
  loss, _, metrics = _call('dapo', case, entropy_coef=0.3)
  np.testing.assert_allclose(loss, plain - 0.3 * metrics['entropy'], rtol=1e-5)
  entropy = np.asarray(case['entropy'])[np.asarray(case['mask'])].sum()
  np.testing.assert_allclose(metrics['entropy'], entropy, rtol=1e-5)


def test_without_a_coefficient_an_impossible_reference_is_harmless():
  case = _case()
  plain = _call('dapo', case)[0]
  case['ref_logprobs'] = case['ref_logprobs'].at[0, 0].set(-jnp.inf)
  np.testing.assert_array_equal(_call('dapo', case)[0], plain)
  assert np.all(np.isfinite(_gradient('dapo', case)))


def test_a_row_without_tokens_counts_only_by_its_weight():
  case = _case()
  case['mask'] = case['mask'].at[1].set(False)
  assert float(_call('grpo', case)[1]) == ROWS
  case['row_weights'] = None
  assert float(_call('grpo', case)[1]) == ROWS - 1


def test_wrong_settings_are_named():
  case = _case()
  arrays = [case[n] for n in ('logprobs', 'old_logprobs', 'advantages')]
  for settings, message in (
    (dict(reduction='mean'), "reduction='mean' must be one of"),
    (dict(reduction='constant'), 'needs max_length'),
    (dict(reduction='group'), 'needs group_lengths'),
    (dict(ratio='word'), "ratio='word' must be one of"),
    (dict(kl_coef=0.1), 'kl_coef=0.1 needs ref_logprobs'),
    (dict(entropy_coef=0.1), 'entropy_coef=0.1 needs entropy'),
    (dict(row_weights=jnp.ones(2)), r'row_weights has shape \(2,\)'),
  ):
    with pytest.raises(ValueError, match=message):
      policy.grpo_loss(*arrays, case['mask'], **settings)
  with pytest.raises(ValueError, match=r'logprobs has shape \(6, 4\)'):
    policy.grpo_loss(arrays[0][:, :4], *arrays[1:], case['mask'])


def test_value_loss_golden():
  values = jnp.array([[1.0, 1.0, 2.0, jnp.nan]])
  old = jnp.array([[0.5, 0.9, 2.1, 0.0]])
  returns = jnp.array([[2.0, 0.0, 2.0, jnp.inf]])
  mask = jnp.array([[1, 1, 1, 0]])

  @functools.partial(jax.jit, static_argnums=1)
  def loss(v, clip=0.2):
    return policy.ppo_value_loss(v, old, returns, mask, clip=clip)

  value, weight, metrics = loss(values)
  # V is clipped to 0.7, 1.0, 2.0: errors 1 (1.69 clipped), 1, 0.
  np.testing.assert_allclose(value, 0.5 * (1.69 + 1 + 0), rtol=1e-6)
  assert float(weight) == 3.0
  assert float(metrics['value_clip_fraction']) == 1.0
  np.testing.assert_allclose(metrics['squared_error'], 2.0)
  grad = jax.grad(lambda v: loss(v)[0])(values)
  np.testing.assert_allclose(grad, [[0.0, 1.0, 0.0, 0.0]], atol=1e-6)
  np.testing.assert_allclose(loss(values, None)[0], 1.0, rtol=1e-6)


def test_rloo_loss_has_the_ratio_of_the_whole_answer():
  logp = jnp.array([[0.1, 0.2, 9.0], [-0.1, 0.0, 0.0]])
  mask = jnp.array([[1, 1, 0], [1, 1, 1]])
  loss, weight, metrics = jax.jit(policy.rloo_loss)(
    logp, jnp.zeros((2, 3)), jnp.array([1.0, -1.0]), mask
  )
  np.testing.assert_allclose(loss, -1.2 + math.exp(-0.1), rtol=1e-6)
  assert float(weight) == 2.0
  assert float(metrics['clip_fraction']) == 1.0
