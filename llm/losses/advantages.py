"""Advantages: GAE, group-relative, leave-one-out, and whitening."""

import jax
from jax import lax
import jax.numpy as jnp


def gae(
  rewards: jax.Array,
  values: jax.Array,
  mask: jax.Array,
  *,
  gamma: float = 1.0,
  lam: float = 0.95,
  last_values: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Generalised advantage estimation (Schulman et al., 1506.02438).

    delta_t = r_t + gamma V_{t+1} - V_t
    A_t = delta_t + gamma lam A_{t+1};   return_t = A_t + V_t

  A position outside the mask (a prompt, a tool's output, padding) is no step:
  t + 1 is the next position under the mask, so V and A pass over it.

  Args:
    rewards: float[B, T].
    values: float[B, T], V_t before the token at t is drawn.
    mask: bool or float[B, T], True at the policy's own tokens.
    gamma: discount.
    lam: 0 is one step, 1 the whole return.
    last_values: float[B], V after the last step, for a completion that was cut
      off; None is 0, an end.

  Returns:
    advantages and returns, float32[B, T], 0 outside the mask, without
    gradient. The returns are those of the advantages before any whitening.

  Raises:
    ValueError: the shapes do not agree.
  """
  for name, array in (('values', values), ('mask', mask)):
    if array.shape != rewards.shape:
      raise ValueError(
        f'{name} has shape {array.shape}, but rewards {rewards.shape}'
      )
  taken = mask != 0
  rewards, values = (
    lax.stop_gradient(jnp.where(taken, x, 0.0).astype(jnp.float32))
    for x in (rewards, values)
  )
  end = jnp.zeros(rewards.shape[:1], jnp.float32)
  if last_values is not None:
    end = lax.stop_gradient(jnp.asarray(last_values, jnp.float32))

  def back(after, step):
    advantage, value = after
    reward, this, here = step
    new = reward + gamma * value - this + gamma * lam * advantage
    after = jnp.where(here, new, advantage), jnp.where(here, this, value)
    return after, jnp.where(here, new, 0.0)

  start = jnp.zeros_like(end), end
  steps = rewards.T, values.T, taken.T
  _, advantages = lax.scan(back, start, steps, reverse=True)
  advantages = advantages.T
  return advantages, jnp.where(taken, advantages + values, 0.0)


def group_advantages(
  rewards: jax.Array,
  group_size: int,
  *,
  scale: str = 'group',
  ddof: int = 1,
  eps: float = 1e-4,
) -> jax.Array:
  """(R - mean of the group) / (std + eps), GRPO's advantage.

  Shao et al., 2402.03300; Dr.GRPO (2503.20783) is `scale='none'`. Defaults are
  TRL's; verl and tunix add 1e-6, EasyDeL has ddof=0.

  A NaN is a completion that could not be rated: it is left out of mean and std
  and gets 0. So does a group whose rewards are all equal, and a group of one:
  there is nothing to learn from. An infinite reward makes its group's
  advantages NaN (tasks refuse it where it is given).

  Args:
    rewards: float[B], `group_size` consecutive completions for each prompt.
    group_size: G, divides B.
    scale: 'group' divides by the group's standard deviation, 'batch' by that
      of all rewards, 'none' by nothing.
    ddof: 1 for the unbiased variance, 0 for the population's.
    eps: added to the standard deviation.

  Returns:
    float32[B], without gradient.

  Raises:
    ValueError: groups that do not divide, or another `scale`.
  """
  if scale not in ('group', 'batch', 'none'):
    raise ValueError(f"scale={scale!r} must be 'group', 'batch' or 'none'")
  groups, valid = _groups(rewards, group_size)
  centred = groups - _mean(groups, valid, axis=1)
  if scale == 'group':
    centred = centred / (_std(groups, valid, ddof, axis=1) + eps)
  elif scale == 'batch':
    centred = centred / (_std(groups, valid, ddof, axis=None) + eps)
  return jnp.where(_signal(groups, valid) & valid, centred, 0.0).reshape(-1)


def rloo_advantages(
  rewards: jax.Array,
  group_size: int,
  *,
  normalise: bool = False,
  eps: float = 1e-4,
) -> jax.Array:
  """R minus the mean reward of the others of its group.

  REINFORCE leave-one-out (Ahmadian et al., 2402.14740). Where the KL is a
  penalty, `rewards` are `sequence_rewards`. NaN rewards, equal rewards and
  groups of one are as in `group_advantages`.

  Args:
    rewards: float[B], consecutive groups.
    group_size: G, divides B.
    normalise: subtract the batch's mean and divide by its standard deviation
      (unbiased) + eps.
    eps: added to the standard deviation.

  Returns:
    float32[B], without gradient.

  Raises:
    ValueError: groups that do not divide.
  """
  groups, valid = _groups(rewards, group_size)
  count = jnp.sum(valid, axis=1, keepdims=True)
  others = jnp.sum(groups, axis=1, keepdims=True) - groups
  alone = count < 2
  baseline = others / jnp.where(alone, 1, count - 1)
  usable = valid & ~alone
  advantages = groups - baseline
  if normalise:
    mean = _mean(advantages, usable, axis=None)
    std = _std(advantages, usable, 1, axis=None)
    advantages = (advantages - mean) / (std + eps)
  else:
    usable = usable & _signal(groups, valid)
  return jnp.where(usable, advantages, 0.0).reshape(-1)


def groups_with_signal(rewards: jax.Array, group_size: int) -> jax.Array:
  """Rows whose group has two different rewards: DAPO's dynamic sampling.

  Groups that are all right or all wrong have no gradient and are to be drawn
  again (Yu et al., 2503.14476, section 3.2).

  Args:
    rewards: float[B], consecutive groups; NaN is not rated.
    group_size: G, divides B.

  Returns:
    bool[B], equal within a group.
  """
  groups, valid = _groups(rewards, group_size)
  signal = _signal(groups, valid)
  return jnp.broadcast_to(signal, groups.shape).reshape(-1)


def group_lengths(lengths: jax.Array, group_size: int) -> jax.Array:
  """Mean length of each row's group, for `reduction='group'`.

  Args:
    lengths: int or float[B], tokens of each completion, groups after each
      other; 0 is a completion that is left out.
    group_size: G, divides B.

  Returns:
    float32[B], equal within a group; 0 for a group without completions.
  """
  groups, _ = _groups(lengths, group_size)
  there = jnp.sum(groups > 0, axis=1, keepdims=True)
  mean = jnp.sum(groups, axis=1, keepdims=True) / jnp.maximum(there, 1)
  return jnp.broadcast_to(mean, groups.shape).reshape(-1)


def group_weights(valid: jax.Array, group_size: int) -> jax.Array:
  """Weights of completions that add up to the same in each group.

  For `reduction='group'`, where every group counts alike.

  Args:
    valid: bool[B], completions that are not left out, consecutive groups.
    group_size: G, divides B.

  Returns:
    float32[B]: G / k for each of the k that are left, 0 for the others.
  """
  groups, _ = _groups(valid, group_size)
  there = jnp.sum(groups, axis=1, keepdims=True)
  return (groups * group_size / jnp.maximum(there, 1)).reshape(-1)


def whiten(
  values: jax.Array,
  mask: jax.Array,
  *,
  shift_mean: bool = True,
  eps: float = 1e-8,
) -> jax.Array:
  """(x - mean) / sqrt(var + eps) over the mask, unbiased variance.

  Call it on the whole batch, before it is split into microbatches.

  Args:
    values: float[...].
    mask: bool or float[...].
    shift_mean: False puts the mean back: only the scale changes.
    eps: added to the variance.

  Returns:
    float32[...], 0 outside the mask, without gradient.
  """
  valid = mask != 0
  values = jnp.where(valid, values, 0.0).astype(jnp.float32)
  mean = _mean(values, valid, axis=None)
  var = jnp.square(_std(values, valid, 1, axis=None))
  out = (values - mean) * lax.rsqrt(var + eps)
  if not shift_mean:
    out = out + mean
  return lax.stop_gradient(jnp.where(valid, out, 0.0))


def _groups(rewards, group_size):
  """(float32[B / G, G] with 0 for NaN, bool[B / G, G])."""
  rows = rewards.shape[0]
  if group_size < 1 or rows % group_size:
    raise ValueError(
      f'{rows} rewards do not divide into groups of group_size={group_size}'
    )
  groups = jnp.asarray(rewards, jnp.float32).reshape(-1, group_size)
  valid = ~jnp.isnan(groups)
  return lax.stop_gradient(jnp.where(valid, groups, 0.0)), valid


def _mean(values, valid, axis):
  count = jnp.sum(valid, axis=axis, keepdims=True)
  total = jnp.sum(jnp.where(valid, values, 0.0), axis=axis, keepdims=True)
  return total / jnp.maximum(count, 1)


def _std(values, valid, ddof, axis):
  """0 where there are too few values."""
  errors = jnp.where(valid, values - _mean(values, valid, axis), 0.0)
  count = jnp.sum(valid, axis=axis, keepdims=True) - ddof
  total = jnp.sum(jnp.square(errors), axis=axis, keepdims=True)
  return jnp.sqrt(total / jnp.maximum(count, 1))


def _signal(groups, valid):
  """bool[B / G, 1]: two rewards of the group differ."""
  low = jnp.min(jnp.where(valid, groups, jnp.inf), axis=1, keepdims=True)
  high = jnp.max(jnp.where(valid, groups, -jnp.inf), axis=1, keepdims=True)
  return high > low
