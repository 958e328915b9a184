"""The rewards of `configs/rl.py`: functions and reward models, with weights."""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import os
from typing import NamedTuple

import numpy as np

from llm.data.prompts import Prompt
from llm.decode.completion import Completion
from llm.errors import UserError, without_field
from llm.losses.policy import overlong_penalty
from llm.models.config import length_limit
from llm.rewards import functions as rewards_lib
from llm.rewards.model import RewardModel, load_reward_model
from llm.text.tokenizer import Tokenizer


class Ratings(NamedTuple):
  """Rewards of B completions.

  `totals` float32[B] is NaN for a completion that could not be rated because
  one of its rewards is not finite (those of weight 0 are for the metrics
  alone); `parts` has float32[B] for each reward by name, without its weight,
  and the penalty of overlong completions where there is one.
  """

  totals: np.ndarray
  parts: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rater:
  """Rates completions by `config.rewards`.

  Attributes:
    rewards: the entries.
    tokenizer: the policy's.
    models: reward models by their path.
    max_new_tokens: of a completion.
    overlong_margin: see `policy.overlong_penalty`; 0 is none.
  """

  rewards: Sequence
  tokenizer: Tokenizer
  models: dict[str, RewardModel]
  max_new_tokens: int
  overlong_margin: int

  def rate(
    self, prompts: Sequence[Prompt], completions: Sequence[Completion]
  ) -> Ratings:
    """Ratings of completions, each of the prompt at its index.

    Raises:
      RunError: a reward function failed.
    """
    texts = [
      self.tokenizer.decode(completion.token_ids) for completion in completions
    ]
    finished = [
      completion.finish_reason == 'stop' for completion in completions
    ]
    names = rewards_lib.reward_names(self.rewards)
    totals, parts = np.zeros(len(completions)), {}
    for name, entry in zip(names, self.rewards, strict=True):
      if entry[0] == rewards_lib.MODEL:
        rows = [
          [*prompt.token_ids, *completion.token_ids]
          for prompt, completion in zip(prompts, completions, strict=True)
        ]
        values = self.models[entry[2]['path']].rate(rows)
      else:
        values = _rate_texts(entry, prompts, texts, finished)
      parts[name] = np.asarray(values, np.float32)
      if entry[1]:
        totals += entry[1] * parts[name].astype(np.float64)
    if self.overlong_margin:
      parts['overlong'] = np.asarray(
        overlong_penalty(
          np.array([len(completion.token_ids) for completion in completions]),
          max_length=self.max_new_tokens,
          margin=self.overlong_margin,
        )
      )
      totals += parts['overlong']
    with np.errstate(over='ignore'):
      totals = totals.astype(np.float32)
    return Ratings(np.where(np.isfinite(totals), totals, np.nan), parts)


def make_rater(config, tokenizer: Tokenizer, vocab_size: int) -> Rater:
  """Reads the reward models that `config.rewards` names.

  Args:
    config: with `rewards`, `rollout` and `data`.
    tokenizer: the policy's.
    vocab_size: the policy's.

  Raises:
    UserError: a reward model is not there, reads other tokens than the policy
      writes, or takes too few.
  """
  models = {}
  for entry in config.rewards:
    if entry[0] != rewards_lib.MODEL:
      continue
    path = entry[2]['path']
    try:
      models[path] = load_reward_model(path)
      _check_model(config, models[path], tokenizer, vocab_size)
    except UserError as error:
      message = without_field(error, path)
      raise UserError(f'rewards: {entry!r}: {message}') from None
  return Rater(
    tuple(config.rewards),
    tokenizer,
    models,
    config.rollout.max_new_tokens,
    config.rollout.overlong_margin,
  )


def _rate_texts(entry, prompts, texts, finished) -> list[float]:
  """Rewards of texts by one entry; programs are run in parallel processes."""
  rate = lambda prompt, *completion: rewards_lib.rate(
    entry, prompt.row, *completion
  )
  if entry[0] != 'passes_tests':
    return list(map(rate, prompts, texts, finished))
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    return list(pool.map(rate, prompts, texts, finished))


def _check_model(config, reward_model, tokenizer, vocab_size) -> None:
  other, shape = reward_model.tokenizer, reward_model.model.config
  known = range(min(tokenizer.vocab_size, vocab_size))
  same = other is None or all(
    tokenizer.token_bytes(i) == other.token_bytes(i)
    for i in known
    if i < shape.vocab_size
  )
  if shape.vocab_size < len(known) or not same:
    raise UserError(
      'it has another vocabulary than the policy; train one from the same model'
    )
  need = config.data.max_length + config.rollout.max_new_tokens
  limit = length_limit(shape)
  if limit < need:
    raise UserError(
      f'it takes {limit} tokens, and data.max_length='
      f'{config.data.max_length} with rollout.max_new_tokens='
      f'{config.rollout.max_new_tokens} may be {need}; lower them'
    )
