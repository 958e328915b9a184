"""Rollouts of a training run: prompts in, minibatches with advantages out."""

from collections import deque
from collections.abc import Callable
import itertools
from typing import Any

import jax
import numpy as np

from llm.data.prompts import Prompt, prompt_order
from llm.decode.generate import Completion
from llm.losses.policy import (
  adaptive_kl_coef,
  groups_with_signal,
  overlong_penalty,
)
from llm.models.transformer import Transformer
from llm.parallel.mesh import on_mesh
from llm.parallel.sharding import shard_batch
from llm.tasks import rl_loss
from llm.tasks.trainee import Trainee
from llm.train.rewards import rate
from llm.train.rollout import answer_arrays, sample_answers

_EVAL_ROWS = 64  # answers drawn together when held-out prompts are rated


class Rollouts:
  """The data of a run: minibatches of the newest rollout, one after the other.

  Its state is the number of rollouts, the place in the prompts and the KL
  coefficient; it is taken when a rollout is used up (`is_used_up`).
  """

  def __init__(self, config, trainee: Trainee, prompts: list[Prompt]):
    self._config, self._trainee, self._prompts = config, trainee, prompts
    self._chosen = rl_loss.settings(config.loss)
    self._kl_coef = self._chosen.get('kl_coef', 0.0)
    self._place = self._rollouts = 0
    self._left = deque()
    self._decoder = Transformer(
      trainee.blueprint.config, dtype=trainee.model.dtype
    )
    self._score, self._value = _compiled(config, trainee)

  def draw(self, state) -> tuple[Any, dict[str, float]]:
    """The next minibatch; makes a rollout with `state.params` where it must."""
    if not self._left:
      batch, stats = self._roll_out(state.params)
      self._left.extend((part, stats) for part in self._parts(batch))
    batch, stats = self._left.popleft()
    return shard_batch(batch, self._trainee.mesh), stats

  def is_used_up(self) -> bool:
    """True between rollouts, where the state is whole."""
    return not self._left

  def get_state(self) -> dict[str, Any]:
    """JSON-able; to be taken where `is_used_up`."""
    return {
      'rollouts': self._rollouts,
      'place': self._place,
      'kl_coef': self._kl_coef,
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to the place of a `get_state`."""
    self._rollouts, self._place = state['rollouts'], state['place']
    self._kl_coef = state['kl_coef']
    self._left.clear()

  def _roll_out(self, params) -> tuple[dict[str, np.ndarray], dict]:
    """All columns of a rollout, and the numbers that people watch."""
    config = self._config
    prompts, answers, totals, parts, rounds = self._sample(params)
    batch = answer_arrays([p.token_ids for p in prompts], answers)
    size = config.rollout.group_size
    with_signal = np.asarray(groups_with_signal(totals, size))
    batch['row_weights'] = np.ones(len(answers), np.float32)
    device = shard_batch(batch, self._trainee.mesh)
    own = np.asarray(self._score(_policy(params), self._trainee.frozen, device))
    mask = _answer_mask(batch)
    stats = {
      'reward_mean': float(totals.mean()),
      'reward_std': float(totals.std()),
      'reward_min': float(totals.min()),
      'reward_max': float(totals.max()),
      **{f'reward_{k}': float(np.mean(v)) for k, v in parts.items()},
      **_length_stats(answers, totals),
      'groups_with_signal': float(with_signal.mean()),
      'rounds': rounds,
      'logprob_gap': float(np.abs(own - batch['old_logprobs'])[mask].max()),
      'tokens': int((batch['segment_ids'] > 0).sum()),
    }
    stats |= self._add_reference(batch, device, mask)
    if config.loss.name == 'ppo':
      values = self._value(params, self._trainee.frozen, device)
      batch['old_values'] = np.asarray(values)
    batch |= rl_loss.advantages(
      config.loss.name, self._chosen, batch, totals, size, self._kl_coef
    )
    self._adapt(stats, len(answers))
    self._rollouts += 1
    return batch, stats

  def _sample(self, params):
    """Answers and rewards; groups without signal are drawn again for DAPO."""
    config = self._config
    rollout, count = config.rollout, config.train.batch_size
    dynamic = rl_loss.ALGORITHMS[config.loss.name].dynamic_sampling
    merged = self._trainee.merged(_policy(params))
    kept, spare = [], []
    for round_ in range(1 + dynamic * rollout.max_resamples):
      prompts = self._next_prompts(count - len(kept))
      answers = sample_answers(
        self._decoder,
        merged,
        [p.token_ids for p in prompts],
        group_size=rollout.group_size,
        seed=(config.seed, self._rollouts, round_),
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        eos_ids=self._trainee.blueprint.config.eos_ids,
      )
      groups = [
        answers[i : i + rollout.group_size]
        for i in range(0, len(answers), rollout.group_size)
      ]
      for prompt, group in zip(prompts, groups, strict=True):
        rated = [self._rate(prompt, answer) for answer in group]
        signal = len({total for total, _ in rated}) > 1
        (kept if signal or not dynamic else spare).append(
          (prompt, group, rated)
        )
      if len(kept) == count:
        break
    # Groups without signal fill what is left; their gradient is 0.
    kept += (
      spare[len(spare) - (count - len(kept)) :] if len(kept) < count else []
    )
    rows = [
      (prompt, answer, score)
      for prompt, group, rated in kept
      for answer, score in zip(group, rated, strict=True)
    ]
    prompts, answers, scores = zip(*rows)
    totals = np.array([total for total, _ in scores], np.float32)
    parts = {k: [p[k] for _, p in scores] for k in scores[0][1]}
    return prompts, answers, totals, parts, round_ + 1

  def _next_prompts(self, count: int) -> list[Prompt]:
    data = self._config.data
    order = prompt_order(
      len(self._prompts), data.shuffle, data.seed, self._place
    )
    self._place += count
    return [self._prompts[i] for i in itertools.islice(order, count)]

  def _rate(self, prompt: Prompt, answer: Completion):
    return rate_answer(self._config, self._trainee, prompt, answer)

  def _add_reference(self, batch, device, mask) -> dict[str, float]:
    """Adds `ref_logprobs` where the loss has a KL; returns its estimates."""
    frozen = self._trainee.frozen
    if not self._chosen.get('kl_coef'):
      return {}
    tree = frozen.get('reference', frozen.get('base'))
    logprobs = np.asarray(self._score(None, {'reference': tree}, device))
    batch['ref_logprobs'] = logprobs
    delta = np.where(mask, logprobs - batch['old_logprobs'], 0.0)
    per_answer = delta.sum(axis=1)
    return {'kl': float(-per_answer.mean()), 'kl_coef': float(self._kl_coef)}

  def _adapt(self, stats, count: int) -> None:
    """The controller's next coefficient (PPO and RLOO)."""
    loss = self._config.loss
    if loss.kl_target is not None:
      self._kl_coef = float(
        adaptive_kl_coef(
          self._kl_coef,
          stats['kl'],
          count,
          target=loss.kl_target,
          horizon=loss.kl_horizon,
        )
      )

  def _parts(self, batch):
    """Minibatches of whole groups, in a new order each epoch."""
    config = self._config
    rollout, count = config.rollout, config.train.batch_size
    size = count // rollout.minibatches
    for epoch in range(rollout.epochs):
      order = np.arange(count)
      if rollout.epochs * rollout.minibatches > 1:
        seed = (config.seed, self._rollouts, epoch)
        order = np.random.default_rng(seed).permutation(count)
      for start in range(0, count, size):
        groups = order[start : start + size]
        rows = groups[:, None] * rollout.group_size + np.arange(
          rollout.group_size
        )
        yield {k: v[rows.reshape(-1)] for k, v in batch.items()}


def rate_answer(config, trainee: Trainee, prompt: Prompt, answer: Completion):
  """(total, rewards by name) of an answer, an overlong one's penalty too."""
  text = trainee.blueprint.tokenizer.decode(answer.token_ids)
  total, parts = rate(
    config.rewards, prompt.row, text, answer.finish_reason == 'stop'
  )
  rollout = config.rollout
  if rollout.overlong_margin:
    penalty = overlong_penalty(
      np.array([len(answer.token_ids)]),
      max_length=rollout.max_new_tokens,
      margin=rollout.overlong_margin,
    )
    total += float(penalty[0])
  return total, parts


def make_evaluate(
  config, trainee: Trainee, held_out: list[Prompt]
) -> Callable[[Any], dict[str, float]]:
  """Returns `evaluate(trained) -> {eval_reward_mean, …}` by greedy answers."""
  decoder = Transformer(trainee.blueprint.config, dtype=trainee.model.dtype)

  def evaluate(params):
    merged = trainee.merged(_policy(params))
    totals, parts, finished = [], {}, []
    for start in range(0, len(held_out), _EVAL_ROWS):
      prompts = held_out[start : start + _EVAL_ROWS]
      answers = sample_answers(
        decoder,
        merged,
        [p.token_ids for p in prompts],
        group_size=1,
        seed=(0,),
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=0.0,
        eos_ids=trainee.blueprint.config.eos_ids,
      )
      for prompt, answer in zip(prompts, answers, strict=True):
        total, by_name = rate_answer(config, trainee, prompt, answer)
        totals.append(total)
        finished.append(answer.finish_reason == 'stop')
        for name, value in by_name.items():
          parts.setdefault(name, []).append(value)
    return {
      'eval_reward_mean': float(np.mean(totals)),
      **{f'eval_{k}': float(np.mean(v)) for k, v in parts.items()},
      'eval_finished': float(np.mean(finished)),
    }

  return evaluate


def _compiled(config, trainee: Trainee):
  """Jitted scoring of a batch: log-probabilities, and values for PPO."""
  temperature = config.rollout.temperature

  def score(params, frozen, batch):
    if params is None:
      variables = {'params': frozen['reference']}
    else:
      variables = trainee.variables(params, frozen)
    return rl_loss.answer_logprobs(trainee, variables, batch, temperature)

  def value(params, frozen, batch):
    variables = trainee.variables(params['policy'], frozen)
    head = params['value_head']
    return rl_loss.answer_values(trainee, variables, head, batch)

  mesh = trainee.mesh
  return on_mesh(jax.jit(score), mesh), on_mesh(jax.jit(value), mesh)


def _policy(params):
  """The language model's part of what is trained."""
  return params['policy'] if 'value_head' in params else params


def _answer_mask(batch) -> np.ndarray:
  """bool[B, T] at the positions that predict an answer's token."""
  return np.pad(batch['loss_mask'][:, 1:], ((0, 0), (0, 1)))


def _length_stats(answers, totals) -> dict[str, float]:
  """Tokens of the answers, apart for those above and below the mean reward."""
  lengths = np.array([len(a.token_ids) for a in answers], float)
  stats = {
    'length': float(lengths.mean()),
    'finished': float(np.mean([a.finish_reason == 'stop' for a in answers])),
  }
  right = totals > (totals.max() + totals.min()) / 2
  for name, chosen in (('right', right), ('wrong', ~right)):
    if chosen.any() and not chosen.all():
      stats[f'length_{name}'] = float(lengths[chosen].mean())
  return stats
