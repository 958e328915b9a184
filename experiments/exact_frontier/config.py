"""Alignment where the optimum is known, one part in one world a run.

python launch.py --config=experiments/exact_frontier/config.py \
    --config.part=dpo --config.seed=0 --workdir=runs/exact_frontier

`part` is one of

  exact       the frontier of reward and KL, and best-of-n: nothing is trained
  dpo         DPO over beta from many and few pairs, and on random labels
  noise       DPO, cDPO and robust DPO on labels of which some are wrong
  other_betas DPO alone on the same labels, over beta
  likelihood  log-probabilities of the chosen strings under DPO and RPO
  rl          RLOO, PPO and GRPO with the true reward, and RLOO with permuted
              rewards

Expected: `result.json` with KL, gain and share of the frontier's gain of each
policy, after some seconds to two minutes on one core. `:smoke` trains for a few
steps only, to see that everything works. The whole experiment:
`python launch.py --sweep=experiments/exact_frontier/sweep.py`.
"""

import ml_collections

from experiments.exact_frontier import measure
from llm.config_args import parse_arg


def get_config(arg=None):
  """Fields of one run; `:smoke` makes it short."""
  arg = parse_arg(arg, smoke=False)
  config = ml_collections.ConfigDict()
  config.task = measure.run
  config.part = 'dpo'
  config.seed = 0  # of the world, the pairs, their order and the samples

  config.pairs = 200 if arg.smoke else 800_000
  config.batch_size = 16 if arg.smoke else 2048  # pairs
  config.few_pairs = 100 if arg.smoke else 20_000
  config.few_batch_size = 16 if arg.smoke else 256  # of DPO against RPO
  config.steps = 2 if arg.smoke else 400
  config.rate = 1e-2

  # Of DPO, cDPO and robust DPO where 20, 30 and 40% of the labels are wrong.
  betas = config.noise_betas = ml_collections.ConfigDict()
  betas.sure = (2.0, 2.0, 2.0)
  betas.few = (0.02, 0.005, 0.005)

  config.rl_steps = 4 if arg.smoke else 1600  # updates
  config.rl_rate = 1e-2
  config.samples = 16 if arg.smoke else 256  # of a rollout
  return config
