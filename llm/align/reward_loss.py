"""From a batch of completions, or of their steps, to a reward model's loss."""

from typing import Any

import jax
import jax.numpy as jnp

from llm.align.checks import PROCESS
from llm.align.hidden import hidden_states
from llm.losses.reward import bradley_terry_loss, process_reward_loss
from llm.losses.sequences import completion_ends
from llm.rewards.model import head_scores
from llm.runs.train_model import TrainModel
from llm.train.step import LossFn


def make_reward_loss(
  train_model: TrainModel, loss: Any, training: bool
) -> LossFn:
  """The loss that `config.loss` names.

  Args:
    train_model: the model; what is trained is {'model': …, 'reward_head': …}.
    loss: `name`, and `center_coef` of 'bradley_terry'.
    training: with LoRA's dropout.

  Returns:
    A loss of batches of `make_source(group=2)` with `margins` float[B, S / 2],
    or, for 'process', of batches with `labels` float[B, T].
  """

  def loss_fn(params, frozen, batch, keys):
    variables = train_model.variables(
      params['model'], frozen, keys if training else None
    )
    hidden = hidden_states(train_model.model, variables, batch)
    head = params['reward_head']
    if loss.name == PROCESS:
      scores = head_scores(hidden, head)
      return process_reward_loss(scores, batch['labels'], batch['loss_mask'])
    rewards = completion_rewards(hidden, head, batch).reshape(-1, 2)
    there = (batch['examples'] >= 0).reshape(-1, 2)[:, 0]
    return bradley_terry_loss(
      rewards[:, 0],
      rewards[:, 1],
      there,
      margin=batch['margins'].reshape(-1),
      center_coef=loss.center_coef or 0.0,
    )

  return loss_fn


def completion_rewards(hidden: jax.Array, head: Any, batch: Any) -> jax.Array:
  """float32[B, S]: the score at the last token of each completion.

  What a template writes after a completion's end mark is not read.

  Args:
    hidden: float[B, T, D].
    head: {'kernel': [1, D]}.
    batch: `loss_mask`, `segment_ids` and `examples` of packed rows.
  """
  ends = completion_ends(
    batch['loss_mask'], batch['segment_ids'], batch['examples'].shape[1]
  )
  last = jnp.take_along_axis(hidden, ends[..., None], axis=1)
  return head_scores(last, head)
