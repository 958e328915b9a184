"""Each comparison three times, with other weights and rows.

python launch.py --sweep=experiments/alignment_speed/sweep.py
"""

from experiments.alignment_speed.measure import KINDS
from llm.sweeps import grid

config = 'experiments/alignment_speed/config.py'


def sweep():
  """Yields the overrides of each run."""
  yield from grid.product({'kind': KINDS, 'seed': range(3)})
