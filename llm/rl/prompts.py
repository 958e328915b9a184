"""The prompts of a run on the model's own completions."""

from llm.data.prompts import Prompt
from llm.errors import UserError
from llm.rewards import functions as rewards_lib
from llm.runs import datasets
from llm.runs.train_model import ModelSpec


def load(config, spec: ModelSpec) -> tuple[list[Prompt], list[Prompt] | None]:
  """The prompts to train on and those held out, or None."""
  data = config.data
  datasets.check_data(data, spec)
  room = spec.config.max_length - config.rollout.max_new_tokens
  if spec.config.rope.type != 'dynamic' and data.max_length > room:
    raise UserError(
      f'data.max_length={data.max_length}, tokens of a prompt, and '
      f'rollout.max_new_tokens={config.rollout.max_new_tokens} exceed the '
      f"model's {spec.config.max_length}; use at most {room} for prompts"
    )
  return datasets.load_prompts(
    config, spec, lambda row: rewards_lib.check_row(config.rewards, row)
  )
