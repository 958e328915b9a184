"""What the fields of `config.optim` may be; nothing here needs JAX."""

from collections.abc import Mapping
import math
import re
from typing import Any

from llm.errors import UserError

OPTIMIZERS = ('adamw', 'adamw8bit', 'adafactor', 'lion', 'muon', 'sgd')
SCHEDULES = ('constant', 'linear', 'cosine', 'wsd')
DECAY_SHAPES = ('sqrt', 'linear')
_GROUP_KEYS = ('lr_factor', 'weight_decay')


def check_optim(config: Any, total_steps: int) -> None:
  """Refuses what is invalid for any model.

  Args:
    config: see `optim.make_optimizer`.
    total_steps: optimizer steps of the whole run.

  Raises:
    UserError: naming the field.
  """
  _check_choice('name', config.name, OPTIMIZERS)
  for name in ('lr', 'weight_decay', 'clip_norm'):
    value = getattr(config, name)
    if not 0.0 <= value < math.inf:
      raise UserError(f'optim.{name}={value}: use a number of at least 0')
  for name in ('b1', 'b2'):
    value = getattr(config, name)
    if not 0.0 <= value < 1.0:
      raise UserError(f'optim.{name}={value}: use a decay in [0, 1)')
  eps = getattr(config, 'eps', 1e-8)
  if not 0.0 < eps < math.inf:
    raise UserError(f'optim.eps={eps}: use a number above 0, such as 1e-8')
  check_groups(getattr(config, 'groups', ()))
  check_schedule(config, total_steps)


def check_schedule(config: Any, total_steps: int) -> None:
  """Refuses an unknown schedule, and phases that do not fit into the run.

  Args:
    config: see `schedules.make_schedule`.
    total_steps: optimizer steps of the whole run.

  Raises:
    UserError: naming the field.
  """
  warmup = config.warmup_steps
  floor = getattr(config, 'min_lr_ratio', 0.0)
  _check_choice('schedule', config.schedule, SCHEDULES)
  _check_choice(
    'decay_shape', getattr(config, 'decay_shape', 'sqrt'), DECAY_SHAPES
  )
  if not 0.0 <= floor <= 1.0:
    raise UserError(f'optim.min_lr_ratio={floor}: use a number from 0 to 1')
  if not 0 <= warmup <= total_steps:
    raise UserError(
      f'optim.warmup_steps={warmup}: use 0 to train.steps={total_steps}'
    )
  if config.schedule != 'wsd':
    return
  fraction = getattr(config, 'decay_fraction', 0.1)
  if not 0.0 < fraction <= 1.0:
    raise UserError(
      f'optim.decay_fraction={fraction}: use a share of all steps in (0, 1]'
    )
  start = decay_start(config, total_steps)
  if start < warmup:
    raise UserError(
      f'optim.decay_fraction={fraction}: the decay would begin at step {start} '
      f'of {total_steps}, within optim.warmup_steps={warmup}; use less of one '
      'of them'
    )


def decay_start(config: Any, total_steps: int) -> int:
  """The step at which the schedule 'wsd' begins to fall."""
  fraction = getattr(config, 'decay_fraction', 0.1)
  return total_steps - round(fraction * total_steps)


def check_groups(groups: Any) -> None:
  """Refuses groups that are not of the form that `assign_rules` takes."""
  form = "use ('PATTERN', {'lr_factor': 0.1, 'weight_decay': 0.0}), …"
  if not isinstance(groups, (tuple, list)):
    raise UserError(f'optim.groups={groups!r}: {form}')
  for group in groups:
    if not (
      isinstance(group, (tuple, list))
      and len(group) == 2
      and isinstance(group[0], str)
      and isinstance(group[1], Mapping)
    ):
      raise UserError(f'optim.groups: {group!r}: {form}')
    pattern, changes = group
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(
        f'optim.groups: pattern {pattern!r}: {error}; use a regular expression'
      ) from None
    for key, value in changes.items():
      where = f'optim.groups: {pattern!r}: {key}={value!r}'
      if key not in _GROUP_KEYS:
        raise UserError(f'{where}: use {" and ".join(_GROUP_KEYS)}')
      number = isinstance(value, (int, float)) and not isinstance(value, bool)
      if not number or not 0.0 <= value < math.inf:
        raise UserError(f'{where}: use a number of at least 0')


def _check_choice(field, value, choices):
  if value not in choices:
    raise UserError(f'optim.{field}={value!r}: use one of {", ".join(choices)}')
