"""Rewards learned from few pairs and optimised too far, one part a run.

python launch.py --config=experiments/overoptimisation/config.py \
    --config.part=long --config.seed=0 --workdir=runs/overoptimisation

`part` is one of

  short  strings of 5 tokens, all of which are counted: the best policy of each
         KL by the proxy, best-of-n, and RLOO for comparison
  long   strings of 20 tokens: RLOO on the proxy, best-of-n from samples, and
         RLOO on the gold reward and on a proxy from random labels

Expected: `result.json` with the curves of KL, proxy and gold for proxies from
30 to 3,000 pairs, after a minute on two cores. `:smoke` takes a few steps
only, to see that everything works. The whole experiment:
`python launch.py --sweep=experiments/overoptimisation/sweep.py`.
"""

import ml_collections

from experiments.overoptimisation import measure
from llm.config_args import parse_arg


def get_config(arg=None):
  """Fields of one run; `:smoke` makes it short."""
  arg = parse_arg(arg, smoke=False)
  config = ml_collections.ConfigDict()
  config.task = measure.run
  config.part = 'long'
  config.seed = 0  # of the reference, the gold reward, the pairs and samples

  config.length = 20  # tokens of a string, of `long`
  config.pool = 4096 if arg.smoke else 65_536  # samples of best-of-n, of `long`

  config.proxy = ml_collections.ConfigDict()
  config.proxy.width = 16
  config.proxy.steps = 20 if arg.smoke else 400
  config.proxy.rate = 1e-2
  config.proxy.batch_size = 64  # pairs

  config.rl = ml_collections.ConfigDict()
  config.rl.steps = 2 if arg.smoke else 200
  config.rl.rate = 1e-3
  config.rl.batch_size = 16 if arg.smoke else 128
  config.rl.first_kl = 1.0  # weight of the KL, falling geometrically
  config.rl.last_kl = 0.02
  config.rl.watch_every = 1 if arg.smoke else 10  # steps
  config.rl.watched = 64 if arg.smoke else 1024  # samples of a watch

  config.short_rl = ml_collections.ConfigDict()
  config.short_rl.steps = 2 if arg.smoke else 400
  config.short_rl.rate = 1e-2
  config.short_rl.batch_size = 16 if arg.smoke else 256
  return config
