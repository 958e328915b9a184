"""What losses share: log-probabilities of given tokens and weighted sums."""

import jax
import jax.numpy as jnp


def token_logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """Natural-log probability of each of `tokens` under `logits`.

  log p = logits[token] - logsumexp(logits), in float32 whatever the logits'
  dtype; the normalised `[..., V]` array is never stored.

  Args:
    logits: float[..., V].
    tokens: int[...], ids in [0, V).

  Returns:
    float32[...].
  """
  _check_shapes('tokens', tokens, logits)
  logits = logits.astype(jnp.float32)
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


def weighted_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
  """Sum of `values * weights`; a weight of 0 drops an infinite value too."""
  return jnp.sum(jnp.where(weights == 0, 0, values * weights))


def _check_shapes(name: str, array: jax.Array, logits: jax.Array) -> None:
  if array.shape != logits.shape[:-1]:
    raise ValueError(
      f'{name} has shape {array.shape}, but logits {logits.shape} need '
      f'{logits.shape[:-1]}'
    )
