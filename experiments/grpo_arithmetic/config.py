"""Arithmetic learned from rewards, one part and seed a run.

python launch.py --config=experiments/grpo_arithmetic/config.py \
    --config.part=addition --workdir=runs/arithmetic

`part` is one of

  addition  fine-tuning to a mediocre model, then GRPO with a reward for the
            exact answer, and with a random reward
  length    fine-tuning on sums with a tail of marks, then GRPO and Dr.GRPO
            with a reward that does not look at the tail

Expected: `result.json` with held-out accuracies and lengths after some minutes
on two cores. `:smoke` trains for some steps only, to see that everything works.
The whole experiment:
`python launch.py --sweep=experiments/grpo_arithmetic/sweep.py`.
"""

import ml_collections

from experiments.grpo_arithmetic import measure
from llm.config_args import parse_arg


def get_config(arg=None):
  """Fields of one run; `:smoke` makes it short."""
  arg = parse_arg(arg, smoke=False)
  config = ml_collections.ConfigDict()
  config.task = measure.run
  config.part = 'addition'
  config.seed = 0  # of the sums, the weights, the order and the completions

  own = config.addition = _part(arg.smoke)
  own.operands = (10, 99)  # the smallest and the largest one
  own.digits = 3  # of an answer at least: '046'
  own.held_out = 32 if arg.smoke else 512  # sums that nothing is trained on
  own.trial = 8 if arg.smoke else 128  # others, that end fine-tuning
  own.random_steps = 2 if arg.smoke else 100  # with the random reward
  own = config.length = _part(arg.smoke)
  own.operands = (0, 9)
  own.digits = 1
  own.copies = 1 if arg.smoke else 100  # demonstrations of each sum
  own.sft_goal = 0.0  # the first of the steps
  if not arg.smoke:
    own.layers, own.heads = 2, 3
    own.sft_steps = (1000,)
    own.sft_lr = 2e-3
    own.rl_lr = 1e-4
    own.rl_warmup = 10
    own.rl_steps = 200
    own.answers = 64
  return config


def _part(smoke):
  own = ml_collections.ConfigDict()
  own.layers = 1 if smoke else 3
  own.heads = 1 if smoke else 5  # of width 32
  # Fine-tuning continues from one of these steps to the next until this share
  # of sampled completions is right.
  own.sft_steps = (4, 8) if smoke else tuple(range(100, 701, 5))
  own.sft_goal = 0.38
  own.sft_lr = 1e-3
  own.rl_steps = 2 if smoke else 1000
  own.rl_lr = 4e-4
  own.rl_warmup = 1 if smoke else 50
  own.prompts = 4 if smoke else 32  # of a rollout, 8 completions of each
  own.answers = 8  # completions of each sum in the exam
  return own
