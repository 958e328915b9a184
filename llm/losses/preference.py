"""Losses of preference pairs: DPO and its variants.

Here are the ones that compare with a reference model; those without one are in
`reference_free.py` and KTO, which needs no pairs, in `kto.py`.

Throughout, `chosen` and `rejected` are float[P]: natural-log probabilities of
whole completions, summed over their tokens (`sequences.sequence_logprobs`), of
the better and the worse completion of each pair; `ref_chosen` and
`ref_rejected` are those of the frozen reference, through which no gradient
flows. With h = logp - ref_logp, a completion's implicit reward is beta · h. P
may be any shape, so that the pairs of packed rows come as [B, S].

`weights` float or bool[P] counts pairs (None: 1 each); one of weight 0 does
not count, whatever numbers it holds. Each loss returns

  loss_sum: float32[], Σ weight · loss; divided by weight_sum it is the mean
    over pairs that the papers write.
  weight_sum: float32[], Σ weight.
  metrics: float32[] sums over pairs: reward_accuracy (the chosen completion's
    implicit reward is the larger), reward_margin, chosen_reward,
    rejected_reward, chosen_logprob and rejected_logprob.

and raises ValueError where shapes do not agree. LD-DPO (2409.06411) is any of
them on log-probabilities whose tails are weighted: `sequences.tail_weights`.
"""

import jax
import jax.numpy as jnp

from llm.losses.kto import kto_kl, kto_loss
from llm.losses.options import check_options
from llm.losses.pairs import (
  Sums,
  pair_sums,
  prepare,
  smoothed_logistic,
  token_mean_nll,
)
from llm.losses.reference_free import cpo_loss, orpo_loss, simpo_loss

__all__ = [
  'cdpo_loss',
  'cpo_loss',
  'dpo_loss',
  'dpo_norm_loss',
  'hinge_loss',
  'ipo_loss',
  'kto_kl',
  'kto_loss',
  'orpo_loss',
  'robust_dpo_loss',
  'rpo_loss',
  'simpo_loss',
]


def dpo_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  ref_chosen: jax.Array,
  ref_rejected: jax.Array,
  weights: jax.Array | None = None,
  *,
  beta: float = 0.1,
) -> Sums:
  """-log σ(beta (h_w - h_l)); ln 2 where policy and reference are equal.

  Rafailov et al., 2305.18290, equation 7. Shapes, sums and errors are the
  module's, here and below.
  """
  return cdpo_loss(
    chosen, rejected, ref_chosen, ref_rejected, weights, beta=beta
  )


def cdpo_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  ref_chosen: jax.Array,
  ref_rejected: jax.Array,
  weights: jax.Array | None = None,
  *,
  beta: float = 0.1,
  label_smoothing: float = 0.0,
) -> Sums:
  """-(1 - e) log σ(beta d) - e log σ(-beta d), d = h_w - h_l.

  Its minimum is at d = logit(1 - e) / beta (Mitchell, "A note on DPO with
  noisy preferences", 2023).

  Args:
    chosen, rejected, ref_chosen, ref_rejected, weights: see the module.
    beta: strength of the pull to the reference.
    label_smoothing: e, the share of wrong labels; at least 0, below 0.5.
  """
  check_options(label_smoothing=label_smoothing)
  weights, *logprobs = _prepare(
    chosen, rejected, ref_chosen, ref_rejected, weights
  )
  h_w, h_l = _log_ratios(*logprobs)
  losses = smoothed_logistic(beta * (h_w - h_l), label_smoothing)
  return _sums(losses, weights, logprobs, beta * h_w, beta * h_l)


