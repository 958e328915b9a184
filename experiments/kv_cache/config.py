"""What the key/value cache saves and what it costs, one part a run.

python launch.py --config=experiments/kv_cache/config.py \
    --config.part=answer --config.tokens=256 --workdir=runs/kv_cache

`part` is one of

  answer     seconds for a completion of `tokens` tokens, with and without a
             cache
  used       decode time per token with about `tokens` tokens in the cache
  allocated  decode time per token, 512 slots allocated against 16 times that
  price      bytes of cache for the shapes of published models

`:smoke` is a model of toy size, to see that everything works. The whole
experiment: `python launch.py --sweep=experiments/kv_cache/sweep.py`.
"""

import ml_collections

from experiments.kv_cache import measure
from llm.config_args import parse_arg


def get_config(arg=None):
  """Fields of one run; `:smoke` makes it short."""
  arg = parse_arg(arg, smoke=False)
  config = ml_collections.ConfigDict()
  config.task = measure.run
  config.part = 'answer'
  config.seed = 0  # of the weights and the prompt
  config.tokens = 256  # of the completion; or in the cache, a multiple of 64
  config.prompt_tokens = 16  # of the parts answer and allocated
  config.repetitions = 2 if arg.smoke else 15
  model = config.model = ml_collections.ConfigDict()
  model.vocab_size = 128 if arg.smoke else 4096
  model.embed_dim = 32 if arg.smoke else 256
  model.num_layers = 2 if arg.smoke else 6
  model.num_heads = 2 if arg.smoke else 4
  model.num_kv_heads = 2 if arg.smoke else 4
  model.head_dim = 16 if arg.smoke else 64
  model.hidden_dim = 64 if arg.smoke else 704
  return config
