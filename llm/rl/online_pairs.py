"""Pairs out of rollouts: the best and the worst answer to each prompt."""

from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.align import preference_loss
from llm.data.examples import Example, from_list
from llm.data.pipeline import fill_rows, fill_stats
from llm.data.prompts import Prompt
from llm.parallel.mesh import on_mesh
from llm.parallel.sharding import shard_batch
from llm.rewards.rater import Rater
from llm.rl.groups import (
  Groups,
  Sampler,
  group_stats,
  minibatches,
  shown_completions,
)
from llm.runs.train_model import TrainModel


class PairRollouts:
  """The data of a run: minibatches of the newest rollout, one after the other.

  Its state is the number of rollouts and the place in the prompts; it is taken
  where the reference follows from the parameters (`is_whole`).
  """

  def __init__(
    self, config, train_model: TrainModel, prompts: list[Prompt], rater: Rater
  ):
    self._config, self._trainee = config, train_model
    self._sampler = Sampler(config, train_model, prompts, rater)
    self._rollouts, self._left, self._shown = 0, deque(), []
    self._score = _make_score(config, train_model)
    self._compares = preference_loss.needs_reference(config.loss.name)
    # A copy: the first parameters are donated.
    self._reference = self._compares and _copy(train_model.params)

  def draw(self, state) -> tuple[Any, dict[str, float]]:
    """The next minibatch; makes a rollout with `state.params` where it must.

    Returns:
      the batch on the devices, and numbers about its rollout.
    """
    if not self._left:
      every = self._config.rollout.reference_every
      if every and self._rollouts % every == 0:
        self._reference = _copy(state.params)
      batch, stats = self._roll_out(state.params)
      for rows in minibatches(self._config, self._rollouts):
        self._left.append(({k: v[rows] for k, v in batch.items()}, stats))
    batch, stats = self._left.popleft()
    batch = batch | {
      'tokens_per_pair': preference_loss.tokens_per_pair(
        batch, self._config.loss
      )
    }
    stats = stats | fill_stats(batch)
    return shard_batch(batch, self._trainee.mesh), stats

  def is_whole(self) -> bool:
    """True where a rollout is used up, and the next one's reference is known.

    That is the model before training, or the parameters as they are.
    """
    every = self._config.rollout.reference_every
    return not self._left and (not every or self._rollouts % every == 0)

  def completions(self) -> list[dict[str, Any]]:
    """`shown_completions` of the newest rollout; [] before the first one."""
    return self._shown

  def get_state(self) -> dict[str, Any]:
    """JSON-able; to be taken where `is_whole`."""
    return {'rollouts': self._rollouts, 'place': self._sampler.place}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to the place of a `get_state`."""
    self._rollouts, self._sampler.place = state['rollouts'], state['place']
    self._left.clear()

  def _roll_out(self, params) -> tuple[dict[str, np.ndarray], dict]:
    """All columns of a rollout, a row for each prompt, and numbers about it."""
    config = self._config
    groups = self._sample(params)
    size = config.rollout.group_size
    stats = group_stats(groups, size, self._rollouts)
    self._shown = shown_completions(groups, size, self._trainee.spec.tokenizer)
    pairs, counts = choose_pairs(groups, size)
    batch = _pair_arrays(
      groups, pairs, config.data.max_length + config.rollout.max_new_tokens
    )
    if self._compares:
      batch['ref_logprobs'] = self._score_parts(batch)
      if config.loss.ld_alpha is None:
        counts |= _kl(groups, pairs, batch['ref_logprobs'])
    self._rollouts += 1
    return batch, stats | counts

  def _sample(self, params) -> Groups:
    """Rated answers, drawn for as many prompts at a time as a step has."""
    config = self._config
    parts = config.rollout.minibatches
    merged = self._trainee.merged(params)
    groups = None
    for part in range(parts):
      seed = (config.seed, self._rollouts, part)
      count = config.train.batch_size // parts
      drawn = self._sampler.draw(merged, count, seed)
      groups = drawn if groups is None else groups.join(drawn)
    return groups

  def _score_parts(self, batch) -> np.ndarray:
    """float32[B, 2]: the reference's log-probability of each answer."""
    parts, frozen = self._config.rollout.minibatches, self._trainee.frozen
    scores = []
    for rows in np.split(np.arange(len(batch['tokens'])), parts):
      part = {k: v[rows] for k, v in batch.items()}
      part = shard_batch(part, self._trainee.mesh)
      scores.append(np.asarray(self._score(self._reference, frozen, part)))
    return np.concatenate(scores)


def choose_pairs(
  groups: Groups, group_size: int
) -> tuple[np.ndarray, dict[str, float]]:
  """The best and the worst answer of each group, where that says something.

  Of equal rewards the first answer counts. A group gives no pair where fewer
  than two answers are rated ('unpaired'), where all rewards are equal ('tied'),
  and where best and worst are the same tokens ('equal').

  Args:
    groups: rated answers.
    group_size: G.

  Returns:
    int[P, 2], rows of the better and the worse answer, -1 where there is no
    pair; and how many 'pairs' there are and how many groups gave none, why.
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
    groups: the answers.
    pairs: of `choose_pairs`.
    max_length: tokens of a prompt with an answer.
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
  """`kl` of sampler and reference, nats per answer (k1), on the pairs."""
  there = pairs[:, 0] >= 0
  if not there.any():
    return {}
  drawn = [
    [_logprob(groups.completions[i]) for i in pair] for pair in pairs[there]
  ]
  return {'kl': float(np.mean(np.array(drawn) - reference[there]))}


def _logprob(completion) -> float:
  """Of the whole answer, by the model itself and not by the temperature."""
  return float(np.sum(completion.logprobs, dtype=np.float64))


def _copy(params: Any) -> Any:
  return jax.tree.map(jnp.copy, params)


def _make_score(config, train_model: TrainModel):
  """Jitted (trained tree, frozen, batch) -> float32[B, 2] of the answers."""

  def score(params, frozen, batch):
    variables = train_model.variables(params, frozen)
    return preference_loss.score_completions(
      train_model.model, variables, batch, config.loss.ld_alpha
    ).logprobs

  return on_mesh(jax.jit(score), train_model.mesh)