def robust_dpo_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  ref_chosen: jax.Array,
  ref_rejected: jax.Array,
  weights: jax.Array | None = None,
  *,
  beta: float = 0.1,
  label_smoothing: float = 0.1,
) -> Sums:
  """[-(1 - e) log σ(beta d) + e log σ(-beta d)] / (1 - 2e), d = h_w - h_l.

  Its mean over labels that are flipped with probability e is DPO's on the true
  ones (Chowdhury et al., 2403.00409).

  Args:
    chosen, rejected, ref_chosen, ref_rejected, weights: see the module.
    beta: strength of the pull to the reference.
    label_smoothing: e, the share of wrong labels; at least 0, below 0.5.
  """
  check_options(label_smoothing=label_smoothing)
  weights, *logprobs = _prepare(
    chosen, rejected, ref_chosen, ref_rejected, weights
  )
  h_w, h_l = _log_ratios(*logprobs)
  logits = beta * (h_w - h_l)
  losses = (
    -(1.0 - label_smoothing) * jax.nn.log_sigmoid(logits)
    + label_smoothing * jax.nn.log_sigmoid(-logits)
  ) / (1.0 - 2.0 * label_smoothing)
  return _sums(losses, weights, logprobs, beta * h_w, beta * h_l)


def hinge_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  ref_chosen: jax.Array,
  ref_rejected: jax.Array,
  weights: jax.Array | None = None,
  *,
  beta: float = 0.1,
) -> Sums:
  """max(0, 1 - beta (h_w - h_l)): SLiC's hinge (2305.10425) on DPO's logits."""
  weights, *logprobs = _prepare(
    chosen, rejected, ref_chosen, ref_rejected, weights
  )
  h_w, h_l = _log_ratios(*logprobs)
  losses = jax.nn.relu(1.0 - beta * (h_w - h_l))
  return _sums(losses, weights, logprobs, beta * h_w, beta * h_l)


def ipo_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  ref_chosen: jax.Array,
  ref_rejected: jax.Array,
  chosen_tokens: jax.Array | None = None,
  rejected_tokens: jax.Array | None = None,
  weights: jax.Array | None = None,
  *,
  beta: float = 0.1,
  logprobs: str = 'mean',
) -> Sums:
  """(d - 1 / (2 beta))², the target margin being 1 / (2 beta).

  Azar et al., 2310.12036, equation 17, where beta is called tau. Libraries
  read d in two ways, named by `logprobs`: 'mean' is h_w / n_w - h_l / n_l
  (TRL, on the word of the paper's authors), 'sum' is h_w - h_l (as the
  paper writes it; DPO's repository, OpenRLHF).

  Args:
    chosen, rejected, ref_chosen, ref_rejected, weights: see the module.
    chosen_tokens: float[P], tokens of the chosen completions; for 'mean'.
    rejected_tokens: float[P], tokens of the rejected completions; for 'mean'.
    beta: tau.
    logprobs: 'mean' or 'sum'.

  Raises:
    ValueError: another `logprobs`, or 'mean' without the numbers of tokens.
  """
  check_options(logprobs=logprobs)
  if logprobs == 'sum':
    chosen_tokens = rejected_tokens = jnp.ones(jnp.shape(chosen))
  if chosen_tokens is None or rejected_tokens is None:
    raise ValueError(
      "logprobs='mean' needs chosen_tokens and rejected_tokens; pass both, or "
      "logprobs='sum'"
    )
  weights, *sums = _prepare(
    chosen,
    rejected,
    ref_chosen,
    ref_rejected,
    weights,
    chosen_tokens=chosen_tokens,
    rejected_tokens=rejected_tokens,
  )
  h_w, h_l = _mean_log_ratios(*sums)
  losses = jnp.square(h_w - h_l - 1.0 / (2.0 * beta))
  return _sums(losses, weights, sums, beta * h_w, beta * h_l)


