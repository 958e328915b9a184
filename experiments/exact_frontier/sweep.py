"""Every part in each of several worlds.

python launch.py --sweep=experiments/exact_frontier/sweep.py
"""

from llm.sweeps import grid

config = 'experiments/exact_frontier/config.py'
parallel = 2  # one run keeps one core busy

PARTS = ('exact', 'dpo', 'noise', 'likelihood', 'rl')


def sweep():
  """Yields the overrides of each run."""
  yield from grid.product({'part': PARTS, 'seed': range(10, 15)})
