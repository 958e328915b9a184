"""Both batch sizes, each in three runs with other weights and prompts.

python launch.py --sweep=experiments/inference_speed/sweep.py
"""

from llm.sweeps import grid

config = 'experiments/inference_speed/config.py'


def sweep():
  """Yields the overrides of each run."""
  yield from grid.product({'batch_size': (1, 8), 'seed': range(3)})