def dpo_norm_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  ref_chosen: jax.Array,
  ref_rejected: jax.Array,
  chosen_tokens: jax.Array,
  rejected_tokens: jax.Array,
  weights: jax.Array | None = None,
  *,
  beta: float = 5.0,
) -> Sums:
  """-log σ(beta (h_w / n_w - h_l / n_l)): DPO, length-normalised.

  Tülu 3 (2411.15124, section 5); the default beta is theirs. The rewards of
  the metrics are per token too.

  Args:
    chosen, rejected, ref_chosen, ref_rejected, weights: see the module.
    chosen_tokens: float[P], n_w, tokens of the chosen completions.
    rejected_tokens: float[P], n_l.
    beta: strength of the pull to the reference.
  """
  weights, *sums = _prepare(
    chosen,
    rejected,
    ref_chosen,
    ref_rejected,
    weights,
    chosen_tokens=chosen_tokens,
    rejected_tokens=rejected_tokens,
  )
  h_w, h_l = _mean_log_ratios(*sums)
  losses = -jax.nn.log_sigmoid(beta * (h_w - h_l))
  return _sums(losses, weights, sums, beta * h_w, beta * h_l)


def rpo_loss(
  chosen: jax.Array,
  rejected: jax.Array,
  ref_chosen: jax.Array,
  ref_rejected: jax.Array,
  chosen_tokens: jax.Array,
  weights: jax.Array | None = None,
  tokens_per_pair: jax.Array | float | None = None,
  *,
  beta: float = 0.1,
  alpha: float = 1.0,
  nll: str = 'token',
) -> Sums:
  """DPO + alpha · NLL of the chosen completions, which keeps them likely.

  Pang et al., 2404.19733, equation 1. `nll` names the mean of the second part:
  'token' is -Σ logp / Σ n_w over the batch (TRL's "sft", OpenRLHF), 'sequence'
  the mean over pairs of -logp / n_w.

  Args:
    chosen, rejected, ref_chosen, ref_rejected, weights: see the module.
    chosen_tokens: float[P], n_w, tokens of the chosen completions.
    tokens_per_pair: float[] or float[P] of equal numbers: Σ n_w / pairs of the
      whole step's batch. Read by 'token' only, whose mean over tokens a
      microbatch cannot know; a column of the batch keeps any split exact. None
      is the mean of the pairs in this call.
    beta: strength of the pull to the reference.
    alpha: weight of the NLL.
    nll: 'token' or 'sequence'.

  Returns:
    The module's sums; metrics have `nll`, which is to be divided by
    weight_sum like the rest.

  Raises:
    ValueError: another `nll`.
  """
  check_options(nll=nll)
  weights, *sums, n_w = _prepare(
    chosen, rejected, ref_chosen, ref_rejected, weights, n_w=chosen_tokens
  )
  h_w, h_l = _log_ratios(*sums)
  if nll == 'token':
    each = token_mean_nll(sums[0], n_w, weights, tokens_per_pair)
  else:
    each = -sums[0] / jnp.maximum(n_w, 1.0)
  losses = -jax.nn.log_sigmoid(beta * (h_w - h_l)) + alpha * each
  return _sums(losses, weights, sums, beta * h_w, beta * h_l, nll=each)


def _prepare(chosen, rejected, ref_chosen, ref_rejected, weights, **tokens):
  """(weights, the four log-probabilities, tokens), the references fixed."""
  return prepare(
    weights,
    chosen=chosen,
    rejected=rejected,
    ref_chosen=jax.lax.stop_gradient(jnp.asarray(ref_chosen)),
    ref_rejected=jax.lax.stop_gradient(jnp.asarray(ref_rejected)),
    **tokens,
  )


def _log_ratios(chosen, rejected, ref_chosen, ref_rejected):
  """h of the chosen and of the rejected completions."""
  return chosen - ref_chosen, rejected - ref_rejected


def _mean_log_ratios(chosen, rejected, ref_chosen, ref_rejected, n_w, n_l):
  """h / n of the chosen and of the rejected completions."""
  h_w, h_l = _log_ratios(chosen, rejected, ref_chosen, ref_rejected)
  return h_w / jnp.maximum(n_w, 1.0), h_l / jnp.maximum(n_l, 1.0)


def _sums(losses, weights, logprobs, chosen_rewards, rejected_rewards, **more):
  return pair_sums(
    losses,
    weights,
    chosen_rewards,
    rejected_rewards,
    chosen_logprob=logprobs[0],
    rejected_logprob=logprobs[1],
    **more,
  )
