r"""What a training run would learn from each row of a file.

  python launch.py --config=configs/preview.py --config.kind=sft \
    --config.model.path=PATH --config.data.path=ROWS.jsonl \
    --config.output=OUT.jsonl

Expected: the first rows in the terminal, context dim and what is learned green;
then a table with what was left out and why, columns that are not read, the
longest rows, how full packed batches are, and which tokens end a turn. OUT has
one object for each row of the file. The fields of `data` are those of the
training configs. No weights are read: without `model.path`, `tokenizer.path` is
enough. More: docs/preview.md.
"""

from ml_collections import config_dict

from llm.config_args import parse_arg
from llm.tasks.training_fields import training_fields

# Fields of `data` that do not change what a row becomes.
_OF_BATCHES = (
  'eval_path', 'eval_fraction', 'packing', 'shuffle', 'seed', 'curriculum',
)  # fmt: skip
# Fields whose default depends on the model or the kind.
_BY_RUN = ('max_length', 'overlong')


def get_config(arg=None):
  """Every field of a preview; there are no bundles to choose."""
  parse_arg(arg)
  optional = config_dict.placeholder
  config = config_dict.ConfigDict()
  config.task = 'preview'
  config.kind = 'sft'  # or preference, kto, reward, rl
  config.model = config_dict.ConfigDict()
  config.model.path = optional(str)
  config.tokenizer = config_dict.ConfigDict()
  config.tokenizer.path = optional(str)  # None: with the model
  config.tokenizer.add_tokens = ()  # as in the training config
  config.data = training_fields('preview').data
  for name in _OF_BATCHES + _BY_RUN:
    del config.data[name]
  config.data.max_length = optional(int)  # None: 512, or what the model takes
  config.data.overlong = optional(str)  # None: drop for rl, else truncate
  # Of rewards for steps: what ends one; None: a line end.
  config.data.step_separator = optional(str)
  config.output = optional(str)  # JSONL; None: the terminal alone
  config.limit = optional(int)  # rows to read; None: all
  config.show = 5  # rows to show in the terminal
  return config
