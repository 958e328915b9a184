"""From a rollout's columns to the loss of one minibatch of answers."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.losses import policy
from llm.losses.chunked import chunked_logprobs, chunked_logprobs_and_entropy
from llm.models.cache import SharedCache, init_cache
from llm.models.transformer import output_weight
from llm.rl.algorithms import ALGORITHMS, settings
from llm.runs.train_model import TrainModel
from llm.train.step import LossFn


def completion_scores(
  train_model: TrainModel,
  variables: Any,
  batch: Any,
  temperature: float,
  rows_of_a_prompt: int,
  head: Any = None,
) -> dict[str, jax.Array]:
  """What the model says of each token of the answers.

  Args:
    train_model: the model.
    variables: of `model.apply`.
    batch: arrays of `rollout.rows_after_prompts`.
    temperature: of the log-probabilities.
    rows_of_a_prompt: see there.
    head: of the values, or None.

  Returns:
    `logprobs` float32[B, T], of the targets; with a value head also `values`
    float32[B, T], before they are read.
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
  """How many rows after each other share a prompt that is read once for them.

  A group, or what a microbatch has of it: the i-th of k has the rows i, i + k,
  …, of which G / k after each other are of a group if k divides G. 1 where a
  device would have a part of that, and where rotary frequencies follow the
  length of a row (dynamic and longrope): then the rows of a prompt differ in
  what they see of it.
  """
  size = config.rollout.group_size
  if train_model.model.config.rope.type in ('dynamic', 'longrope'):
    return 1
  share = size // microbatches if size % microbatches == 0 else 1
  of_device = rows // microbatches // train_model.mesh.size
  return share if of_device % share == 0 else 1


def make_rl_loss(
  train_model: TrainModel, loss: Any, rollout: Any, rows_of_a_prompt: int = 1
) -> LossFn:
  """The loss of one minibatch of answers, `rollout.rows_after_prompts`.

  Reads of the batch, besides its tokens: `old_logprobs` float[B, T],
  `advantages` float[B] or [B, T], `row_weights` float[B], `ref_logprobs`
  float[B, T] where the loss has a KL, `group_lengths` float[B], and for PPO
  `old_values` and `returns` float[B, T].
  """
  chosen = settings(loss)
  function = _ppo if loss.name == 'ppo' else _completions_loss(loss.name)

  def loss_fn(params, frozen, batch, keys):
    del keys  # nothing is drawn
    tree = params['policy'] if loss.name == 'ppo' else params
    variables = train_model.variables(tree, frozen)
    hidden = _hidden(train_model, variables, batch, rows_of_a_prompt)
    mask = batch['mask']
    logprobs, entropy = chunked_logprobs_and_entropy(
      hidden,
      output_weight(variables['params'], train_model.model.config),
      batch['targets'],
      counts=mask,
      cap=train_model.model.config.final_soft_cap,
      temperature=rollout.temperature,
    )
    values = None
    if loss.name == 'ppo':
      values = _values(hidden, params['value_head'])
    return function(
      batch, logprobs, entropy, mask, values, chosen, rollout.max_new_tokens
    )

  return loss_fn


def _completions_loss(name: str) -> Callable:
  grpo = functools.partial(_grpo, ALGORITHMS[name].ratio)
  return {'rloo': _rloo, 'reinforce': _reinforce}.get(name, grpo)


def _grpo(ratio, batch, logprobs, entropy, mask, values, chosen, max_length):
  del values
  return policy.grpo_loss(
    logprobs,
    batch['old_logprobs'],
    batch['advantages'],
    mask,
    batch.get('ref_logprobs'),
    row_weights=batch['row_weights'],
    group_lengths=batch['group_lengths'],
    entropy=entropy,
    ratio=ratio,
    max_length=max_length,
    **chosen,
  )


def _rloo(batch, logprobs, entropy, mask, values, chosen, max_length):
  del values, max_length
  return policy.rloo_loss(
    logprobs,
    batch['old_logprobs'],
    batch['advantages'],
    mask,
    row_weights=batch['row_weights'],
    entropy=entropy,
    clip_low=chosen['clip_low'],
    clip_high=chosen['clip_high'],
  )


