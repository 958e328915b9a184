"""Policy losses beside TRL's own code, PPO and GAE beside plain NumPy."""

import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.losses import policy

torch = pytest.importorskip('torch')
pytest.importorskip('trl')
trl_stubs = importlib.import_module('tests.parity.trl_stubs')

B, T = 6, 8


def _case(seed):
  rng = np.random.default_rng(seed)
  logp = -rng.uniform(0.05, 3.0, (B, T))
  noise = lambda: rng.normal(size=(B, T)) / 4
  arrays = {
    'logprobs': logp,
    'old': logp + noise(),
    'ref': logp + noise(),
    'entropy': rng.uniform(0, 2, (B, T)),
    'advantages': rng.normal(size=B),
  }
  arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
  lengths = rng.integers(1, T + 1, B)
  return arrays | {'mask': np.arange(T)[None] < lengths[:, None]}


def _theirs(f, case, *names, **settings):
  """Value and gradient of a TRL loss of these arrays."""
  tensors = {name: torch.tensor(x) for name, x in case.items()}
  tensors['mask'] = tensors['mask'].long()
  leaf = tensors['logprobs'].requires_grad_()
  value = f(*(tensors[n] for n in names), **settings)
  value.backward()
  return value.detach().numpy(), leaf.grad.numpy()


def _ours(f, case, **settings):
  arrays = [jnp.asarray(case[n]) for n in ('old', 'advantages', 'mask')]

  def loss(logp):
    loss_sum, weight_sum, _ = f(logp, *arrays, **settings)
    return loss_sum / weight_sum

  value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(case['logprobs']))
  return np.asarray(value), np.asarray(grad)


def _assert_equal(ours, theirs):
  for a, b in zip(ours, theirs):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def _args(**fields):
  defaults = dict(
    use_bias_correction_kl=False, delta=None, steps_per_generation=1
  )
  return types.SimpleNamespace(**(defaults | fields))


KL = dict(kl_coef=0.3)
# name: (our settings, TRL's settings)
GRPO = {
  'grpo': (dict(reduction='sequence'), dict(loss_type='grpo')),
  'grpo_kl': (
    dict(reduction='sequence') | KL,
    dict(loss_type='grpo', beta=0.3),
  ),
  'corrected_kl': (
    KL | dict(kl_corrected=True),
    dict(beta=0.3, args=_args(use_bias_correction_kl=True)),
  ),
  'dapo': (dict(clip_high=0.28), dict(epsilon_high=0.28)),
  'bnpo': ({}, dict(loss_type='bnpo')),
  'dr_grpo': (
    dict(reduction='constant', max_length=11),
    dict(loss_type='dr_grpo', max_completion_length=11),
  ),
  'dual_clip': (dict(dual_clip=1.3), dict(args=_args(delta=1.3))),
  'gspo': (
    dict(reduction='sequence', ratio='sequence', clip_low=0.05, clip_high=0.08),
    dict(
      loss_type='grpo',
      importance_sampling_level='sequence',
      epsilon_low=0.05,
      epsilon_high=0.08,
    ),
  ),
  'gspo_kl': (
    dict(reduction='sequence', ratio='sequence', kl_corrected=True) | KL,
    dict(
      loss_type='grpo',
      importance_sampling_level='sequence',
      beta=0.3,
      args=_args(use_bias_correction_kl=True),
    ),
  ),
}


@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize('name', GRPO)
def test_losses_of_grpo_trainer(name, seed):
  settings, trl_settings = GRPO[name]
  case = _case(seed)
  names = ('logprobs', 'old', 'ref', 'entropy', 'mask', 'advantages')
  theirs = _theirs(trl_stubs.grpo, case, *names, **trl_settings)
  more = {'ref_logprobs': jnp.asarray(case['ref'])}
  _assert_equal(_ours(policy.grpo_loss, case, **settings, **more), theirs)


def test_entropy_bonus():
  case = _case(2)
  names = ('logprobs', 'old', 'ref', 'entropy', 'mask', 'advantages')
  theirs = _theirs(
    trl_stubs.grpo,
    case,
    *names,
    _entropy_bonus_enabled=True,
    entropy_coef=0.2,
  )
  more = dict(entropy=jnp.asarray(case['entropy']), entropy_coef=0.2)
  _assert_equal(_ours(policy.grpo_loss, case, **more), theirs)


def test_rloo():
  case = _case(3)
  names = ('logprobs', 'old', 'entropy', 'mask', 'advantages')
  theirs = _theirs(trl_stubs.rloo, case, *names)
  _assert_equal(_ours(policy.rloo_loss, case), theirs)


