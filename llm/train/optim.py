"""Optimizer and learning-rate schedule from a config."""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm.errors import UserError

SCHEDULES = ('constant', 'linear', 'cosine')
OPTIMIZERS = ('adamw',)
DECAYED = ('kernel', 'embedding')  # names of the parameters that decay


def make_schedule(
  config: Any, total_steps: int
) -> Callable[[jax.Array | int], jax.Array]:
  """Learning rate as a function of the number of steps done before.

  Warmup is linear and its first step has lr / warmup_steps rather than 0;
  after it the rate stays ('constant') or falls to 0 at `total_steps`, along a
  straight line ('linear') or half a cosine ('cosine').

  Args:
    config: `lr`, `schedule`, `warmup_steps`.
    total_steps: optimizer steps of the whole run.

  Raises:
    UserError: an unknown schedule, or a warmup longer than the run.
  """
  if config.schedule not in SCHEDULES:
    raise UserError(
      f'optim.schedule={config.schedule!r}: use one of {", ".join(SCHEDULES)}'
    )
  if not 0 <= config.warmup_steps <= total_steps:
    raise UserError(
      f'optim.warmup_steps={config.warmup_steps}: use 0 to train.steps='
      f'{total_steps}'
    )
  peak, warmup = float(config.lr), config.warmup_steps
  name = config.schedule

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rising = (step + 1.0) / max(warmup, 1)
    done = (step - warmup) / max(total_steps - warmup, 1)
    done = jnp.clip(done, 0.0, 1.0)
    if name == 'linear':
      falling = 1.0 - done
    elif name == 'cosine':
      falling = 0.5 * (1.0 + jnp.cos(math.pi * done))
    else:
      falling = jnp.ones_like(done)
    return peak * jnp.where(step < warmup, rising, falling)

  return schedule


def make_optimizer(
  config: Any, total_steps: int
) -> optax.GradientTransformation:
  """AdamW with the schedule, weight decay on matrices only, and clipping.

  Args:
    config: `name`, `lr`, `schedule`, `warmup_steps`, `weight_decay`, `b1`,
      `b2` and `clip_norm` (largest global norm of a gradient; 0 = no limit).
    total_steps: optimizer steps of the whole run.

  Raises:
    UserError: a field has no meaning.
  """
  _check(config)
  parts = []
  if config.clip_norm:
    parts.append(optax.clip_by_global_norm(config.clip_norm))
  parts.append(
    optax.adamw(
      make_schedule(config, total_steps),
      b1=config.b1,
      b2=config.b2,
      weight_decay=config.weight_decay,
      mask=decay_mask,
    )
  )
  return optax.chain(*parts)


def decay_mask(params: Any) -> Any:
  """True for kernels and embeddings, False for norm scales and biases."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key in DECAYED, params
  )


def _check(config: Any) -> None:
  if config.name not in OPTIMIZERS:
    raise UserError(
      f'optim.name={config.name!r}: use one of {", ".join(OPTIMIZERS)}'
    )
  for name in ('lr', 'weight_decay', 'clip_norm'):
    value = getattr(config, name)
    if not 0.0 <= value < math.inf:
      raise UserError(f'optim.{name}={value}: use a number of at least 0')
  for name in ('b1', 'b2'):
    value = getattr(config, name)
    if not 0.0 <= value < 1.0:
      raise UserError(f'optim.{name}={value}: use a decay in [0, 1)')
