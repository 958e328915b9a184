"""Every part of the experiment, each of the timed ones with three seeds.

python launch.py --sweep=experiments/kv_cache/sweep.py
"""

from llm.sweeps import grid

config = 'experiments/kv_cache/config.py'

ANSWERS = (64, 96, 128, 192, 256, 384, 512)
USED = (256, 512, 1024, 1536, 2048, 3072, 4096)


def sweep():
  """Yields the overrides of each run."""
  seeds = range(3)
  for part, tokens in (('answer', ANSWERS), ('used', USED)):
    yield from grid.product({'part': (part,), 'tokens': tokens, 'seed': seeds})
  yield from grid.product({'part': ('allocated',), 'seed': seeds})
  yield {'part': 'price'}
