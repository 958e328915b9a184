"""Rollouts as pairs: the best and the worst completion of each prompt."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.align.checks import needs_reference
from llm.align.preference_loss import tokens_per_pair
from llm.align.scores import make_score
from llm.data.examples import Example, from_list
from llm.data.pipeline import fill_rows, fill_stats
from llm.data.prompts import Prompt
from llm.parallel.sharding import shard_batch
from llm.rewards.rater import Rater
from llm.rl.groups import Groups, Sampler, group_stats
from llm.rl.rollouts import Rollout
from llm.runs.train_model import TrainModel


class PairRollouts:
  """A `rollouts.Maker`; its state has the number of prompts used.

  A row of its columns is a group's pair.
  """

  def __init__(
    self, config, train_model: TrainModel, prompts: list[Prompt], rater: Rater
  ):
    self._config, self._train_model = config, train_model
    self._sampler = Sampler(config, train_model, prompts, rater)
    self._score = make_score(train_model, config.loss.ld_alpha)
    self._compares = needs_reference(config.loss.name)
    # A copy: the first parameters are donated.
    self._reference = self._compares and _copy(train_model.params)

  def make(self, params, number: int) -> Rollout:
    """See `rollouts.Maker`."""
    config = self._config
    every = config.rollout.reference_every
    if every and number % every == 0:
      self._reference = _copy(params)
    groups = self._sample(params, number)
    size = config.rollout.group_size
    stats = group_stats(groups, size, number)
    pairs, counts = choose_pairs(groups, size)
    batch = _pair_arrays(
      groups, pairs, config.data.max_length + config.rollout.max_new_tokens
    )
    if self._compares:
      batch['ref_logprobs'] = self._score_parts(batch)
      if config.loss.ld_alpha is None:
        counts |= _kl(groups, pairs, batch['ref_logprobs'])
    return Rollout(batch, stats | counts, groups)

  def finish(
    self, batch: dict[str, np.ndarray]
  ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """See `rollouts.Maker`."""
    tokens = tokens_per_pair(batch, self._config.loss)
    batch = batch | {'tokens_per_pair': tokens}
    return batch, fill_stats(batch)

  def is_known(self, number: int) -> bool:
    """See `rollouts.Maker`: the reference is the first model or the policy."""
    every = self._config.rollout.reference_every
    return not every or number % every == 0

  def get_state(self) -> dict[str, Any]:
    """See `rollouts.Maker`."""
    return {'place': self._sampler.place}

  def set_state(self, state: dict[str, Any]) -> None:
    """See `rollouts.Maker`."""
    self._sampler.place = state['place']

  def _sample(self, params, number: int) -> Groups:
    """Rated completions, of as many prompts at a time as a step has."""
    config = self._config
    parts = config.rollout.minibatches
    merged = self._train_model.merged(params)
    groups = None
    for part in range(parts):
      seed = (config.seed, number, part)
      count = config.train.batch_size // parts
      sampled = self._sampler.sample_groups(merged, count, seed)
      groups = sampled if groups is None else groups.join(sampled)
    return groups

  def _score_parts(self, batch) -> np.ndarray:
    """float32[B, 2]: the reference's log-probability of each completion."""
    parts, frozen = self._config.rollout.minibatches, self._train_model.frozen
    scores = []
    for rows in np.split(np.arange(len(batch['tokens'])), parts):
      part = {k: v[rows] for k, v in batch.items()}
      part = shard_batch(part, self._train_model.mesh)
      scores.append(np.asarray(self._score(self._reference, frozen, part)))
    return np.concatenate(scores)


def choose_pairs(
  groups: Groups, group_size: int
) -> tuple[np.ndarray, dict[str, float]]:
  """The best and the worst completion of each group, where they differ.

  Of equal rewards the first one counts. A group gives no pair where fewer than
  two completions are rated ('unpaired'), where all rewards are equal ('tied'),
  and where best and worst are the same tokens ('equal').

  Args:
    groups: rated completions.
    group_size: G.

  Returns:
    int[P, 2], rows of the better and the worse completion, -1 where there is
    no pair; and how many 'pairs' there are, and by reason how many groups gave
    none.
  """
  rewards = groups.ratings.totals.reshape(-1, group_size)
  pairs = np.full((len(rewards), 2), -1)
  counts = dict.fromkeys(('pairs', 'tied', 'equal', 'unpaired'), 0.0)
  for i, row in enumerate(rewards):
    rated = np.flatnonzero(np.isfinite(row))
    if len(rated) < 2:
      counts['unpaired'] += 1
      continue
    better = i * group_size + rated[np.argmax(row[rated])]
    worse = i * group_size + rated[np.argmin(row[rated])]
    if better == worse:
      counts['tied'] += 1
    elif (
      groups.completions[better].token_ids
      == groups.completions[worse].token_ids
    ):
      counts['equal'] += 1
    else:
      counts['pairs'] += 1
      pairs[i] = better, worse
  return pairs, counts


def _pair_arrays(
  groups: Groups, pairs: np.ndarray, max_length: int
) -> dict[str, np.ndarray]:
  """Rows as `pipeline.make_source(group=2)` makes them; empty without a pair.

  Args:
    groups: the completions.
    pairs: of `choose_pairs`.
    max_length: tokens of a prompt with a completion.
  """
  examples, members = [], []
  for pair in pairs:
    members.append([len(examples), len(examples) + 1] if pair[0] >= 0 else [])
    examples += [_example(groups, i) for i in pair if i >= 0]
  batch = fill_rows(from_list(examples), members, 2 * max_length, False)
  ids = [row or [-1, -1] for row in members]
  return batch | {'examples': np.array(ids, np.int32)}


def _example(groups: Groups, row: int) -> Example:
  prompt = groups.prompts[row].token_ids
  completion = groups.completions[row].token_ids
  mask = np.arange(len(prompt) + len(completion)) >= len(prompt)
  return Example(np.array([*prompt, *completion], np.int32), mask)


def _kl(
  groups: Groups, pairs: np.ndarray, reference: np.ndarray
) -> dict[str, float]:
  """`kl` of sampler and reference, nats per completion (k1), on the pairs."""
  there = pairs[:, 0] >= 0
  if not there.any():
    return {}
  sampled = [
    [_logprob(groups.completions[i]) for i in pair] for pair in pairs[there]
  ]
  return {'kl': float(np.mean(np.array(sampled) - reference[there]))}


def _logprob(completion) -> float:
  """Of the whole completion, by the model at temperature 1."""
  return float(np.sum(completion.logprobs, dtype=np.float64))


def _copy(params: Any) -> Any:
  return jax.tree.map(jnp.copy, params)
