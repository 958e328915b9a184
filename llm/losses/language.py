"""Language modelling: the loss of pretraining and of fine-tuning."""

import jax
import jax.numpy as jnp

from llm.losses import common


def cross_entropy_loss(
  logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  """Weighted sum of the negative log-likelihood of `targets`, in nats.

  loss_sum = - sum_i weights_i * log softmax(logits_i)[targets_i]

  Nothing is shifted here: `logits[:, t]` is judged against `targets[:, t]`
  (`next_token_targets` does the shift). A position of weight 0 does
  not count: its target may be any id of the vocabulary.

  Args:
    logits: float[..., V].
    targets: int[...], ids in [0, V).
    weights: float or bool[...], at least 0.

  Returns:
    loss_sum: float32[], in nats.
    weight_sum: float32[]; the mean loss is loss_sum / weight_sum.
    metrics: 'correct', float32[], the weight of the positions where the most
      probable token is the target.

  Raises:
    ValueError: the shapes do not agree.
  """
  if weights.shape != targets.shape:
    raise ValueError(
      f'weights has shape {weights.shape}, but targets {targets.shape}'
    )
  weights = weights.astype(jnp.float32)
  logprobs = common.token_logprobs(logits, targets)
  hits = jnp.argmax(logits, axis=-1) == targets
  metrics = {'correct': common.weighted_sum(hits, weights)}
  return -common.weighted_sum(logprobs, weights), jnp.sum(weights), metrics


def next_token_targets(
  tokens: jax.Array, loss_mask: jax.Array, segment_ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What each position has to predict, and whether it counts.

  Position t predicts token t + 1, if that one is under the loss mask and in
  the same document:

    tokens       5 6 7 | 8 9 | 0        targets  6 7 8 9 0 0
    segment_ids  1 1 1 | 2 2 | 0        weights  1 1 0 1 0 0
    loss_mask    1 1 1 | 1 1 | 0

  Args:
    tokens: int[B, T].
    loss_mask: bool or float[B, T], the weight of each token; 0 for those that
      are not to be predicted.
    segment_ids: int[B, T], one number per packed document, 0 for padding.

  Returns:
    targets int[B, T] and weights float32[B, T].
  """
  last = ((0, 0), (0, 1))
  targets = jnp.pad(tokens[:, 1:], last)
  same = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] != 0)
  weights = jnp.where(same, loss_mask[:, 1:].astype(jnp.float32), 0.0)
  return targets, jnp.pad(weights, last)
