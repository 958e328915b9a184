"""Every part in several worlds.

python launch.py --sweep=experiments/exact_frontier/sweep.py
"""

from llm.sweeps import grid

config = 'experiments/exact_frontier/config.py'
parallel = 2  # one run keeps one core busy

# The worlds of each part: more where they differ more.
SEEDS = {
  'exact': range(20, 30),
  'dpo': range(20, 25),
  'likelihood': range(20, 25),
  'rl': range(20, 30),
  'noise': range(40, 100),
  'other_betas': range(40, 50),
}


def sweep():
  """Yields the overrides of each run."""
  for part, seeds in SEEDS.items():
    yield from grid.product({'part': (part,), 'seed': seeds})
