"""Rollouts of `configs/rl.py`: completions with advantages."""

from collections.abc import Callable
import itertools
from typing import Any

import jax
import numpy as np

from llm.data.prompts import Prompt
from llm.decode.rollout import rows_after_prompts
from llm.losses.policy import adaptive_kl_coef, groups_with_signal
from llm.parallel.mesh import on_mesh
from llm.parallel.sharding import shard_batch
from llm.rewards.rater import Rater
from llm.rl import loss as rl_loss
from llm.rl.advantages import advantages
from llm.rl.algorithms import Algorithm
from llm.rl.groups import Groups, Sampler, group_stats
from llm.rl.metrics import kl_stats
from llm.rl.rollouts import Rollout
from llm.rl.trained import policy_of
from llm.runs.train_model import TrainModel


class PolicyRollouts:
  """A `rollouts.Maker`; its state has the prompts used and the KL coefficient.

  A row of its columns is a completion.
  """

  def __init__(
    self,
    config,
    algorithm: Algorithm,
    train_model: TrainModel,
    prompts: list[Prompt],
    rater: Rater,
  ):
    self._config, self._algorithm = config, algorithm
    self._train_model = train_model
    self._sampler = Sampler(config, train_model, prompts, rater)
    self._kl_coef = algorithm.options.get('kl_coef', 0.0)
    self._score = _make_score(config, train_model)

  def make(self, params, number: int) -> Rollout:
    """See `rollouts.Maker`."""
    config = self._config
    size = config.rollout.group_size
    groups, sampled = self._sample(params, number)
    prompts = [prompt.token_ids for prompt in groups.prompts]
    batch = rows_after_prompts(prompts, groups.completions)
    stats = group_stats(sampled, size, number)
    stats['rounds'] = len(sampled.completions) / len(groups.completions)
    stats |= self._add_scores(params, batch)
    batch |= advantages(
      self._algorithm,
      batch,
      groups.ratings.totals,
      size,
      self._kl_coef,
    )
    self._adapt(stats, len(groups.completions))
    return Rollout(batch, stats, sampled)

  def finish(
    self, batch: dict[str, np.ndarray]
  ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """See `rollouts.Maker`."""
    # A row's last token is a target only.
    tokens = int(batch['mask'].sum() + (batch['prompt_lengths'] + 1).sum())
    return batch, {'tokens': tokens}

  def is_known(self, number: int) -> bool:
    """See `rollouts.Maker`."""
    del number
    return True

  def get_state(self) -> dict[str, Any]:
    """See `rollouts.Maker`."""
    return {'place': self._sampler.place, 'kl_coef': self._kl_coef}

  def set_state(self, state: dict[str, Any]) -> None:
    """See `rollouts.Maker`."""
    self._sampler.place = state['place']
    self._kl_coef = state['kl_coef']

  def _sample(self, params, number: int) -> tuple[Groups, Groups]:
    """Rated completions of a batch of prompts, and all that were sampled.

    DAPO samples whole rounds (of one compiled shape) until there are enough
    groups with signal. If the last round does not bring enough, the newest
    groups without one fill the batch; their gradient is 0.
    """
    rollout = self._config.rollout
    size, count = rollout.group_size, self._config.train.batch_size
    resamples = self._algorithm.resamples
    merged = self._train_model.merged(policy_of(params))

    def sample_round(round_):
      seed = (self._config.seed, number, round_)
      return self._sampler.sample_groups(merged, count, seed)

    groups = sample_round(0)
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
      groups = groups.join(sample_round(round_))

  def _add_scores(self, params, batch) -> dict[str, float]:
    """Adds `ref_logprobs` and `old_values` where the loss reads them.

    The gap between sampler and trainer costs a forward pass of the trainer: it
    is taken of the first group, or, where that pass gives the values too, of
    all completions.

    Returns:
      The gap, and estimates of the KL.
    """
    frozen, mesh = self._train_model.frozen, self._train_model.mesh
    device = shard_batch(batch, mesh)
    mask = batch['mask']
    some = len(mask)
    if self._algorithm.scale != 'gae':  # a group, or a row for each device
      some = min(some, self._config.rollout.group_size * mesh.size)
    first = {k: v[:some] for k, v in batch.items()}
    own = self._score(params, frozen, shard_batch(first, mesh))
    gap = np.abs(np.asarray(own['logprobs']) - first['old_logprobs'])
    stats = {'logprob_gap': float(gap[mask[:some]].max(initial=0.0))}
    if self._algorithm.options.get('kl_coef'):
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


def _make_score(
  config, train_model: TrainModel
) -> Callable[..., dict[str, Any]]:
  """Jitted `rl_loss.completion_scores` of (params or None, frozen, batch).

  Without parameters the reference scores, which has no values.
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
