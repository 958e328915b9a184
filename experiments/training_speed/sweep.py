"""Three runs with other weights and rows.

python launch.py --sweep=experiments/training_speed/sweep.py
"""

from llm.sweeps import grid

config = 'experiments/training_speed/config.py'


def sweep():
  """Yields the overrides of each run."""
  yield from grid.product({'seed': range(3)})