def _reinforce(batch, logprobs, entropy, mask, values, chosen, max_length):
  del entropy, values
  return policy.reinforce_loss(
    logprobs,
    batch['advantages'],
    mask,
    row_weights=batch['row_weights'],
    reduction=chosen['reduction'],
    max_length=max_length,
  )


def _ppo(batch, logprobs, entropy, mask, values, chosen, max_length):
  """Policy and value loss: means over the same tokens, so they add up."""
  del max_length
  mask = mask * batch['row_weights'][:, None]
  loss_sum, weight_sum, metrics = policy.ppo_policy_loss(
    logprobs,
    batch['old_logprobs'],
    batch['advantages'],
    mask,
    entropy=entropy,
    clip_low=chosen['clip_low'],
    clip_high=chosen['clip_high'],
    dual_clip=chosen['dual_clip'],
    entropy_coef=chosen['entropy_coef'],
  )
  value_sum, _, more = policy.ppo_value_loss(
    values,
    batch['old_values'],
    batch['returns'],
    mask,
    clip=chosen['value_clip'],
  )
  metrics |= more | {'policy_loss': loss_sum, 'value_loss': value_sum}
  return loss_sum + chosen['value_coef'] * value_sum, weight_sum, metrics


def advantages(
  name: str,
  chosen: dict[str, Any],
  batch: dict[str, np.ndarray],
  rewards: np.ndarray,
  group_size: int,
  kl_coef: float,
) -> dict[str, np.ndarray]:
  """The columns of a whole rollout that follow from its rewards.

  Args:
    name: of the algorithm.
    chosen: its settings.
    batch: arrays of `rollout.rows_after_prompts`, with `ref_logprobs` where
      there is a reference, and `old_values` for PPO.
    rewards: float[B], groups after each other; NaN is not rated: such an
      answer has row weight 0.
    group_size: G.
    kl_coef: of rewards that have the KL taken off (RLOO, PPO).

  Returns:
    `advantages`, `row_weights`, `group_lengths` and, for PPO, `returns`.
  """
  scale = ALGORITHMS[name].scale
  old = batch['old_logprobs']
  columns = _columns(
    np.asarray(rewards, np.float32),
    batch['mask'],
    old,
    batch.get('ref_logprobs', old),
    batch.get('old_values', old),
    np.float32(kl_coef),
    scale=scale,
    group_size=group_size,
    gamma=chosen.get('gamma'),
    lam=chosen.get('lam'),
    groups_alike=chosen.get('reduction') == 'group',
  )
  if scale != 'gae':
    columns.pop('returns')
  return {k: np.asarray(v) for k, v in columns.items()}


@functools.partial(
  jax.jit,
  static_argnames=('scale', 'group_size', 'gamma', 'lam', 'groups_alike'),
)
def _columns(
  rewards,
  mask,
  old,
  ref,
  values,
  kl_coef,
  *,
  scale,
  group_size,
  gamma,
  lam,
  groups_alike,
):
  rated = jnp.isfinite(rewards)
  mask = mask & rated[:, None]
  returns = None
  if scale == 'gae':
    shaped, taken = policy.token_rewards(
      jnp.nan_to_num(rewards), old, ref, mask, kl_coef=kl_coef
    )
    gains, returns = policy.gae(shaped, values, taken, gamma=gamma, lam=lam)
    advantages = policy.whiten(gains, taken)
  elif scale == 'rloo':
    rewards = policy.sequence_rewards(rewards, old, ref, mask, kl_coef=kl_coef)
    advantages = policy.rloo_advantages(rewards, group_size)
  else:
    advantages = policy.group_advantages(rewards, group_size, scale=scale)
  weights = rated.astype(jnp.float32)
  if groups_alike:
    weights = policy.group_weights(rated, group_size)
  return {
    'row_weights': weights,
    'group_lengths': policy.group_lengths(mask.sum(axis=1), group_size),
    'advantages': advantages,
    'returns': returns,
  }


def _hidden(train_model, variables, batch, rows_of_a_prompt):
  """float[B, T, D], of answers that go on from keys of their prompts."""
  model, first = train_model.model, slice(None, None, rows_of_a_prompt)
  read = functools.partial(model.apply, variables, method='trunk')
  # Of the whole row, for rotary frequencies that follow it.
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
  hidden = hidden.astype(jnp.float32)
  return hidden @ head['kernel'] + head['bias']
