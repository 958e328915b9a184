"""The prompts of a run on the model's own completions."""

from typing import Any

from llm.data.prompts import Prompt
from llm.models.config import length_limit
from llm.rewards import functions as rewards_lib
from llm.rl.checks import check_room
from llm.runs import datasets
from llm.runs.checks import check_data
from llm.runs.train_model import ModelSpec


def load(
  config, spec: ModelSpec
) -> tuple[list[Prompt], list[Prompt] | None, dict[str, Any]]:
  """The prompts to train on, those held out or None, counts of the rows."""
  limit = length_limit(spec.config)
  check_data(config.data, limit)
  check_room(config, limit)
  return datasets.load_prompts(
    config, spec, lambda row: rewards_lib.check_row(config.rewards, row)
  )
