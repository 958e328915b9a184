"""Speed of a training step beside `transformers`, one run of paired turns.

python launch.py --config=experiments/training_speed/config.py \
    --workdir=runs/training_speed

needs the extra `parity`. Expected: `result.json` with tokens per second of each
system, the ratios, the losses' largest difference, and where a step's time
goes. `:smoke` is a model of toy size, to see that everything works; its numbers
mean nothing. The whole comparison:
`python launch.py --sweep=experiments/training_speed/sweep.py`.
"""

import ml_collections

from experiments.training_speed import measure
from llm.config_args import parse_arg


def get_config(arg=None):
  """Fields of one run; `:smoke` makes it short."""
  arg = parse_arg(arg, smoke=False)
  config = ml_collections.ConfigDict()
  config.task = measure.run
  config.seed = 0  # of the weights and the rows
  config.threads = 2  # for each system
  config.batch_size = 2 if arg.smoke else 8
  config.tokens = 16 if arg.smoke else 256  # of a row
  config.prompt_tokens = 4 if arg.smoke else 64  # of them, without loss
  config.repetitions = 2 if arg.smoke else 9  # turns of each system
  config.steps = 2 if arg.smoke else 4  # in a turn
  config.compared_steps = 4 if arg.smoke else 20  # whose losses must agree
  config.systems = ('ours', 'transformers', 'transformers_fused')
  optim = config.optim = ml_collections.ConfigDict()
  optim.name = 'adamw'
  optim.lr = 1e-3
  optim.schedule = 'constant'
  optim.warmup_steps = 0
  optim.weight_decay = 0.1
  optim.b1 = 0.9
  optim.b2 = 0.95
  optim.clip_norm = 1.0
  model = config.model = ml_collections.ConfigDict()
  model.vocab_size = 64 if arg.smoke else 8000
  model.embed_dim = 16 if arg.smoke else 256
  model.num_layers = 2 if arg.smoke else 6
  model.num_heads = 2 if arg.smoke else 4
  model.head_dim = 8 if arg.smoke else 64
  model.hidden_dim = 32 if arg.smoke else 688
  return config
