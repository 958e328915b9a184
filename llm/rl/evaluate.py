"""Rewards of greedy completions of held-out prompts."""

from collections.abc import Callable
from typing import Any

from llm.data.prompts import Prompt
from llm.decode.rollout import sample_completions
from llm.models.transformer import Transformer
from llm.rewards.rater import Rater
from llm.rl.metrics import rollout_stats
from llm.rl.trained import policy_of
from llm.runs.train_model import TrainModel

_ROWS = 64  # completions that are sampled together


def make_evaluate(
  config, train_model: TrainModel, held_out: list[Prompt], rater: Rater
) -> Callable[[Any], dict[str, float]]:
  """Returns `evaluate(trained) -> {eval_reward_mean, …}`, sampling greedily."""
  decoder = Transformer(train_model.spec.config, dtype=train_model.model.dtype)

  def evaluate(params):
    merged = train_model.merged(policy_of(params))
    completions = []
    for start in range(0, len(held_out), _ROWS):
      completions += sample_completions(
        decoder,
        merged,
        [p.token_ids for p in held_out[start : start + _ROWS]],
        group_size=1,
        seed=(0,),
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=0.0,
        eos_ids=train_model.spec.config.eos_ids,
      )
    stats = rollout_stats(completions, rater.rate(held_out, completions), 1)
    # A group of one completion never has a signal.
    return {
      f'eval_{k}': v for k, v in stats.items() if k != 'groups_with_signal'
    }

  return evaluate
