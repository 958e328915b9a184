"""Reward shaping: KL to the reference, and a penalty on length."""

import jax
import jax.numpy as jnp

from llm.losses.options import ESTIMATORS


def kl_estimate(
  logprobs: jax.Array,
  ref_logprobs: jax.Array,
  estimator: str = 'k3',
  *,
  log_ratio_limit: float | None = None,
  limit: float | None = None,
) -> jax.Array:
  """KL(policy, reference) at a token that the policy drew, by one sample.

  With d = ref_logp - logp: k1 = -d, k2 = d² / 2, k3 = exp(d) - d - 1
  (Schulman, "Approximating KL divergence", 2020). k1 and k3 are unbiased, k2
  and k3 never negative. As a loss on policy, the gradient of k2 is that of the
  KL, the gradient of k3 that of the other direction, and that of k1 is 0 on
  average: use k1 in rewards.

  Args:
    logprobs: float[...].
    ref_logprobs: float[...].
    estimator: 'k1', 'k2' or 'k3'.
    log_ratio_limit: d is clipped to ± this (20 in verl, tunix and OpenRLHF);
      None, as in TRL, does not clip.
    limit: the estimate is clipped to ± this (10 in verl), or None.

  Returns:
    float32[...], in nats.

  Raises:
    ValueError: another estimator.
  """
  if estimator not in ESTIMATORS:
    raise ValueError(f'estimator={estimator!r} must be one of {ESTIMATORS}')
  d = jnp.asarray(ref_logprobs, jnp.float32) - logprobs
  if log_ratio_limit is not None:
    d = jnp.clip(d, -log_ratio_limit, log_ratio_limit)
  if estimator == 'k1':
    kl = -d
  elif estimator == 'k2':
    kl = jnp.square(d) / 2
  else:
    kl = jnp.expm1(d) - d
  return kl if limit is None else jnp.clip(kl, -limit, limit)


def token_rewards(
  scores: jax.Array,
  logprobs: jax.Array,
  ref_logprobs: jax.Array,
  mask: jax.Array,
  *,
  kl_coef: jax.Array | float = 0.05,
  estimator: str = 'k1',
  placement: str = 'last',
) -> tuple[jax.Array, jax.Array]:
  """Rewards of PPO: -kl_coef · KL at each token, the score at the end.

  The score is given at the last token (EOS; OpenRLHF), or, with
  `placement='after'`, one position later where the row has one (TRL's port of
  2403.17031). The values of that position then count too, and the returned
  mask has it:

    mask  1 1 1 0 0     last   r r R 0 0,  1 1 1 0 0
                        after  r r r R 0,  1 1 1 1 0

  Args:
    scores: float[B], reward of each completion.
    logprobs: float[B, T], of the sampled tokens when they were sampled.
    ref_logprobs: float[B, T].
    mask: bool or float[B, T], True at the completion's tokens.
    kl_coef: float[], from the config or `adaptive_kl_coef`.
    estimator: of `kl_estimate`.
    placement: 'last' or 'after'.

  Returns:
    rewards float32[B, T], without gradient, and bool[B, T], the mask for `gae`
    and the value loss. A row without tokens has no reward.

  Raises:
    ValueError: another placement or estimator.
  """
  if placement not in ('last', 'after'):
    raise ValueError(f"placement={placement!r} must be 'last' or 'after'")
  taken = mask != 0
  places = jnp.arange(mask.shape[1])[None]
  last = jnp.max(jnp.where(taken, places, -1), axis=1)
  at = last
  if placement == 'after':
    at = jnp.where(last < 0, -1, jnp.minimum(last + 1, mask.shape[1] - 1))
  here = places == at[:, None]
  logprobs, ref_logprobs = (
    jnp.where(taken, x, 0.0) for x in (logprobs, ref_logprobs)
  )
  penalty = kl_coef * kl_estimate(logprobs, ref_logprobs, estimator)
  rewards = jnp.where(here, scores[:, None], 0.0) - penalty
  return jax.lax.stop_gradient(rewards.astype(jnp.float32)), taken | here


def sequence_rewards(
  scores: jax.Array,
  logprobs: jax.Array,
  ref_logprobs: jax.Array,
  mask: jax.Array,
  *,
  kl_coef: jax.Array | float = 0.05,
  estimator: str = 'k1',
) -> jax.Array:
  """Rewards of RLOO: score - kl_coef · Σ KL over the completion's tokens.

  Arguments and errors are those of `token_rewards`.

  Returns:
    float32[B], without gradient.
  """
  taken = mask != 0
  logprobs, ref_logprobs = (
    jnp.where(taken, x, 0.0) for x in (logprobs, ref_logprobs)
  )
  kl = kl_estimate(logprobs, ref_logprobs, estimator).sum(axis=1)
  return jax.lax.stop_gradient(scores - kl_coef * kl)


def overlong_penalty(
  lengths: jax.Array, *, max_length: int, margin: int
) -> jax.Array:
  """DAPO's soft penalty of long completions (2503.14476, equation 13).

  0 up to max_length - margin, from there falling linearly to -1 at
  max_length, and -1 beyond; it is added to the reward.

  Args:
    lengths: int or float[B], tokens of each completion.
    max_length: L_max (20480 there).
    margin: L_cache (4096 there), at least 1.

  Returns:
    float32[B].

  Raises:
    ValueError: a margin outside [1, max_length].
  """
  if not 1 <= margin <= max_length:
    raise ValueError(
      f'margin={margin} must be from 1 to max_length={max_length}'
    )
  over = jnp.asarray(lengths, jnp.float32) - (max_length - margin)
  return -jnp.clip(over / margin, 0.0, 1.0)


def adaptive_kl_coef(
  coef: jax.Array | float,
  kl: jax.Array | float,
  count: jax.Array | float,
  *,
  target: float,
  horizon: float = 10_000.0,
  limit: float = 0.2,
) -> jax.Array:
  """The next coefficient of a controller that holds the KL at a target.

  coef · (1 + clip(kl / target - 1, ±limit) · count / horizon) (Ziegler et al.,
  1909.08593, section 2.2). The coefficient is its whole state: save it in
  the checkpoint.

  Args:
    coef: float[], the present coefficient.
    kl: float[], measured KL, in the unit of `target`.
    count: float[], samples since the last call.
    target: above 0.
    horizon: samples over which the coefficient adapts.
    limit: largest relative error that counts.

  Returns:
    float32[].
  """
  error = jnp.clip(jnp.asarray(kl, jnp.float32) / target - 1.0, -limit, limit)
  return coef * (1.0 + error * count / horizon)
