"""Three seeds; each holds out another third of the pairs.

LLM_DATA=DATA python launch.py --sweep=experiments/real_preferences/sweep.py
"""

from llm.sweeps import grid

config = 'experiments/real_preferences/config.py'
parallel = 3  # small models leave cores idle


def sweep():
  """Yields the overrides of each run."""
  yield from grid.product({'seed': range(3)})