def test_group_std_is_that_of_trl():
  from trl.trainer.utils import nanstd

  rewards = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
  rewards[1, 2] = np.nan
  tensor = torch.tensor(rewards)
  centred = tensor - torch.nanmean(tensor, dim=1, keepdim=True)
  for scale, std in (
    ('group', nanstd(tensor, dim=1)[:, None]),
    ('batch', nanstd(tensor)),
  ):
    expected = torch.nan_to_num(centred / (std + 1e-4), nan=0.0)
    found = policy.group_advantages(rewards.reshape(-1), 5, scale=scale)
    np.testing.assert_allclose(found, expected.reshape(-1), rtol=1e-5)


def test_overlong_penalty_is_that_of_trl():
  from trl.rewards import get_soft_overlong_punishment

  lengths = np.arange(0, 130, 7)
  expected = get_soft_overlong_punishment(100, 20)(
    completion_ids=[[0] * n for n in lengths]
  )
  found = policy.overlong_penalty(lengths, max_length=100, margin=20)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def _numpy_gae(rewards, values, mask, gamma, lam):
  """Row by row over the tokens that count, from the last to the first."""
  advantages = np.zeros_like(rewards)
  for row in range(rewards.shape[0]):
    advantage = value = 0.0
    for t in np.flatnonzero(mask[row])[::-1]:
      delta = rewards[row, t] + gamma * value - values[row, t]
      advantage = delta + gamma * lam * advantage
      value = values[row, t]
      advantages[row, t] = advantage
  return advantages, (advantages + values) * mask


def test_ppo_beside_numpy():
  rng = np.random.default_rng(4)
  case = {k: v.astype(np.float64) for k, v in _case(4).items()}
  mask = case['mask'].astype(bool)
  mask[0, 1:3] = False  # a tool's answer inside
  logp, old, ref = case['logprobs'], case['old'], case['ref']
  scores, values = rng.normal(size=B), rng.normal(size=(B, T))
  old_values = values + rng.normal(size=(B, T)) / 4
  gamma, lam, kl_coef, clip = 0.97, 0.9, 0.05, 0.2

  rewards = -kl_coef * (old - ref) * mask
  for row in range(B):
    rewards[row, np.flatnonzero(mask[row])[-1]] += scores[row]
  advantages, returns = _numpy_gae(rewards, old_values, mask, gamma, lam)
  taken = advantages[mask]
  white = (advantages - taken.mean()) / np.sqrt(taken.var(ddof=1) + 1e-8)
  ratio = np.exp(logp - old)
  clipped = np.clip(ratio, 1 - clip, 1 + clip)
  losses = np.maximum(-white * ratio, -white * clipped)
  unclipped = (-white * ratio >= -white * clipped) & mask
  grad = np.where(unclipped, -white * ratio, 0) / mask.sum()
  bounded = np.clip(values, old_values - clip, old_values + clip)
  errors = (values - returns) ** 2, (bounded - returns) ** 2

  f32 = lambda x: jnp.asarray(x, jnp.float32)
  found, taken = policy.token_rewards(
    f32(scores), f32(old), f32(ref), jnp.asarray(mask), kl_coef=kl_coef
  )
  np.testing.assert_allclose(found, rewards, rtol=1e-5, atol=1e-6)
  found = policy.gae(found, f32(old_values), taken, gamma=gamma, lam=lam)
  np.testing.assert_allclose(found[0], advantages, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found[1], returns, rtol=1e-4, atol=1e-5)
  whitened = policy.whiten(found[0], taken)
  np.testing.assert_allclose(whitened, white * mask, rtol=1e-4, atol=1e-5)

  def policy_loss(x):
    loss, weight, _ = policy.ppo_policy_loss(x, f32(old), whitened, taken)
    return loss / weight

  value, found = jax.value_and_grad(policy_loss)(f32(logp))
  np.testing.assert_allclose(value, losses[mask].mean(), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found, grad, rtol=1e-4, atol=1e-6)

  def value_loss(x):
    loss, weight, _ = policy.ppo_value_loss(
      x, f32(old_values), f32(returns), taken
    )
    return loss / weight

  value, found = jax.value_and_grad(value_loss)(f32(values))
  expected = 0.5 * np.maximum(*errors)[mask].mean()
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  inside = np.abs(values - old_values) < clip
  slope = np.where(
    errors[0] >= errors[1], values - returns, inside * (bounded - returns)
  )
  np.testing.assert_allclose(
    found, slope * mask / mask.sum(), rtol=1e-4, atol=1e-6
  )
