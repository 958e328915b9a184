"""Both parts: additions with three seeds, lengths with five.

python launch.py --sweep=experiments/grpo_arithmetic/sweep.py
"""

from llm.sweeps import grid

config = 'experiments/grpo_arithmetic/config.py'
parallel = 2  # one run keeps little more than one core busy


def sweep():
  """Yields the overrides of each run."""
  yield from grid.product({'part': ('addition',), 'seed': range(54, 57)})
  yield from grid.product({'part': ('length',), 'seed': range(21, 26)})
