"""Every part in several worlds.

python launch.py --sweep=experiments/exact_frontier/sweep.py
"""

from llm.sweeps import grid

config = 'experiments/exact_frontier/config.py'
parallel = 2  # one run keeps one core busy

# How many worlds: more where they differ more.
WORLDS = {'exact': 5, 'dpo': 5, 'likelihood': 5, 'rl': 10, 'noise': 20}


def sweep():
  """Yields the overrides of each run."""
  for part, worlds in WORLDS.items():
    yield from grid.product({'part': (part,), 'seed': range(20, 20 + worlds)})
