"""Bytes that a decode step moves, and how fast this machine can move bytes."""

from collections.abc import Callable
import math
import time

import jax
import jax.numpy as jnp

from llm.models.config import LOCAL, ModelConfig

_SPREADS = 3  # how often a measurement that cannot be right is made
_PASSES = 5  # of each, if they take no more than five times the budget


def measure_bandwidth(budget_s: float = 0.1, at_least: float = 0.0) -> float:
  """Bytes per second at which the default device reads its own memory.

  Times a row-wise maximum over a buffer that is meant to be larger than the
  caches (256 MiB on a CPU, else 512): one pass that reads much and writes next
  to nothing, as decoding does. The best pass counts.

  Args:
    budget_s: seconds of passes; see `fastest`.
    at_least: bytes per second that this machine is known to have moved. Where
      the best pass was slower, other work had the memory, and passes are timed
      again: twice at most, each time for twice as long.

  Returns:
    Bytes per second; below `at_least` if the machine stayed busy, or if the
    bytes that it moved came from a cache.
  """
  on_cpu = jax.devices()[0].platform == 'cpu'
  rows = (256 if on_cpu else 512) * 256  # of 4 KiB
  buffer = jnp.ones((rows, 1024), jnp.float32)
  read = jax.jit(lambda x: jnp.max(x, axis=1))
  read(buffer).block_until_ready()
  enough_s = buffer.nbytes / at_least if at_least else math.inf
  best = fastest(lambda: read(buffer).block_until_ready(), budget_s, enough_s)
  return buffer.nbytes / best


def fastest(
  run: Callable[[], object],
  budget_s: float,
  enough_s: float = math.inf,
  clock: Callable[[], float] = time.perf_counter,
) -> float:
  """Seconds of the fastest call of `run` among as many as fit into a budget.

  On a busy machine a call that fills the budget was disturbed, so that five
  calls are made even then, unless they take more than five times the budget.

  Args:
    run: what is timed, at least once.
    budget_s: seconds.
    enough_s: where no call was so fast, all is done again, three times in all,
      with a budget that doubles.
    clock: seconds.
  """
  best = math.inf
  for spread in range(_SPREADS):
    budget, spent, passes = budget_s * 2**spread, 0.0, 0
    while spent < budget or (passes < _PASSES and spent < _PASSES * budget):
      before = clock()
      run()
      took = clock() - before
      spent, passes, best = spent + took, passes + 1, min(best, took)
    if best <= enough_s:
      break
  return best


def step_bytes(config: ModelConfig, params, lengths: list[int]) -> float:
  """Bytes that one decode step has to read.

  All parameters once, except that an untied embedding table gives one row per
  token and an MoE layer no more experts than the batch can choose; and each
  row's used keys and values.

  Args:
    config: the model's shape.
    params: its parameters (arrays or shapes), unrolled or stacked layers.
    lengths: tokens in the cache of each row of the batch.
  """
  batch, total = len(lengths), 0.0
  active = 1.0
  if config.num_experts:
    active = min(1.0, batch * config.experts_per_token / config.num_experts)
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = [getattr(entry, 'key', '') for entry in path]
    size = leaf.size * leaf.dtype.itemsize
    if 'embedder' in names and not config.tie_embeddings:
      size = size / config.vocab_size * batch
    elif 'moe' in names and 'router' not in names:
      size *= active
    total += size
  itemsize = jax.tree.leaves(params)[0].dtype.itemsize
  per_token = 2 * config.num_kv_heads * config.head_dim * itemsize
  for layer_type in config.layer_types:
    window = config.window if layer_type == LOCAL else None
    total += per_token * sum(min(n, window or n) for n in lengths)
  return total
