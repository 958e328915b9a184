"""Samples and rates groups of completions, for RL and online preferences."""

from collections.abc import Sequence
import itertools
from typing import Any, NamedTuple

import numpy as np

from llm.data.prompts import Prompt, prompt_order
from llm.decode.completion import Completion
from llm.decode.rollout import sample_completions
from llm.errors import RunError
from llm.models.transformer import Transformer
from llm.rewards.rater import Rater, Ratings
from llm.rl.metrics import rollout_stats
from llm.runs.train_model import TrainModel
from llm.text.tokenizer import Tokenizer


class Groups(NamedTuple):
  """Completions of prompts, `group_size` consecutive ones of each."""

  prompts: list[Prompt]  # one per completion
  completions: list[Completion]
  ratings: Ratings

  def take(self, rows: Sequence[int]) -> 'Groups':
    """The completions of these rows."""
    totals, parts = self.ratings
    return Groups(
      [self.prompts[i] for i in rows],
      [self.completions[i] for i in rows],
      Ratings(totals[rows], {k: v[rows] for k, v in parts.items()}),
    )

  def join(self, other: 'Groups') -> 'Groups':
    """These, and then those of another."""
    parts = {
      k: np.concatenate([v, other.ratings.parts[k]])
      for k, v in self.ratings.parts.items()
    }
    totals = np.concatenate([self.ratings.totals, other.ratings.totals])
    return Groups(
      self.prompts + other.prompts,
      self.completions + other.completions,
      Ratings(totals, parts),
    )


class Sampler:
  """Samples groups of completions; `place` counts the prompts it has used."""

  def __init__(
    self, config, train_model: TrainModel, prompts: list[Prompt], rater: Rater
  ):
    self._config, self._train_model = config, train_model
    self._prompts, self._rater = prompts, rater
    self._decoder = Transformer(
      train_model.spec.config, dtype=train_model.model.dtype
    )
    self.place = 0

  def sample_groups(
    self, params: Any, count: int, seed: Sequence[int]
  ) -> Groups:
    """Rated groups of completions of the next `count` prompts.

    Args:
      params: of the policy, merged.
      count: of prompts.
      seed: numbers that name this call.
    """
    config, size = self._config, self._config.rollout.group_size
    order = prompt_order(
      len(self._prompts), config.data.shuffle, config.data.seed, self.place
    )
    prompts = [self._prompts[i] for i in itertools.islice(order, count)]
    self.place += count
    completions = sample_completions(
      self._decoder,
      params,
      [p.token_ids for p in prompts],
      group_size=size,
      seed=seed,
      max_new_tokens=config.rollout.max_new_tokens,
      temperature=config.rollout.temperature,
      eos_ids=self._train_model.spec.config.eos_ids,
    )
    repeated = [prompt for prompt in prompts for _ in range(size)]
    return Groups(
      repeated, completions, self._rater.rate(repeated, completions)
    )


def group_stats(
  groups: Groups, group_size: int, rollouts: int
) -> dict[str, float]:
  """`rollout_stats` of all that was sampled after `rollouts` other rollouts.

  Raises:
    RunError: not one of its completions could be rated.
  """
  stats = rollout_stats(groups.completions, groups.ratings, group_size)
  if stats['unrated'] == len(groups.completions):
    parts = groups.ratings.parts
    values = ', '.join(f'{name}={part[0]}' for name, part in parts.items())
    raise RunError(
      f'none of the {len(groups.completions)} completions of rollout '
      f'{rollouts + 1} '
      'has a finite sum of weighted rewards: fix the rewards or their weights '
      f'(the first has {values}, its row is '
      f'{str(groups.prompts[0].row)[:200]})'
    )
  return stats


def shown_completions(
  groups: Groups, group_size: int, tok: Tokenizer, prompts: int = 4
) -> list[dict[str, Any]]:
  """The best and worst completion of each of the first prompts, as JSON rows.

  Args:
    groups: of a rollout.
    group_size: G.
    tok: the policy's tokenizer.
    prompts: how many; where all rewards are equal, one completion is shown,
      and one that is not rated is the worst.

  Returns:
    Rows of `prompt`, `text`, `finished`, `reward` (None: not rated) and, by
    name and without their weights, `rewards`.
  """
  rows = []
  totals, parts = groups.ratings
  for start in range(0, len(totals), group_size)[:prompts]:
    rewards = np.nan_to_num(totals[start : start + group_size], nan=-np.inf)
    for i in dict.fromkeys((int(rewards.argmax()), int(rewards.argmin()))):
      completion = groups.completions[start + i]
      rows.append(
        {
          'prompt': tok.decode(list(groups.prompts[start].token_ids)),
          'text': tok.decode(completion.token_ids),
          'finished': completion.finish_reason == 'stop',
          'reward': _json_number(totals[start + i]),
          'rewards': {k: _json_number(v[start + i]) for k, v in parts.items()},
        }
      )
  return rows


def _json_number(value: np.ndarray) -> float | None:
  return float(value) if np.isfinite(value) else None
