"""Advantages and rewards of policies, by hand and against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.losses import policy

group_advantages = jax.jit(
  policy.group_advantages,
  static_argnames=('group_size', 'scale', 'ddof', 'eps'),
)
rloo_advantages = jax.jit(
  policy.rloo_advantages, static_argnames=('group_size', 'normalise', 'eps')
)
whiten = jax.jit(policy.whiten, static_argnames=('shift_mean', 'eps'))
token_rewards = jax.jit(
  policy.token_rewards, static_argnames=('estimator', 'placement')
)
gae = jax.jit(policy.gae, static_argnames=('gamma', 'lam'))


def test_gae_golden():
  # delta = 1 + 0.5*2 - 1 = 1, then 3 - 2 = 1; A = 1 + 0.25 * 1.
  advantages, returns = gae(
    jnp.array([[1.0, 3.0, 100.0]]),
    jnp.array([[1.0, 2.0, 50.0]]),
    jnp.array([[1, 1, 0]]),
    gamma=0.5,
    lam=0.5,
  )
  np.testing.assert_allclose(advantages, [[1.25, 1.0, 0.0]])
  np.testing.assert_allclose(returns, [[2.25, 3.0, 0.0]])


def test_gae_passes_over_masked_tokens():
  # A tool's answer in the middle and padding on the left change nothing.
  rewards, values = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[0.5, 1.0, 2.0]])
  plain = gae(rewards, values, jnp.ones((1, 3)), gamma=0.9, lam=0.8)
  mask = np.array([[0, 1, 0, 0, 1, 1, 0]])
  spread = lambda x: jnp.full((1, 7), jnp.nan).at[0, mask[0] == 1].set(x[0])
  wide = gae(
    spread(rewards), spread(values), jnp.asarray(mask), gamma=0.9, lam=0.8
  )
  for a, b in zip(plain, wide):
    np.testing.assert_allclose(b[mask == 1], a[0], rtol=1e-6)
    assert not np.any(np.asarray(b)[mask == 0])


def test_gae_limits():
  rng = np.random.default_rng(0)
  rewards, values = (
    jnp.asarray(rng.normal(size=(2, 4)), jnp.float32) for _ in range(2)
  )
  mask, last = jnp.ones((2, 4), bool), jnp.array([1.0, -1.0])
  _, returns = gae(rewards, values, mask, lam=1.0, last_values=last)
  whole = jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1] + last[:, None]
  np.testing.assert_allclose(returns, whole, rtol=1e-5)
  advantages, _ = gae(rewards, values, mask, lam=0.0, last_values=last)
  after = jnp.concatenate([values[:, 1:], last[:, None]], axis=1)
  np.testing.assert_allclose(advantages, rewards + after - values, rtol=1e-5)
  with pytest.raises(ValueError, match=r'values has shape \(2, 3\)'):
    gae(rewards, values[:, :3], mask)


def test_group_advantages_golden():
  rewards = jnp.array([1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 5.0, 5.0])
  std = np.sqrt(1 / 3)
  signs = np.array([1, -1, -1, 1, 0, 0, 0, 0])
  found = group_advantages(rewards, 4)
  np.testing.assert_allclose(found, 0.5 * signs / (std + 1e-4), rtol=1e-6)
  found = group_advantages(rewards, 4, ddof=0, eps=0.0)
  np.testing.assert_array_equal(found, signs)
  found = group_advantages(rewards, 4, scale='none')
  np.testing.assert_array_equal(found, 0.5 * signs)
  found = group_advantages(rewards, 4, scale='batch', eps=1.0)
  np.testing.assert_allclose(
    found, 0.5 * signs / (np.std(rewards, ddof=1) + 1.0), rtol=1e-6
  )


def test_rloo_advantages_golden():
  rewards = jnp.array([1.0, 2.0, 6.0, 4.0, 4.0, 4.0])
  found = rloo_advantages(rewards, 3)
  np.testing.assert_array_equal(found, [-3.0, -1.5, 4.5, 0, 0, 0])
  found = np.asarray(rloo_advantages(rewards, 3, normalise=True))
  moments = [found.mean(), found.std(ddof=1)]
  np.testing.assert_allclose(moments, [0, 1], atol=1e-4)
  # RLOO is GRPO without std, times G / (G - 1).
  grpo = group_advantages(rewards, 3, scale='none')
  np.testing.assert_allclose(rloo_advantages(rewards, 3), 1.5 * grpo, rtol=1e-6)


ADVANTAGES = {
  'group': group_advantages,
  'none': lambda r, g: group_advantages(r, g, scale='none'),
  'rloo': rloo_advantages,
}


@pytest.mark.parametrize('name', ADVANTAGES)
def test_groups_without_signal(name):
  f = ADVANTAGES[name]
  np.testing.assert_array_equal(f(jnp.array([3.0, 7.0]), 1), [0.0, 0.0])
  # 0.1 has no exact mean of three; no noise may be left of it.
  np.testing.assert_array_equal(f(jnp.full(6, 0.1), 3), np.zeros(6))
  rewards = jnp.array([1.0, jnp.nan, 3.0, jnp.nan, jnp.nan, 2.0])
  found = f(rewards, 3)
  np.testing.assert_array_equal(np.sign(found), [-1, 0, 1, 0, 0, 0])
  without = f(jnp.array([1.0, 3.0]), 2)
  np.testing.assert_allclose(np.asarray(found)[[0, 2]], without, rtol=1e-6)
  with pytest.raises(ValueError, match='6 rewards do not divide'):
    f(rewards, 4)


def test_dynamic_sampling_mask():
  rewards = jnp.array([1, 1, 0, 1, 0, 0, jnp.nan, 1])
  found = policy.groups_with_signal(rewards, 2)
  np.testing.assert_array_equal(found, [0, 0, 1, 1, 0, 0, 0, 0])


def test_whiten():
  values = jnp.array([[1.0, 2.0, jnp.nan], [6.0, jnp.inf, jnp.nan]])
  mask = jnp.array([[1, 1, 0], [1, 0, 0]])
  std = np.sqrt(7.0)  # unbiased variance of 1, 2, 6
  found = whiten(values, mask)
  np.testing.assert_allclose(
    found, np.array([[-2, -1, 0], [3, 0, 0]]) / std, rtol=1e-6
  )
  found = whiten(values, mask, shift_mean=False)
  expected = np.array([[3 - 2 / std, 3 - 1 / std, 0], [3 + 3 / std, 0, 0]])
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_kl_estimators():
  logp, ref = jnp.log(jnp.array([0.5, 0.2])), jnp.log(jnp.array([0.25, 0.4]))
  d = np.log([0.5, 2.0])
  for name, expected in (
    ('k1', -d),
    ('k2', d**2 / 2),
    ('k3', np.exp(d) - d - 1),
  ):
    found = policy.kl_estimate(logp, ref, name)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
  far = jnp.array([50.0])
  zero = jnp.zeros(1)
  assert float(policy.kl_estimate(zero, far, 'k3', limit=10.0)[0]) == 10.0
  found = policy.kl_estimate(zero, far, 'k1', log_ratio_limit=20.0)
  assert float(found[0]) == -20.0
  with pytest.raises(ValueError, match="estimator='k4'"):
    policy.kl_estimate(zero, far, 'k4')


def test_kl_estimators_are_unbiased_and_their_gradients():
  logits = jnp.array([0.3, -0.2, 0.9])
  ref = jax.nn.log_softmax(jnp.array([0.5, 0.1, -0.4]))
  logp = lambda x: jax.nn.log_softmax(x)
  p = jnp.exp(logp(logits))  # fixed: who draws the tokens

  def mean(name):
    return lambda x: jnp.sum(p * policy.kl_estimate(logp(x), ref, name))

  kl = lambda x: jnp.sum(jnp.exp(logp(x)) * (logp(x) - ref))
  for name in ('k1', 'k3'):
    np.testing.assert_allclose(mean(name)(logits), kl(logits), rtol=1e-5)
  by = {name: jax.grad(mean(name))(logits) for name in ('k1', 'k2', 'k3')}
  np.testing.assert_allclose(by['k1'], np.zeros(3), atol=1e-6)
  np.testing.assert_allclose(by['k2'], jax.grad(kl)(logits), rtol=1e-4)
  np.testing.assert_allclose(by['k3'], p - jnp.exp(ref), rtol=1e-4)
  # Times the ratio, k3 has the KL's own gradient.
  corrected = lambda x: jnp.sum(
    jnp.exp(logp(x)) * policy.kl_estimate(logp(x), ref, 'k3')
  )
  np.testing.assert_allclose(
    jax.grad(corrected)(logits), jax.grad(kl)(logits), rtol=1e-4
  )


def test_token_rewards_golden():
  logp = jnp.array([[0.0, -1.0, jnp.nan, jnp.nan], [0.0, 0.0, 0.0, -2.0]])
  ref = jnp.array([[-1.0, -1.5, jnp.nan, jnp.nan], [0.0, 0.0, 0.0, -1.0]])
  mask = jnp.array([[1, 1, 0, 0], [0, 0, 1, 1]])
  scores = jnp.array([10.0, 20.0])
  rewards, taken = token_rewards(scores, logp, ref, mask, kl_coef=0.1)
  np.testing.assert_allclose(
    rewards, [[-0.1, 9.95, 0, 0], [0, 0, 0, 20.1]], rtol=1e-6
  )
  np.testing.assert_array_equal(taken, mask == 1)
  rewards, taken = token_rewards(
    scores, logp, ref, mask, kl_coef=0.1, placement='after'
  )
  # The second row has no later position.
  np.testing.assert_allclose(
    rewards, [[-0.1, -0.05, 10, 0], [0, 0, 0, 20.1]], rtol=1e-6
  )
  np.testing.assert_array_equal(taken, [[1, 1, 1, 0], [0, 0, 1, 1]])
  whole = policy.sequence_rewards(scores, logp, ref, mask, kl_coef=0.1)
  np.testing.assert_allclose(whole, [9.85, 20.1], rtol=1e-6)
  none, taken = token_rewards(scores, logp, ref, mask * 0)
  assert not np.any(np.asarray(none)) and not np.any(np.asarray(taken))
  with pytest.raises(ValueError, match="placement='eos'"):
    token_rewards(scores, logp, ref, mask, placement='eos')


def test_overlong_penalty():
  found = policy.overlong_penalty(
    jnp.array([0, 80, 90, 100, 101]), max_length=100, margin=20
  )
  np.testing.assert_array_equal(found, [0, 0, -0.5, -1, -1])
  with pytest.raises(ValueError, match='margin=0'):
    policy.overlong_penalty(jnp.array([1]), max_length=10, margin=0)


def test_adaptive_kl_coef():
  step = lambda kl: policy.adaptive_kl_coef(
    0.1, kl, 1000, target=2.0, horizon=10_000
  )
  np.testing.assert_allclose(step(2.0), 0.1, rtol=1e-6)
  np.testing.assert_allclose(step(2.2), 0.1 * 1.01, rtol=1e-6)
  np.testing.assert_allclose(step(100.0), 0.1 * 1.02, rtol=1e-6)
  np.testing.assert_allclose(step(0.0), 0.1 * 0.98, rtol=1e-6)


def test_each_group_counts_alike_whatever_is_left_out():
  """Group 1 has all four answers, group 2 two of them, group 3 none."""
  lengths = np.array([4, 2, 2, 2, 3, 0, 5, 0, 0, 0, 0, 0])
  valid = jnp.asarray(lengths > 0)
  weights = policy.group_weights(valid, 4)
  assert weights.tolist() == [1.0] * 4 + [2.0, 0.0, 2.0, 0.0] + [0.0] * 4
  means = policy.group_lengths(jnp.asarray(lengths), 4)
  assert means.tolist() == [2.5] * 4 + [4.0] * 4 + [0.0] * 4
  mask = np.arange(5) < lengths[:, None]
  losses = np.random.default_rng(0).normal(size=mask.shape)
  loss_sum, weight_sum, _ = policy.grpo_loss(
    jnp.zeros(mask.shape),
    None,
    -losses,
    mask,
    row_weights=weights,
    group_lengths=means,
    reduction='group',
  )
  wanted = np.mean([losses[:4][mask[:4]].mean(), losses[4:8][mask[4:8]].mean()])
  np.testing.assert_allclose(loss_sum / weight_sum, wanted, rtol=1e-5)
