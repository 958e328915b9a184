"""Both lengths, eight worlds each.

python launch.py --sweep=experiments/overoptimisation/sweep.py
"""

from llm.sweeps import grid

config = 'experiments/overoptimisation/config.py'
parallel = 2  # one run keeps one core busy


def sweep():
  """Yields the overrides of each run."""
  yield from grid.product({'part': ('long', 'short'), 'seed': range(8)})
