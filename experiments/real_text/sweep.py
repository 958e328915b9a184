"""Both parts with their controls, each with three seeds.

LLM_DATA=DATA python launch.py --sweep=experiments/real_text/sweep.py
"""

from llm.sweeps import grid

config = 'experiments/real_text/config.py'


def sweep():
  """Yields the overrides of each run."""
  seeds = range(3)
  for part in ('bytes', 'instructions'):
    yield from grid.product({'part': (part,), 'seed': seeds})
  for field in ('bytes.muon', 'bytes.shuffled'):
    yield from grid.product({'part': ('bytes',), field: (True,), 'seed': seeds})
