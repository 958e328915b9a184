r"""Log-probabilities that a checkpoint gives to tokens.

  python launch.py --config=configs/score.py --config.model.path=PATH \
    --config.input=IN.jsonl --config.output=OUT.jsonl

Rows of IN are {"token_ids": […]} or {"prompt": …, "completion": …}; rows of OUT
hold {"token_ids", "logprobs"}: the natural-log probability of each token given
those before it, null for the first. Expected: one row of OUT per row of IN and
a line with tokens per second. The form of the rows: docs/generation.md.
"""

from ml_collections import config_dict

from llm.config_args import parse_arg


def get_config(arg=None):
  """Every field of a scoring run; there are no bundles to choose."""
  parse_arg(arg)
  optional = config_dict.placeholder
  config = config_dict.ConfigDict()
  config.task = 'score'
  config.model = config_dict.ConfigDict()
  config.model.path = optional(str)
  config.lora = config_dict.ConfigDict()
  config.lora.path = optional(str)  # a PEFT folder to add to the model
  config.tokenizer = config_dict.ConfigDict()
  config.tokenizer.path = optional(str)  # None: beside the model
  config.input = optional(str)
  config.output = optional(str)
  config.dtype = 'float32'  # of params
  config.batch_size = 8  # rows scored together
  config.max_length = optional(int)  # tokens a row may have; None: the model's
  return config
