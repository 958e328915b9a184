"""Losses of reinforcement learning: REINFORCE, PPO, RLOO, GRPO and variants.

Arrays are per token: float[B, T], row i the i-th completion, `mask` bool or
float, True at the tokens that the policy drew (0 at prompt, padding and after
the end; whatever stands there, even NaN, is dropped). Log-probabilities are
natural ones: `logprobs` of the policy being trained, `old_logprobs` at
sampling, `ref_logprobs` of the reference; gradients flow through `logprobs`
alone, and where `entropy` has a coefficient, through it.

How tokens and completions are averaged is the difference between algorithms, so
it has a name, `reduction`, and each is one weighted sum:

  'token'     Σ loss / Σ tokens                        DAPO, PPO, TRL's GRPO
  'sequence'  mean over completions of (Σ loss / n_i)  GRPO, GSPO
  'constant'  Σ loss / (completions · max_length)      Dr.GRPO
  'group'     mean over groups of (Σ loss / Σ tokens)  DAPO as in its paper

  name      group_advantages     the loss
  grpo      scale='group'        reduction='sequence', kl_coef=0.04
  dr_grpo   scale='none'         reduction='constant', max_length=L
  dapo      scale='group'        reduction='token', clip_high=0.28; sampling by
                                 groups_with_signal, overlong_penalty
  gspo      scale='group'        reduction='sequence', ratio='sequence',
                                 clip_low=3e-4, clip_high=4e-4
  rloo      rloo_advantages      rloo_loss
  reinforce any                  reinforce_loss

`weight_sum` is the denominator, so that losses of microbatches add up exactly.
Metrics are sums to be divided by it too: means over tokens for 'token', and
over completions of their token means for the others. A completion counts by
`row_weights`; without them by 1 if it has any token.

These arguments mean the same in every loss here:

  logprobs, old_logprobs, ref_logprobs, mask: see above.
  advantages: float[B] of completions, or float[B, T] of tokens.
  row_weights: float or bool[B]; a completion of weight 0 is not there. Give 1
    to one whose tokens are all masked to have it count in the mean.
  entropy: float[B, T], of the policy at each token, for the metric and for
    the loss, where its weight is `entropy_coef`.
  clip_low, clip_high: a ratio r below 1 - clip_low or above 1 + clip_high is
    clipped; clip_high=None is clip_low.
  dual_clip: c > 1; where A < 0 the loss is at most -A c (1912.09729; 3 is
    usual in verl, `delta` in TRL). None: no such limit.
  log_ratio_limit: log-ratios are clipped to ± this; None, as in TRL, is no
    limit, verl has 20.
  reduction: one of the names above.
  max_length: L of reduction 'constant': the longest completion allowed.

A KL that is multiplied by r (`kl_corrected`, TRL's `use_bias_correction_kl`) is
one of the next token, at the prefixes given: k3 is then unbiased off policy,
and its gradient is that of KL(policy, ref); without r it is that of
KL(ref, policy) on policy.
"""

import jax
from jax import lax
import jax.numpy as jnp

from llm.losses.advantages import (
  gae,
  group_advantages,
  group_lengths,
  group_weights,
  groups_with_signal,
  rloo_advantages,
  whiten,
)
from llm.losses.options import ESTIMATORS
from llm.losses.pairs import Sums
from llm.losses.reductions import clean, counted, per_token, reduce
from llm.losses.shaping import (
  adaptive_kl_coef,
  kl_estimate,
  overlong_penalty,
  sequence_rewards,
  token_rewards,
)

__all__ = [
  'adaptive_kl_coef',
  'gae',
  'group_advantages',
  'group_lengths',
  'group_weights',
  'groups_with_signal',
  'grpo_loss',
  'kl_estimate',
  'overlong_penalty',
  'ppo_policy_loss',
  'ppo_value_loss',
  'reinforce_loss',
  'rloo_advantages',
  'rloo_loss',
  'sequence_rewards',
  'token_rewards',
  'whiten',
]

RATIOS = ('token', 'sequence', 'sequence_sum')


def reinforce_loss(
  logprobs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  row_weights: jax.Array | None = None,
  reduction: str = 'token',
  max_length: int | None = None,
) -> Sums:
  """-A logp: its gradient is the policy gradient of tokens drawn on policy.

  Returns:
    (loss_sum, weight_sum, metrics), see the module; metrics: logprob.

  Raises:
    ValueError: shapes do not agree, or an unknown reduction.
  """
  mask, rows = counted(mask, row_weights)
  (logprobs,) = clean(mask, logprobs=logprobs)
  means = reduce(mask, rows, reduction, max_length)
  losses = -per_token(advantages, mask) * logprobs
  return means.sums(losses, logprob=logprobs)


