"""Learning rate as a function of the step."""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp

from llm.errors import UserError

SCHEDULES = ('constant', 'linear', 'cosine', 'wsd')
DECAY_SHAPES = ('sqrt', 'linear')


def make_schedule(
  config: Any, total_steps: int
) -> Callable[[jax.Array | int], jax.Array]:
  """Learning rate as a function of the number of steps done before.

  Warmup is linear and its first step has lr / warmup_steps rather than 0.
  After it the rate stays ('constant') or falls to min_lr_ratio · lr at
  `total_steps`: along a straight line ('linear'), half a cosine ('cosine'), or
  only in the last `decay_fraction` of all steps ('wsd': warmup, stable, decay;
  2404.06395), there as 1 - sqrt(t) ('sqrt', 2405.18392) or 1 - t ('linear').

  Args:
    config: `lr`, `schedule`, `warmup_steps`; and, where they are not given,
      `min_lr_ratio` (0.0), `decay_fraction` (0.1), `decay_shape` ('sqrt').
    total_steps: optimizer steps of the whole run.

  Returns:
    int32[] step -> float32[] rate; usable under jit.

  Raises:
    UserError: an unknown schedule, or phases that do not fit into the run.
  """
  name, warmup = config.schedule, config.warmup_steps
  floor = getattr(config, 'min_lr_ratio', 0.0)
  shape = getattr(config, 'decay_shape', 'sqrt')
  _check_choice('schedule', name, SCHEDULES)
  _check_choice('decay_shape', shape, DECAY_SHAPES)
  if not 0.0 <= floor <= 1.0:
    raise UserError(f'optim.min_lr_ratio={floor}: use a number from 0 to 1')
  if not 0 <= warmup <= total_steps:
    raise UserError(
      f'optim.warmup_steps={warmup}: use 0 to train.steps={total_steps}'
    )
  peak, start = float(config.lr), warmup
  if name == 'wsd':
    start = _decay_start(config, warmup, total_steps)

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


def _decay_start(config, warmup, total_steps):
  fraction = getattr(config, 'decay_fraction', 0.1)
  if not 0.0 < fraction <= 1.0:
    raise UserError(
      f'optim.decay_fraction={fraction}: use a share of all steps in (0, 1]'
    )
  start = total_steps - round(fraction * total_steps)
  if start < warmup:
    raise UserError(
      f'optim.decay_fraction={fraction}: the decay would begin at step {start} '
      f'of {total_steps}, within optim.warmup_steps={warmup}; use less of one '
      'of them'
    )
  return start


def _check_choice(field, value, choices):
  if value not in choices:
    raise UserError(f'optim.{field}={value!r}: use one of {", ".join(choices)}')
