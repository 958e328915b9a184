"""What losses of pairs and of rated completions share."""

import jax
import jax.numpy as jnp

Sums = tuple[jax.Array, jax.Array, dict[str, jax.Array]]


def prepare(
  weights: jax.Array | None, **arrays: jax.Array
) -> tuple[jax.Array, ...]:
  """Weights and arrays as float32; rows of weight 0 are zeros.

  An infinite or undefined number in a padding row would otherwise come back
  as a NaN in the gradient, even where its loss is not taken.

  Args:
    weights: float or bool[P]; None is 1 for each row.
    **arrays: float[P] each, by the name that an error gives.

  Returns:
    The weights and then the arrays in order, all float32[P].

  Raises:
    ValueError: the shapes do not agree.
  """
  (first, reference), *_ = arrays.items()
  shape = jnp.shape(reference)
  named = arrays if weights is None else arrays | {'weights': weights}
  for name, array in named.items():
    if jnp.shape(array) != shape:
      raise ValueError(
        f'{name} has shape {jnp.shape(array)}, but {first} {shape}'
      )
  if weights is None:
    weights = jnp.ones(shape, jnp.float32)
  weights = jnp.asarray(weights, jnp.float32)
  kept = (
    jnp.where(weights == 0, 0.0, jnp.asarray(array, jnp.float32))
    for array in arrays.values()
  )
  return weights, *kept


def pair_sums(
  losses: jax.Array,
  weights: jax.Array,
  chosen_rewards: jax.Array,
  rejected_rewards: jax.Array,
  **more: jax.Array,
) -> Sums:
  """Sums over pairs of the loss and of the usual metrics.

  Args:
    losses: float32[P].
    weights: float32[P].
    chosen_rewards: float32[P], implicit (or learned) reward of the better
      completion; equal rewards are no hit.
    rejected_rewards: float32[P].
    **more: float32[P], further metrics.
  """
  metrics = {
    'reward_accuracy': (chosen_rewards > rejected_rewards).astype(jnp.float32),
    'reward_margin': chosen_rewards - rejected_rewards,
    'chosen_reward': chosen_rewards,
    'rejected_reward': rejected_rewards,
  }
  return weighted_sums(losses, weights, **metrics, **more)


def weighted_sums(
  losses: jax.Array, weights: jax.Array, **metrics: jax.Array
) -> Sums:
  """(Σ weight · loss, Σ weight, {name: Σ weight · metric})."""
  sums = {
    name: jnp.sum(weights * jax.lax.stop_gradient(value))
    for name, value in metrics.items()
  }
  return jnp.sum(weights * losses), jnp.sum(weights), sums


def smoothed_logistic(logits: jax.Array, smoothing: float) -> jax.Array:
  """-(1 - s) log σ(x) - s log σ(-x), elementwise."""
  losses = -(1.0 - smoothing) * jax.nn.log_sigmoid(logits)
  if smoothing:
    losses = losses - smoothing * jax.nn.log_sigmoid(-logits)
  return losses


def token_mean_nll(
  logprobs: jax.Array,
  tokens: jax.Array,
  weights: jax.Array,
  tokens_per_pair: jax.Array | float | None,
) -> jax.Array:
  """Each pair's part of a mean over all tokens of the batch.

  Σ over pairs, divided by the batch's pairs, is -Σ logprobs / Σ tokens: each
  pair is divided by the tokens that a pair of the batch has on average. That
  number is the batch's; a microbatch gets it as an argument.

  Args:
    logprobs: float32[P], summed over `tokens`.
    tokens: float32[P].
    weights: float32[P].
    tokens_per_pair: float[] or float[P] of equal numbers, Σ weight · tokens /
      Σ weight over all microbatches; None takes it of these pairs.

  Returns:
    float32[P].
  """
  if tokens_per_pair is None:
    total = jnp.maximum(jnp.sum(weights), 1e-30)
    tokens_per_pair = jnp.sum(weights * tokens) / total
  scale = jnp.asarray(tokens_per_pair, jnp.float32)
  return jnp.where(scale > 0, -logprobs / jnp.where(scale > 0, scale, 1.0), 0.0)
