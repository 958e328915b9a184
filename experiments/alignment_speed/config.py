"""One comparison of steps: DPO, or GRPO with its rollout, beside TRL.

  python launch.py --config=experiments/alignment_speed/config.py:smoke \
    --workdir=runs/alignment_speed
"""

import ml_collections

from experiments.alignment_speed import measure
from llm.config_args import parse_arg


def get_config(arg=None):
  """Fields of one run; `:smoke` makes it short."""
  arg = parse_arg(arg, smoke=False)
  config = ml_collections.ConfigDict()
  config.task = measure.run
  config.seed = 0  # of the weights and the rows
  config.kind = 'dpo'  # or dpo_precomputed, grpo
  config.threads = 2  # for each system
  config.systems = ('ours', 'trl', 'trl_fused')
  config.batch_size = 2 if arg.smoke else 8  # pairs
  config.prompts = 2 if arg.smoke else 4  # of a rollout
  config.group_size = 2 if arg.smoke else 8  # completions of each prompt
  config.prompt_tokens = 4 if arg.smoke else 64
  config.least_tokens = 4 if arg.smoke else 64  # of a completion in a pair
  config.most_tokens = 8 if arg.smoke else 191  # the end token follows
  config.new_tokens = 4 if arg.smoke else 64  # of a completion in a rollout
  config.repetitions = 2 if arg.smoke else 5  # turns of each system
  config.steps = 1 if arg.smoke else 2  # in a turn
  config.compared_steps = 4 if arg.smoke else 8  # that must agree
  config.lr = 1e-4
  model = config.model = ml_collections.ConfigDict()
  model.vocab_size = 64 if arg.smoke else 8000
  model.embed_dim = 16 if arg.smoke else 256
  model.num_layers = 2 if arg.smoke else 6
  model.num_heads = 2 if arg.smoke else 4
  model.head_dim = 8 if arg.smoke else 64
  model.hidden_dim = 32 if arg.smoke else 688
  return config
