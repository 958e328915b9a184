"""Reward models and DPO on real pairs, with one third of them held out.

LLM_DATA=DATA python launch.py --workdir=runs/real_preferences \
    --config=experiments/real_preferences/config.py

LLM_DATA is a folder with
preference/rasbt_preference/instruction-data-with-preference.json and
preference/hh_rlhf_harmless/test.jsonl.gz. Expected: `result.json` with
held-out accuracies and margins, after some minutes on two cores. `:smoke`
trains for some steps on a tiny model, to see that everything works. The whole
experiment:
`LLM_DATA=DATA python launch.py --sweep=experiments/real_preferences/sweep.py`.
"""

import ml_collections

from experiments.real_preferences import measure
from llm.config_args import parse_arg


def get_config(arg=None):
  """Fields of one run; `:smoke` makes it short."""
  smoke = parse_arg(arg, smoke=False).smoke
  config = ml_collections.ConfigDict()
  config.task = measure.run
  config.seed = 0  # of the third that is held out, the weights and the order
  config.vocab_size = 512 if smoke else 4096  # of the tokenizer
  config.embed_dim = 32 if smoke else 128
  config.num_layers = 1 if smoke else 2
  config.max_length = 256 if smoke else 320  # tokens of a prompt and completion
  config.sft = _part(2 if smoke else 200, 3e-3)
  # Steps and learning rates of reward models (rm) and of DPO, by data set.
  config.rasbt = ml_collections.ConfigDict()
  config.rasbt.rm = _part(2 if smoke else 60, 1e-3)
  config.rasbt.dpo = _part(2 if smoke else 60, 3e-4)
  config.harmless = ml_collections.ConfigDict()
  config.harmless.rm = _part(2 if smoke else 120, 5e-4)
  config.harmless.dpo = _part(2 if smoke else 100, 3e-4)
  return config


def _part(steps, lr):
  part = ml_collections.ConfigDict()
  part.steps = steps
  part.lr = lr
  return part