def ppo_policy_loss(
  logprobs: jax.Array,
  old_logprobs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  entropy: jax.Array | None = None,
  clip_low: float = 0.2,
  clip_high: float | None = None,
  dual_clip: float | None = None,
  log_ratio_limit: float | None = None,
  entropy_coef: float = 0.0,
) -> Sums:
  """max(-A r, -A clip(r, 1 - low, 1 + high)), r = exp(logp - old_logp).

  Schulman et al., 1707.06347, equation 7; a mean over tokens. It is
  `grpo_loss` with an advantage per token (from `gae`, whitened), the KL being
  in the rewards; metrics and errors are those there.
  """
  return grpo_loss(
    logprobs,
    old_logprobs,
    advantages,
    mask,
    entropy=entropy,
    clip_low=clip_low,
    clip_high=clip_high,
    dual_clip=dual_clip,
    log_ratio_limit=log_ratio_limit,
    entropy_coef=entropy_coef,
  )


def rloo_loss(
  logprobs: jax.Array,
  old_logprobs: jax.Array | None,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  row_weights: jax.Array | None = None,
  entropy: jax.Array | None = None,
  clip_low: float = 0.2,
  clip_high: float | None = None,
) -> Sums:
  """The clipped loss with the ratio of whole completions, a mean over them.

  r = exp(Σ_t logp - old_logp). Ahmadian et al., 2402.14740, off policy as in
  TRL. `advantages` are `rloo_advantages` of `sequence_rewards`; metrics and
  errors are those of `grpo_loss`.
  """
  return grpo_loss(
    logprobs,
    old_logprobs,
    advantages,
    mask,
    row_weights=row_weights,
    entropy=entropy,
    clip_low=clip_low,
    clip_high=clip_high,
    ratio='sequence_sum',
    reduction='sequence',
  )


def grpo_loss(
  logprobs: jax.Array,
  old_logprobs: jax.Array | None,
  advantages: jax.Array,
  mask: jax.Array,
  ref_logprobs: jax.Array | None = None,
  *,
  row_weights: jax.Array | None = None,
  group_lengths: jax.Array | None = None,
  entropy: jax.Array | None = None,
  clip_low: float = 0.2,
  clip_high: float | None = None,
  dual_clip: float | None = None,
  ratio: str = 'token',
  log_ratio_limit: float | None = None,
  kl_coef: jax.Array | float = 0.0,
  kl_estimator: str = 'k3',
  kl_limit: float | None = None,
  kl_corrected: bool = False,
  entropy_coef: float = 0.0,
  reduction: str = 'token',
  max_length: int | None = None,
) -> Sums:
  """max(-A r, -A clip(r)) + kl_coef KL - entropy_coef H, per token.

  GRPO 2402.03300, Dr.GRPO 2503.20783, DAPO 2503.14476, GSPO 2507.18071; the
  module's table says which settings each is. The gradient is 0 exactly where
  A > 0 and r > 1 + clip_high, or A < 0 and r < 1 - clip_low (or, with a dual
  clip, r > dual_clip); else it is -A r times that of logp.

  Args, besides the module's:
    old_logprobs: None takes `logprobs` without gradient, for one step on fresh
      samples (r = 1).
    group_lengths: float[B], `advantages.group_lengths` of all completions'
      lengths, for reduction 'group'.
    ratio: 'token', 'sequence' (GSPO: exp of the mean log-ratio) or
      'sequence_sum' (exp of the sum).
    kl_coef: weight of the KL to the reference.
    kl_estimator: see `kl_estimate`; the estimate is clipped to ± `kl_limit`.
    kl_corrected: multiply the KL by r, see the module.

  Returns:
    (loss_sum, weight_sum, metrics), see the module; metrics: ratio, clip_low,
    clip_high (shares of clipped tokens with A < 0 and A > 0), clip_fraction,
    old_kl (k3 of sampler and policy); kl_k1, kl_k2, kl_k3 with a reference;
    entropy where it is given.

  Raises:
    ValueError: shapes do not agree, an unknown name, or what a setting needs
      is not given.
  """
  _check_settings(ratio, kl_coef, ref_logprobs, entropy_coef, entropy)
  mask, rows = counted(mask, row_weights)
  logprobs, old, ref, entropy = clean(
    mask,
    logprobs=logprobs,
    old_logprobs=logprobs if old_logprobs is None else old_logprobs,
    ref_logprobs=ref_logprobs,
    entropy=entropy,
  )
  old = lax.stop_gradient(old)
  means = reduce(mask, rows, reduction, max_length, group_lengths)
  r = jnp.exp(_log_ratio(logprobs - old, mask, ratio, log_ratio_limit))
  low = 1.0 - clip_low
  high = 1.0 + (clip_low if clip_high is None else clip_high)
  advantages = per_token(advantages, mask)
  losses = _clipped(r, advantages, low, high, dual_clip)
  metrics = _clip_metrics(r, advantages, low, high)
  metrics['old_kl'] = kl_estimate(old, logprobs, 'k3')
  if ref is not None:
    ref = lax.stop_gradient(ref)
    metrics |= {f'kl_{k}': kl_estimate(logprobs, ref, k) for k in ESTIMATORS}
    if not _is_zero(kl_coef):  # 0 · inf would be a NaN
      limits = dict(log_ratio_limit=log_ratio_limit, limit=kl_limit)
      kl = kl_estimate(logprobs, ref, kl_estimator, **limits)
      losses = losses + kl_coef * (kl * r if kl_corrected else kl)
  if entropy is not None:
    metrics['entropy'] = entropy
    losses = losses - entropy_coef * entropy
  return means.sums(losses, **metrics)


