"""Rollouts of a training run: prompts in, minibatches with advantages out."""

from collections import deque
from collections.abc import Callable, Iterator
import itertools
from typing import Any

import jax
import numpy as np

from llm.data.prompts import Prompt
from llm.decode.rollout import rows_after_prompts, sample_completions
from llm.losses.policy import adaptive_kl_coef, groups_with_signal
from llm.models.transformer import Transformer
from llm.parallel.mesh import on_mesh
from llm.parallel.sharding import shard_batch
from llm.rewards.rater import Rater
from llm.rl import algorithms as rl_algorithms
from llm.rl import loss as rl_loss
from llm.rl.groups import (
  Groups,
  Sampler,
  group_stats,
  minibatches,
  shown_completions,
)
from llm.rl.metrics import kl_stats, rollout_stats
from llm.runs.train_model import TrainModel

_EVAL_ROWS = 64  # answers drawn together when held-out prompts are rated


class Rollouts:
  """The data of a run: minibatches of the newest rollout, one after the other.

  Its state is the number of rollouts, the place in the prompts and the KL
  coefficient; it is taken when a rollout is used up (`is_used_up`).
  """

  def __init__(
    self, config, train_model: TrainModel, prompts: list[Prompt], rater: Rater
  ):
    self._config, self._trainee = config, train_model
    self._sampler = Sampler(config, train_model, prompts, rater)
    self._chosen = rl_algorithms.settings(config.loss)
    self._kl_coef = self._chosen.get('kl_coef', 0.0)
    self._rollouts = 0
    self._left, self._shown = deque(), []
    self._score = _make_score(config, train_model)

  def draw(self, state) -> tuple[Any, dict[str, float]]:
    """The next minibatch; makes a rollout with `state.params` where it must.

    Returns:
      the batch on the devices, and numbers about its rollout.
    """
    if not self._left:
      batch, stats = self._roll_out(state.params)
      self._left.extend((part, stats) for part in self._parts(batch))
    batch, stats = self._left.popleft()
    # A row's last token is a target only.
    tokens = int(batch['mask'].sum() + (batch['prompt_lengths'] + 1).sum())
    return shard_batch(batch, self._trainee.mesh), stats | {'tokens': tokens}

  def is_used_up(self) -> bool:
    """True between rollouts, where the state is whole."""
    return not self._left

  def completions(self) -> list[dict[str, Any]]:
    """`shown_completions` of the newest rollout; [] before the first one."""
    return self._shown

  def get_state(self) -> dict[str, Any]:
    """JSON-able; to be taken where `is_used_up`."""
    return {
      'rollouts': self._rollouts,
      'place': self._sampler.place,
      'kl_coef': self._kl_coef,
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to the place of a `get_state`."""
    self._rollouts, self._sampler.place = state['rollouts'], state['place']
    self._kl_coef = state['kl_coef']
    self._left.clear()

  def _roll_out(self, params) -> tuple[dict[str, np.ndarray], dict]:
    """All columns of a rollout, and the numbers that people watch."""
    config = self._config
    size = config.rollout.group_size
    groups, drawn = self._sample(params)
    prompts = [prompt.token_ids for prompt in groups.prompts]
    batch = rows_after_prompts(prompts, groups.completions)
    stats = group_stats(drawn, size, self._rollouts)
    self._shown = shown_completions(drawn, size, self._trainee.spec.tokenizer)
    stats['rounds'] = len(drawn.completions) / len(groups.completions)
    stats |= self._add_scores(params, batch)
    batch |= rl_loss.advantages(
      config.loss.name,
      self._chosen,
      batch,
      groups.ratings.totals,
      size,
      self._kl_coef,
    )
    self._adapt(stats, len(groups.completions))
    self._rollouts += 1
    return batch, stats

  def _sample(self, params) -> tuple[Groups, Groups]:
    """Rated answers to a batch of prompts, and all that were drawn for them.

    DAPO draws whole rounds (of one compiled shape) until there are enough
    groups with signal. What the last round leaves open is filled by the newest
    groups without one; their gradient is 0.
    """
    rollout = self._config.rollout
    size, count = rollout.group_size, self._config.train.batch_size
    resamples = rl_algorithms.resamples(self._config)
    merged = self._trainee.merged(policy_of(params))

    def draw(round_):
      seed = (self._config.seed, self._rollouts, round_)
      return self._sampler.draw(merged, count, seed)

    groups = draw(0)
    if resamples is None:
      return groups, groups
    for round_ in itertools.count(1):
      signal = np.asarray(groups_with_signal(groups.ratings.totals, size))
      kept, spare = np.flatnonzero(signal), np.flatnonzero(~signal)
      kept = kept[: count * size]
      missing = count * size - len(kept)
      if not missing or round_ > resamples:
        taken = groups.take([*kept, *spare[len(spare) - missing :]])
        return taken, groups
      groups = groups.join(draw(round_))

  def _add_scores(self, params, batch) -> dict[str, float]:
    """Adds `ref_logprobs` and `old_values` where the loss reads them.

    The gap between sampler and trainer costs a pass of the trainer: it is
    taken of the first group, or of all answers where the pass gives the values.

    Returns:
      The gap, and estimates of the KL.
    """
    frozen, mesh = self._trainee.frozen, self._trainee.mesh
    device = shard_batch(batch, mesh)
    mask = batch['mask']
    some = len(mask)
    if self._config.loss.name != 'ppo':  # a group, or a row for each device
      some = min(some, self._config.rollout.group_size * mesh.size)
    first = {k: v[:some] for k, v in batch.items()}
    own = self._score(params, frozen, shard_batch(first, mesh))
    gap = np.abs(np.asarray(own['logprobs']) - first['old_logprobs'])
    stats = {'logprob_gap': float(gap[mask[:some]].max(initial=0.0))}
    if self._chosen.get('kl_coef'):
      tree = frozen.get('reference', frozen.get('base'))
      reference = self._score(None, {'reference': tree}, device)
      batch['ref_logprobs'] = np.asarray(reference['logprobs'])
      stats['kl_coef'] = float(self._kl_coef)
      stats |= kl_stats(batch['old_logprobs'], batch['ref_logprobs'], mask)
    if 'values' in own:
      batch['old_values'] = np.asarray(own['values'])
    return stats

  def _adapt(self, stats, count: int) -> None:
    """The controller's next coefficient (PPO and RLOO)."""
    loss = self._config.loss
    if loss.kl_target is None:
      return
    horizon = {} if loss.kl_horizon is None else {'horizon': loss.kl_horizon}
    self._kl_coef = float(
      adaptive_kl_coef(
        self._kl_coef, stats['kl'], count, target=loss.kl_target, **horizon
      )
    )

  def _parts(self, batch) -> Iterator[dict[str, np.ndarray]]:
    """Minibatches of whole groups, in a new order each epoch."""
    size = self._config.rollout.group_size
    for groups in minibatches(self._config, self._rollouts):
      rows = (groups[:, None] * size + np.arange(size)).reshape(-1)
      yield {k: v[rows] for k, v in batch.items()}


def make_evaluate(
  config, train_model: TrainModel, held_out: list[Prompt], rater: Rater
) -> Callable[[Any], dict[str, float]]:
  """Returns `evaluate(trained) -> {eval_reward_mean, …}` by greedy answers."""
  decoder = Transformer(train_model.spec.config, dtype=train_model.model.dtype)

  def evaluate(params):
    merged = train_model.merged(policy_of(params))
    completions = []
    for start in range(0, len(held_out), _EVAL_ROWS):
      completions += sample_completions(
        decoder,
        merged,
        [p.token_ids for p in held_out[start : start + _EVAL_ROWS]],
        group_size=1,
        seed=(0,),
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=0.0,
        eos_ids=train_model.spec.config.eos_ids,
      )
    stats = rollout_stats(completions, rater.rate(held_out, completions), 1)
    # Of single answers, a group's numbers say nothing.
    return {
      f'eval_{k}': v for k, v in stats.items() if k != 'groups_with_signal'
    }

  return evaluate


def policy_of(params: Any) -> Any:
  """The language model's part of what is trained."""
  return params['policy'] if 'value_head' in params else params


def _make_score(
  config, train_model: TrainModel
) -> Callable[..., dict[str, Any]]:
  """Jitted `rl_loss.completion_scores` of (params or None, frozen, batch).

  Without parameters the reference scores; its values are not asked for.
  """

  def score(params, frozen, batch):
    head = None
    if params is None:
      variables = {'params': frozen['reference']}
    else:
      variables = train_model.variables(policy_of(params), frozen)
      head = params.get('value_head')
    rows = rl_loss.rows_of_a_prompt(config, train_model, len(batch['tokens']))
    return rl_loss.completion_scores(
      train_model, variables, batch, config.rollout.temperature, rows, head
    )

  return on_mesh(jax.jit(score), train_model.mesh)
