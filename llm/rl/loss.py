"""From a rollout's columns to the loss of one minibatch of completions."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from llm.losses import policy
from llm.losses.chunked import chunked_logprobs, chunked_logprobs_and_entropy
from llm.losses.pairs import Sums
from llm.models.cache import SharedCache, init_cache
from llm.models.transformer import output_weight
from llm.rl.algorithms import Algorithm
from llm.rl.trained import policy_of
from llm.runs.train_model import TrainModel
from llm.train.step import LossFn


@dataclasses.dataclass(frozen=True)
class Minibatch:
  """What the losses read of B completions, float32[B, T] but where noted.

  Attributes:
    mask: bool[B, T], the tokens that were sampled.
    logprobs, entropy: of the policy in training.
    old_logprobs: of the policy that sampled.
    advantages: float32[B], or float32[B, T] for PPO.
    row_weights: float32[B].
    group_lengths: float32[B], `advantages.group_lengths`.
    ref_logprobs: of the reference; None without a KL in the loss.
    values, old_values, returns: of the value head; None but for PPO.
  """

  mask: jax.Array
  logprobs: jax.Array
  entropy: jax.Array
  old_logprobs: jax.Array
  advantages: jax.Array
  row_weights: jax.Array
  group_lengths: jax.Array
  ref_logprobs: jax.Array | None
  values: jax.Array | None
  old_values: jax.Array | None
  returns: jax.Array | None


def make_rl_loss(
  train_model: TrainModel,
  algorithm: Algorithm,
  rollout: Any,
  rows_of_a_prompt: int = 1,
) -> LossFn:
  """The loss of one minibatch of completions, `rollout.rows_after_prompts`.

  Args:
    train_model: the model.
    algorithm: of `read_algorithm`.
    rollout: `config.rollout`.
    rows_of_a_prompt: see the function of that name.

  Returns:
    A loss that reads of the batch, besides its tokens, the columns that
    `Minibatch` has of a rollout.
  """
  function = _LOSSES.get(algorithm.name, _grpo)

  def loss_fn(params, frozen, batch, keys):
    del keys  # no random numbers
    variables = train_model.variables(policy_of(params), frozen)
    hidden = _hidden(train_model, variables, batch, rows_of_a_prompt)
    logprobs, entropy = chunked_logprobs_and_entropy(
      hidden,
      output_weight(variables['params'], train_model.model.config),
      batch['targets'],
      counts=batch['mask'],
      cap=train_model.model.config.final_soft_cap,
      temperature=rollout.temperature,
    )
    minibatch = Minibatch(
      mask=batch['mask'],
      logprobs=logprobs,
      entropy=entropy,
      old_logprobs=batch['old_logprobs'],
      advantages=batch['advantages'],
      row_weights=batch['row_weights'],
      group_lengths=batch['group_lengths'],
      ref_logprobs=batch.get('ref_logprobs'),
      values=_values(hidden, params.get('value_head')),
      old_values=batch.get('old_values'),
      returns=batch.get('returns'),
    )
    return function(minibatch, algorithm, rollout.max_new_tokens)

  return loss_fn


def _grpo(batch: Minibatch, algorithm: Algorithm, max_length: int) -> Sums:
  return policy.grpo_loss(
    batch.logprobs,
    batch.old_logprobs,
    batch.advantages,
    batch.mask,
    batch.ref_logprobs,
    row_weights=batch.row_weights,
    group_lengths=batch.group_lengths,
    entropy=batch.entropy,
    ratio=algorithm.ratio,
    max_length=max_length,
    **algorithm.options,
  )


def _rloo(batch: Minibatch, algorithm: Algorithm, max_length: int) -> Sums:
  del max_length
  options = algorithm.options
  return policy.rloo_loss(
    batch.logprobs,
    batch.old_logprobs,
    batch.advantages,
    batch.mask,
    row_weights=batch.row_weights,
    entropy=batch.entropy,
    clip_low=options['clip_low'],
    clip_high=options['clip_high'],
  )


def _reinforce(batch: Minibatch, algorithm: Algorithm, max_length: int) -> Sums:
  return policy.reinforce_loss(
    batch.logprobs,
    batch.advantages,
    batch.mask,
    row_weights=batch.row_weights,
    reduction=algorithm.options['reduction'],
    max_length=max_length,
  )


def _ppo(batch: Minibatch, algorithm: Algorithm, max_length: int) -> Sums:
  """Policy and value loss: means over the same tokens, so they add up."""
  del max_length
  options = algorithm.options
  mask = batch.mask * batch.row_weights[:, None]
  loss_sum, weight_sum, metrics = policy.ppo_policy_loss(
    batch.logprobs,
    batch.old_logprobs,
    batch.advantages,
    mask,
    entropy=batch.entropy,
    clip_low=options['clip_low'],
    clip_high=options['clip_high'],
    dual_clip=options['dual_clip'],
    entropy_coef=options['entropy_coef'],
  )
  value_sum, _, more = policy.ppo_value_loss(
    batch.values,
    batch.old_values,
    batch.returns,
    mask,
    clip=options['value_clip'],
  )
  metrics |= more | {'policy_loss': loss_sum, 'value_loss': value_sum}
  return loss_sum + options['value_coef'] * value_sum, weight_sum, metrics


# GRPO and its variants share one.
_LOSSES = {'ppo': _ppo, 'rloo': _rloo, 'reinforce': _reinforce}


def completion_scores(
  train_model: TrainModel,
  variables: Any,
  batch: Any,
  temperature: float,
  rows_of_a_prompt: int,
  head: Any = None,
) -> dict[str, jax.Array]:
  """The log-probability of each token of the completions, and values.

  Args:
    train_model: the model.
    variables: of `model.apply`.
    batch: arrays of `rollout.rows_after_prompts`.
    temperature: of the log-probabilities.
    rows_of_a_prompt: see there.
    head: of the values, or None.

  Returns:
    `logprobs` float32[B, T], of the targets; with a value head also `values`
    float32[B, T], before the targets are read.
  """
  hidden = _hidden(train_model, variables, batch, rows_of_a_prompt)
  logprobs = chunked_logprobs(
    hidden,
    output_weight(variables['params'], train_model.model.config),
    batch['targets'],
    counts=batch['mask'],
    cap=train_model.model.config.final_soft_cap,
    temperature=temperature,
  )
  if head is None:
    return {'logprobs': logprobs}
  return {'logprobs': logprobs, 'values': _values(hidden, head)}


def rows_of_a_prompt(
  config: Any, train_model: TrainModel, rows: int, microbatches: int = 1
) -> int:
  """How many consecutive rows share a prompt, which is read once for them all.

  A group, or the part of it that a microbatch has: the i-th of k microbatches
  has the rows i, i + k, …, so that G / k consecutive rows are of one group
  if k divides G. It is 1 where a device would have only some of those rows, and
  where rotary frequencies depend on the length of a row (dynamic and longrope),
  because a prompt then has other keys in each of its rows.
  """
  size = config.rollout.group_size
  if train_model.model.config.rope.type in ('dynamic', 'longrope'):
    return 1
  share = size // microbatches if size % microbatches == 0 else 1
  of_device = rows // microbatches // train_model.mesh.size
  return share if of_device % share == 0 else 1


def _hidden(train_model, variables, batch, rows_of_a_prompt):
  """float[B, T, D], of completions that attend to the keys of their prompts."""
  model, first = train_model.model, slice(None, None, rows_of_a_prompt)
  read = functools.partial(model.apply, variables, method='trunk')
  # Of the whole row, for rotary frequencies that depend on it.
  length = batch['prompt_lengths'] + batch['mask'].sum(axis=1) + 1
  tokens = batch['prompt_tokens'][first]
  cache = init_cache(
    model.config, *tokens.shape, model.dtype, model.scan_layers
  )
  _, cache = read(
    tokens,
    cache=cache,
    lengths=batch['prompt_lengths'][first],
    rope_length=length[first],
    attend_length=0,
  )
  hidden, _ = read(
    batch['tokens'],
    positions=batch['positions'],
    cache=SharedCache(cache.layers, cache.length),
    rope_length=length,
  )
  return hidden


def _values(hidden, head):
  """float32[B, T], or None without a head."""
  if head is None:
    return None
  hidden = hidden.astype(jnp.float32)
  return hidden @ head['kernel'] + head['bias']