def ppo_value_loss(
  values: jax.Array,
  old_values: jax.Array,
  returns: jax.Array,
  mask: jax.Array,
  *,
  clip: float | None = 0.2,
) -> Sums:
  """0.5 max((V - R)², (clip(V, V_old ± c) - R)²), a mean over tokens.

  Args:
    values: float[B, T], of the value head being trained.
    old_values: float[B, T], when the completions were sampled.
    returns: float[B, T], from `gae`.
    mask: bool or float[B, T], the mask from `token_rewards`.
    clip: c, or None for no clipping (0.2 in TRL and torchtune, 0.5 in verl
      and OpenRLHF).

  Returns:
    loss_sum float32[], weight_sum float32[], the tokens; metrics, sums over
    tokens: value, return, squared_error, value_clip_fraction (the clipped
    error is the larger).

  Raises:
    ValueError: the shapes do not agree.
  """
  mask, rows = counted(mask, None)
  values, old, returns = clean(
    mask, values=values, old_values=old_values, returns=returns
  )
  old, returns = lax.stop_gradient((old, returns))
  error = jnp.square(values - returns)
  worst = error
  if clip is not None:
    bounded = jnp.clip(values, old - clip, old + clip)
    worst = jnp.maximum(error, jnp.square(bounded - returns))
  metrics = {
    'value': values,
    'return': returns,
    'squared_error': error,
    'value_clip_fraction': worst > error,
  }
  return reduce(mask, rows, 'token').sums(0.5 * worst, **metrics)


def _clip_metrics(r, advantages, low, high):
  """The ratios, and which tokens are clipped."""
  low_clipped = (r < low) & (advantages < 0)
  high_clipped = (r > high) & (advantages > 0)
  return {
    'ratio': r,
    'clip_low': low_clipped,
    'clip_high': high_clipped,
    'clip_fraction': low_clipped | high_clipped,
  }


def _clipped(r, advantages, low, high, dual_clip):
  """PPO's pessimistic loss of each token."""
  losses = jnp.maximum(-advantages * r, -advantages * jnp.clip(r, low, high))
  if dual_clip is None:
    return losses
  if dual_clip <= high:
    raise ValueError(
      f'dual_clip={dual_clip} must be above 1 + clip_high = {high}'
    )
  bound = -advantages * dual_clip
  return jnp.where(advantages < 0, jnp.minimum(losses, bound), losses)


def _log_ratio(log_r, mask, ratio, limit):
  """float32[B, T]: of tokens, or of the completion at each of its tokens."""
  if ratio != 'token':
    whole = jnp.sum(log_r, axis=1, keepdims=True)
    if ratio == 'sequence':
      count = jnp.sum(mask, axis=1, keepdims=True)
      whole = whole / jnp.maximum(count, 1)
    log_r = jnp.where(mask, whole, 0.0)
  return log_r if limit is None else jnp.clip(log_r, -limit, limit)


def _is_zero(coef):
  """Whether a coefficient is a plain 0, not an array that may change."""
  return isinstance(coef, (int, float)) and coef == 0


def _check_settings(ratio, kl_coef, ref_logprobs, entropy_coef, entropy):
  if ratio not in RATIOS:
    raise ValueError(f'ratio={ratio!r} must be one of {RATIOS}')
  if ref_logprobs is None and not _is_zero(kl_coef):
    raise ValueError(f'kl_coef={kl_coef} needs ref_logprobs')
  if entropy is None and entropy_coef:
    raise ValueError(f'entropy_coef={entropy_coef} needs entropy')
