"""Learning rate as a function of the step."""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp

from llm.train.checks import check_schedule, decay_start


def make_schedule(
  config: Any, total_steps: int
) -> Callable[[jax.Array | int], jax.Array]:
  """Learning rate as a function of the number of steps done before.

  Warmup is linear and its first step has lr / warmup_steps rather than 0.
  After it the learning rate stays ('constant') or falls to min_lr_ratio · lr at
  `total_steps`: along a straight line ('linear'), half a cosine ('cosine'), or
  only in the last `decay_fraction` of all steps ('wsd': warmup, stable, decay;
  2404.06395), there as 1 - sqrt(t) ('sqrt', 2405.18392) or 1 - t ('linear').

  Args:
    config: `lr`, `schedule`, `warmup_steps`; and, where they are not given,
      `min_lr_ratio` (0.0), `decay_fraction` (0.1), `decay_shape` ('sqrt').
    total_steps: optimizer steps of the whole run.

  Returns:
    int32[] step -> float32[] learning rate; usable under jit.

  Raises:
    UserError: an unknown schedule, or phases that do not fit into the run.
  """
  check_schedule(config, total_steps)
  name, warmup = config.schedule, config.warmup_steps
  floor = getattr(config, 'min_lr_ratio', 0.0)
  shape = getattr(config, 'decay_shape', 'sqrt')
  peak, start = float(config.lr), warmup
  if name == 'wsd':
    start = decay_start(config, total_steps)

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rising = (step + 1.0) / max(warmup, 1)
    done = (step - start) / max(total_steps - start, 1)
    done = jnp.clip(done, 0.0, 1.0)
    if name == 'constant':
      falling = jnp.ones_like(done)
    elif name == 'cosine':
      falling = 0.5 * (1.0 + jnp.cos(math.pi * done))
    elif name == 'wsd' and shape == 'sqrt':
      falling = 1.0 - jnp.sqrt(done)
    else:
      falling = 1.0 - done
    if name != 'constant':
      falling = floor + (1.0 - floor) * falling
    return peak * jnp.where(step < warmup, rising, falling)

  return schedule
