"""Speed of prefill and decode beside other systems, one batch size a run.

python launch.py --config=experiments/inference_speed/config.py \
    --workdir=runs/inference_speed

needs the extra `parity`; llama.cpp takes part where llama-cpp-python is
installed. Expected: `result.json` with tokens per second of each system, the
ratios, and whether all wrote the same tokens. `:smoke` is a model of toy size,
to see that everything works; its numbers mean nothing. The whole comparison:
`python launch.py --sweep=experiments/inference_speed/sweep.py`.
"""

import ml_collections

from experiments.inference_speed import measure
from llm.config_args import parse_arg


def get_config(arg=None):
  """Fields of one run; `:smoke` makes it short."""
  arg = parse_arg(arg, smoke=False)
  config = ml_collections.ConfigDict()
  config.task = measure.run
  config.seed = 0  # of the weights and the prompts
  config.threads = 2  # for each system
  config.batch_size = 1
  config.prompt_tokens = 16 if arg.smoke else 128
  config.new_tokens = 8 if arg.smoke else 128
  config.repetitions = 2 if arg.smoke else 5  # turns of each system
  config.systems = (
    'ours',
    'transformers_dynamic',
    'transformers_static',
    'llama_cpp',
  )
  model = config.model = ml_collections.ConfigDict()
  model.vocab_size = 512 if arg.smoke else 32_000
  model.embed_dim = 64 if arg.smoke else 768
  model.num_layers = 2 if arg.smoke else 12
  model.num_heads = 4 if arg.smoke else 12
  model.head_dim = 16 if arg.smoke else 64
  model.hidden_dim = 128 if arg.smoke else 2048
  return config
