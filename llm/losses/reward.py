"""Losses of reward models: outcomes by comparison, processes by step."""

import jax
import jax.numpy as jnp

from llm.losses import language
from llm.losses.pairs import Sums, pair_sums, prepare, weighted_sums


def bradley_terry_loss(
  chosen_rewards: jax.Array,
  rejected_rewards: jax.Array,
  weights: jax.Array | None = None,
  *,
  margin: jax.Array | None = None,
  center_coef: float = 0.0,
) -> Sums:
  """-log σ(r_w - r_l - margin) + center_coef (r_w + r_l)².

  Bradley and Terry's model of comparisons (2203.02155, equation 1), with a
  margin for how much better the chosen completion is (Llama 2, 2307.09288) and
  a pull of the rewards towards a mean of 0 (2312.09244; 0.01 there).

  Args:
    chosen_rewards: float[P], reward of the better completion of each pair.
    rejected_rewards: float[P].
    weights: float or bool[P]; a pair of weight 0 does not count. None: 1 each.
    margin: float[P], or None for 0.
    center_coef: 0 is no pull.

  Returns:
    loss_sum: float32[]; divided by weight_sum it is the mean over pairs.
    weight_sum: float32[], Σ weight.
    metrics: float32[] sums over pairs: reward_accuracy, reward_margin,
      chosen_reward, rejected_reward.

  Raises:
    ValueError: the shapes do not agree.
  """
  if margin is None:
    margin = jnp.zeros(jnp.shape(chosen_rewards))
  weights, r_w, r_l, margin = prepare(
    weights,
    chosen_rewards=chosen_rewards,
    rejected_rewards=rejected_rewards,
    margin=margin,
  )
  losses = -jax.nn.log_sigmoid(r_w - r_l - margin)
  losses = losses + center_coef * jnp.square(r_w + r_l)
  return pair_sums(losses, weights, r_w, r_l)


def process_reward_loss(
  scores: jax.Array, labels: jax.Array, weights: jax.Array
) -> Sums:
  """Binary cross entropy of each step's score: is the step right?

  -y log σ(s) - (1 - y) log σ(-s). It is two-class token classification
  (`token_classification_loss`) of the logits (0, s), for a scalar head; labels
  may be soft (Math-Shepherd, 2312.08935; Lightman et al., 2305.20050).

  Args:
    scores: float[...], logit that the step which ends at this token is right.
    labels: float or int[...], 1 right, 0 wrong, or a probability between.
    weights: float or bool[...], above 0 at the tokens that end a step.

  Returns:
    loss_sum: float32[]; divided by weight_sum it is the mean over steps.
    weight_sum: float32[].
    metrics: 'accuracy' (the score's sign is that of label - 1/2) and 'label'.

  Raises:
    ValueError: the shapes do not agree.
  """
  weights, s, y = prepare(weights, scores=scores, labels=labels)
  losses = -y * jax.nn.log_sigmoid(s) - (1.0 - y) * jax.nn.log_sigmoid(-s)
  hits = ((s > 0) == (y > 0.5)).astype(jnp.float32)
  return weighted_sums(losses, weights, accuracy=hits, label=y)


def token_classification_loss(
  logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> Sums:
  """Cross entropy of the class at each labelled token; -100 is no label.

  A process reward model has two classes and its labels at the separators
  between steps.

  Args:
    logits: float[..., C].
    labels: int[...], in [0, C), or -100.
    weights: float or bool[...], or None for 1 at each label.

  Returns:
    loss_sum: float32[]; divided by weight_sum it is the mean over labels.
    weight_sum: float32[].
    metrics: 'accuracy', float32[].

  Raises:
    ValueError: the shapes do not agree.
  """
  labelled = labels != -100
  if weights is None:
    weights = labelled
  weights = jnp.where(labelled, weights, 0).astype(jnp.float32)
  # An infinite logit of a dropped token would be a NaN in the gradient.
  logits = jnp.where(weights[..., None] == 0, 0, logits)
  loss_sum, weight_sum, sums = language.cross_entropy_loss(
    logits, jnp.where(labelled, labels, 0), weights
  )
  return loss_sum, weight_sum, {'accuracy': sums['correct']}


def at_last_token(values: jax.Array, mask: jax.Array) -> jax.Array:
  """The value at each row's last position under the mask.

  Args:
    values: float[B, T], the output of a scalar head at each token.
    mask: bool or float[B, T], True on prompt and completion with its end mark,
      not on padding, on whichever side that is.

  Returns:
    float[B]; 0 for a row without any token.
  """
  places = jnp.arange(1, mask.shape[1] + 1)[None]
  last = jnp.max(jnp.where(mask != 0, places, 0), axis=1)
  found = jnp.take_along_axis(values, jnp.maximum(last - 1, 0)[:, None], axis=1)
  return jnp.where(last > 0, found[:, 0], 0)
