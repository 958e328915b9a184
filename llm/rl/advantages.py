"""From the rewards of a rollout to its advantages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from llm.losses import policy
from llm.rl.algorithms import Algorithm


def advantages(
  algorithm: Algorithm,
  batch: dict[str, np.ndarray],
  rewards: np.ndarray,
  group_size: int,
  kl_coef: float,
) -> dict[str, np.ndarray]:
  """The columns of a whole rollout that follow from its rewards.

  Args:
    algorithm: of the run.
    batch: arrays of `rollout.rows_after_prompts`, with `ref_logprobs` where
      there is a reference, and `old_values` for PPO.
    rewards: float[B], consecutive groups; NaN where a completion is not
      rated: its row weight is 0.
    group_size: G.
    kl_coef: of rewards that have the KL taken off (RLOO, PPO).

  Returns:
    `advantages`, `row_weights`, `group_lengths` and, for PPO, `returns`.
  """
  scale, options = algorithm.scale, algorithm.options
  old = batch['old_logprobs']
  columns = _columns(
    np.asarray(rewards, np.float32),
    batch['mask'],
    old,
    batch.get('ref_logprobs', old),
    batch.get('old_values', old),
    np.float32(kl_coef),
    scale=scale,
    group_size=group_size,
    gamma=options.get('gamma'),
    lam=options.get('lam'),
    groups_alike=options.get('reduction') == 'group',
  )
  if scale != 'gae':
    columns.pop('returns')
  return {k: np.asarray(v) for k, v in columns.items()}


@functools.partial(
  jax.jit,
  static_argnames=('scale', 'group_size', 'gamma', 'lam', 'groups_alike'),
)
def _columns(
  rewards,
  mask,
  old,
  ref,
  values,
  kl_coef,
  *,
  scale,
  group_size,
  gamma,
  lam,
  groups_alike,
):
  rated = jnp.isfinite(rewards)
  mask = mask & rated[:, None]
  returns = None
  if scale == 'gae':
    shaped, taken = policy.token_rewards(
      jnp.nan_to_num(rewards), old, ref, mask, kl_coef=kl_coef
    )
    gains, returns = policy.gae(shaped, values, taken, gamma=gamma, lam=lam)
    advantages = policy.whiten(gains, taken)
  elif scale == 'rloo':
    rewards = policy.sequence_rewards(rewards, old, ref, mask, kl_coef=kl_coef)
    advantages = policy.rloo_advantages(rewards, group_size)
  else:
    advantages = policy.group_advantages(rewards, group_size, scale=scale)
  weights = rated.astype(jnp.float32)
  if groups_alike:
    weights = policy.group_weights(rated, group_size)
  return {
    'row_weights': weights,
    'group_lengths': policy.group_lengths(mask.sum(axis=1), group_size),
    'advantages': advantages,
    'returns': returns,
  }
