"""KTO: completions that are rated one by one, good or bad."""

import jax
import jax.numpy as jnp

from llm.losses.pairs import Sums, prepare, weighted_sums


def kto_loss(
  logprobs: jax.Array,
  ref_logprobs: jax.Array,
  desirable: jax.Array,
  kl: jax.Array | float = 0.0,
  weights: jax.Array | None = None,
  *,
  beta: float = 0.1,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
) -> Sums:
  """w_d (1 - σ(beta (h - z))) if desirable, else w_u (1 - σ(beta (z - h))).

  Ethayarajh et al., 2402.01306, equation 8; h = logp - ref_logp and z =
  max(0, KL(policy, reference)), through which no gradient flows. A batch
  may hold good completions only, or bad ones only.

  Args:
    logprobs: float[P], summed log-probability of each completion.
    ref_logprobs: float[P], the reference's, without gradient.
    desirable: bool[P].
    kl: float[] or float[P], z from `kto_kl`; 0 leaves the KL out.
    weights: float or bool[P], as for pairs; one of weight 0 does not count.
    beta: strength of the pull to the reference.
    desirable_weight: w_d; n_d w_d should be 1 to 4/3 times n_u w_u.
    undesirable_weight: w_u.

  Returns:
    loss_sum: float32[]; divided by weight_sum it is the mean over completions.
    weight_sum: float32[], Σ weight; not Σ weight · w.
    metrics: float32[] sums: reward_accuracy (h is on its side of z),
      reward_margin (±beta (h - z), positive on the right side), desirable
      (how many), desirable_reward and undesirable_reward (sums of beta · h
      over the good and the bad completions), kl and logprob.

  Raises:
    ValueError: the shapes do not agree.
  """
  z = jnp.broadcast_to(jnp.asarray(kl, jnp.float32), jnp.shape(logprobs))
  weights, logp, ref, good, z = prepare(
    weights,
    logprobs=logprobs,
    ref_logprobs=jax.lax.stop_gradient(jnp.asarray(ref_logprobs)),
    desirable=desirable,
    kl=jax.lax.stop_gradient(z),
  )
  h = logp - ref
  margin = beta * (2.0 * good - 1.0) * (h - z)
  scale = jnp.where(good > 0, desirable_weight, undesirable_weight)
  losses = scale * jax.nn.sigmoid(-margin)
  return weighted_sums(
    losses,
    weights,
    reward_accuracy=(margin > 0).astype(jnp.float32),
    reward_margin=margin,
    desirable=good,
    desirable_reward=beta * h * good,
    undesirable_reward=beta * h * (1.0 - good),
    kl=z,
    logprob=logp,
  )


def kto_kl(
  logprobs: jax.Array,
  ref_logprobs: jax.Array,
  weights: jax.Array | None = None,
) -> jax.Array:
  """z = max(0, mean of logp - ref_logp), KTO's estimate of the KL.

  The completions are those of other prompts: row i has prompt i with the
  completion of row i + 1, the last one that of the first. A batch of one has no
  such row, and without any z is 0, not NaN.

  Args:
    logprobs: float[M], summed log-probability of each mismatched completion.
    ref_logprobs: float[M], the reference's.
    weights: float or bool[M]; a row of weight 0 does not count.

  Returns:
    float32[] in nats, without gradient.

  Raises:
    ValueError: the shapes do not agree.
  """
  weights, logp, ref = prepare(
    weights, logprobs=logprobs, ref_logprobs=ref_logprobs
  )
  total = jnp.sum(weights)
  mean = jnp.sum(weights * (logp - ref)) / jnp.where(total > 0, total, 1.0)
  return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))
