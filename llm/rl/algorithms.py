"""The algorithms of `configs/rl.py`: what each averages, clips and compares."""

import dataclasses
import math
from typing import Any

from llm.errors import UserError
from llm.losses.options import ESTIMATORS, REDUCTIONS
from llm.runs.checks import given_options


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """One algorithm with its settings.

  Attributes:
    name: as in `loss.name`.
    scale: how group advantages are scaled ('group', 'batch', 'none'), 'rloo'
      for leave-one-out, 'gae' for a value head.
    options: settings that a field of `config.loss` may replace: those of the
      loss and, for 'rloo' and 'gae', of the KL that is taken off the rewards.
    resamples: further rounds of a rollout at most, until all groups have a
      signal; None: its groups are as they come.
    ratio: that of `policy.grpo_loss`.
  """

  name: str
  scale: str
  options: dict[str, Any]
  resamples: int | None = None
  ratio: str = 'token'


# What GRPO and its variants have in common; each lists its differences below.
_GROUP = dict(
  kl_coef=0.0,
  kl_estimator='k3',
  clip_low=0.2,
  clip_high=0.2,
  reduction='sequence',
  entropy_coef=0.0,
  dual_clip=None,  # off
  kl_corrected=False,
)
_ALGORITHMS = (
  Algorithm(
    'ppo',
    'gae',
    dict(
      kl_coef=0.05,
      clip_low=0.2,
      clip_high=0.2,
      value_coef=0.1,
      value_clip=0.2,
      gamma=1.0,
      lam=0.95,
      entropy_coef=0.0,
      dual_clip=None,
    ),
  ),
  Algorithm('rloo', 'rloo', dict(kl_coef=0.05, clip_low=0.2, clip_high=0.2)),
  Algorithm('reinforce', 'batch', dict(reduction='token')),
  Algorithm('grpo', 'group', _GROUP | dict(kl_coef=0.04)),
  Algorithm('dr_grpo', 'none', _GROUP | dict(reduction='constant')),
  Algorithm(
    'dapo',
    'group',
    _GROUP | dict(clip_high=0.28, reduction='token'),
    resamples=4,
  ),
  Algorithm(
    'gspo',
    'group',
    _GROUP | dict(clip_low=3e-4, clip_high=4e-4),
    ratio='sequence',
  ),
)
# By name, with the defaults of their options.
ALGORITHMS = {algorithm.name: algorithm for algorithm in _ALGORITHMS}
# Every field of `config.loss` that is an option of some algorithm.
OPTIONS = sorted({k for a in _ALGORITHMS for k in a.options})
# A lower clip of 1 is none: ratios are above 0.
_MOST = {'gamma': 1, 'lam': 1, 'clip_low': 1}
_LARGEST = 3e38  # in float32


def read_algorithm(config: Any) -> Algorithm:
  """The algorithm that the config names, with the config's fields in place.

  Args:
    config: with `loss` and `rollout.max_resamples`.

  Raises:
    UserError: an unknown algorithm, a field that it does not read, or a value
      without a meaning.
  """
  loss = config.loss
  if loss.name not in ALGORITHMS:
    raise UserError(
      f'loss.name={loss.name!r}: use one of {", ".join(ALGORITHMS)}'
    )
  algorithm = ALGORITHMS[loss.name]
  given = given_options(loss, OPTIONS, algorithm.options)
  for name, value in given.items():
    most = _MOST.get(name, math.inf)
    if not isinstance(value, str) and not 0 <= value <= min(most, _LARGEST):
      to = f'from 0 to {most}' if name in _MOST else 'of at least 0'
      raise UserError(f'loss.{name}={value}: use a number {to}')
  options = algorithm.options | given
  _check_options(options)
  return dataclasses.replace(
    algorithm, options=options, resamples=_resamples(config, algorithm)
  )


def _check_options(options: dict[str, Any]) -> None:
  """Refuses values that are unknown or do not fit each other."""
  for name, known in (
    ('kl_estimator', ESTIMATORS),
    ('reduction', REDUCTIONS),
  ):
    if name in options and options[name] not in known:
      raise UserError(
        f'loss.{name}={options[name]!r}: use one of {", ".join(known)}'
      )
  if options.get('kl_corrected') and not options['kl_coef']:
    raise UserError(
      'loss.kl_corrected=True: there is no KL; set loss.kl_coef above 0'
    )
  bound = options.get('dual_clip')
  if bound is not None and bound <= 1 + options['clip_high']:
    raise UserError(
      f'loss.dual_clip={bound}: use a number above 1 + loss.clip_high = '
      f'{1 + options["clip_high"]}'
    )


def _resamples(config: Any, algorithm: Algorithm) -> int | None:
  """`rollout.max_resamples`, or the algorithm's own."""
  given = config.rollout.max_resamples
  if given is None:
    return algorithm.resamples
  if algorithm.resamples is None:
    raise UserError(
      f'rollout.max_resamples={given}: {algorithm.name} takes groups as they '
      'come; leave it unset, or use loss.name=dapo'
    )
  if given < 0:
    raise UserError(f'rollout.max_resamples={given}: use 0 or more')
  return given
