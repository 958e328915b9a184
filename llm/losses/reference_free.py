"""Preference losses without a reference model: SimPO, CPO, ORPO.

Arguments, sums and errors are as in `preference.py`, which re-exports these.
"""

import jax
import jax.numpy as jnp

from llm.losses.options import check_options
from llm.losses.pairs import (
  Sums,
  pair_sums,
  prepare,
  smoothed_logistic,
  token_mean_nll,
)

# Mean log-probability from which on a completion counts as certain: its odds
# are infinite at 0, and so would be the gradient.
CERTAIN = -1e-7


def simpo_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  chosen_tokens: jax.Array,
  rejected_tokens: jax.Array,
  weights: jax.Array | None = None,
  *,
  beta: float = 2.0,
  gamma: float | None = None,
  gamma_ratio: float | None = None,
  label_smoothing: float = 0.0,
) -> Sums:
  """-log σ(beta (a_w - a_l) - gamma), a = logp / n, the mean over tokens.

  Meng et al., 2405.14734, equation 6. The paper and TRL give the margin as
  gamma, the authors' code as gamma_ratio = gamma / beta; name one of them.

  Args:
    chosen, rejected, weights: see `preference`.
    chosen_tokens: float[P], tokens of the chosen completions.
    rejected_tokens: float[P], tokens of the rejected completions.
    beta: scale of the reward beta · a.
    gamma: target margin of the rewards.
    gamma_ratio: gamma / beta. With neither, 0.25 (gamma = 0.5 at beta = 2).
    label_smoothing: share of wrong labels, as in cDPO.

  Raises:
    ValueError: both margins are given, or a smoothing outside [0, 0.5).
  """
  check_options(
    gamma=gamma, gamma_ratio=gamma_ratio, label_smoothing=label_smoothing
  )
  if gamma is None:
    gamma = beta * (0.25 if gamma_ratio is None else gamma_ratio)
  weights, l_w, l_l, n_w, n_l = prepare(
    weights,
    chosen=chosen,
    rejected=rejected,
    chosen_tokens=chosen_tokens,
    rejected_tokens=rejected_tokens,
  )
  r_w = beta * l_w / jnp.maximum(n_w, 1.0)
  r_l = beta * l_l / jnp.maximum(n_l, 1.0)
  losses = smoothed_logistic(r_w - r_l - gamma, label_smoothing)
  return pair_sums(
    losses, weights, r_w, r_l, chosen_logprob=l_w, rejected_logprob=l_l
  )


def cpo_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  chosen_tokens: jax.Array,
  weights: jax.Array | None = None,
  tokens_per_pair: jax.Array | float | None = None,
  *,
  beta: float = 0.1,
  alpha: float = 1.0,
  label_smoothing: float = 0.0,
) -> Sums:
  """-log σ(beta (logp_w - logp_l)) - alpha · Σ logp_w / Σ n_w.

  Xu et al., 2401.08417, equation 7: DPO with a uniform reference, and the NLL
  of the chosen completions as a mean over the tokens of the batch.

  Args:
    chosen, rejected, weights: see `preference`.
    chosen_tokens: float[P], n_w, tokens of the chosen completions.
    tokens_per_pair: float[] or float[P] of equal numbers: Σ n_w / pairs of the
      whole step's batch, so that microbatches add up; None is that of this
      call. See `preference.rpo_loss`.
    beta: scale of the reward beta · logp.
    alpha: weight of the NLL.
    label_smoothing: share of wrong labels, as in cDPO.

  Returns:
    The module's sums; metrics have `nll`, before alpha.
  """
  check_options(label_smoothing=label_smoothing)
  weights, l_w, l_l, n_w = prepare(
    weights, chosen=chosen, rejected=rejected, chosen_tokens=chosen_tokens
  )
  nll = token_mean_nll(l_w, n_w, weights, tokens_per_pair)
  losses = smoothed_logistic(beta * (l_w - l_l), label_smoothing) + alpha * nll
  return pair_sums(
    losses,
    weights,
    beta * l_w,
    beta * l_l,
    chosen_logprob=l_w,
    rejected_logprob=l_l,
    nll=nll,
  )


def orpo_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  chosen_tokens: jax.Array,
  rejected_tokens: jax.Array,
  weights: jax.Array | None = None,
  tokens_per_pair: jax.Array | float | None = None,
  *,
  beta: float = 0.1,
  prompt: jax.Array | None = None,
  prompt_tokens: jax.Array | None = None,
) -> Sums:
  """NLL of the chosen completions - beta log σ(log odds_w - log odds_l).

  log odds = a - log(1 - exp a), a = logp / n (Hong et al., 2403.07691,
  equations 6 and 7, where beta is called lambda). The NLL is a mean over the
  tokens of the batch. The paper takes it over the completion; TRL and the
  authors' code over prompt and completion: pass `prompt` and `prompt_tokens`
  for that.

  Args:
    chosen, rejected, weights: see `preference`.
    chosen_tokens: float[P], tokens of the chosen completions.
    rejected_tokens: float[P], tokens of the rejected completions.
    tokens_per_pair: float[] or float[P] of equal numbers: tokens of the NLL
      (prompts included if they are given) / pairs of the whole step's batch,
      so that microbatches add up; None is that of this call. See
      `preference.rpo_loss`.
    beta: weight of the odds ratio.
    prompt: float[P], summed log-probability of the prompt's tokens, all but
      the first.
    prompt_tokens: float[P], how many those are.

  Returns:
    The module's sums; metrics have `nll` and `log_odds_ratio`, and the rewards
    are beta · a. A completion of mean log-probability above -1e-7 counts as one
    of -1e-7 in the denominator of its odds.

  Raises:
    ValueError: only one of `prompt` and `prompt_tokens` is given.
  """
  if (prompt is None) != (prompt_tokens is None):
    raise ValueError('prompt and prompt_tokens go together; pass both or none')
  if prompt is None:
    prompt = prompt_tokens = jnp.zeros(jnp.shape(chosen))
  weights, l_w, l_l, n_w, n_l, l_p, n_p = prepare(
    weights,
    chosen=chosen,
    rejected=rejected,
    chosen_tokens=chosen_tokens,
    rejected_tokens=rejected_tokens,
    prompt=prompt,
    prompt_tokens=prompt_tokens,
  )
  nll = token_mean_nll(l_w + l_p, n_w + n_p, weights, tokens_per_pair)
  a_w, a_l = l_w / jnp.maximum(n_w, 1.0), l_l / jnp.maximum(n_l, 1.0)
  log_odds = a_w - a_l - (_log1mexp(a_w) - _log1mexp(a_l))
  losses = nll - beta * jax.nn.log_sigmoid(log_odds)
  return pair_sums(
    losses,
    weights,
    beta * a_w,
    beta * a_l,
    chosen_logprob=l_w,
    rejected_logprob=l_l,
    nll=nll,
    log_odds_ratio=log_odds,
  )


def _log1mexp(x):
  """log(1 - exp(x)) for x < 0, the better conditioned of two forms."""
  x = jnp.minimum(x, CERTAIN)
  far = jnp.log1p(-jnp.exp(x))
  return jnp.where(x < -jnp.log(2.0), far, jnp.log(-jnp.expm1(x)))
