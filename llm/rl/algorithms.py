"""The algorithms of `configs/rl.py`: what each averages, clips and compares."""

import dataclasses
import math
from typing import Any

from llm.errors import UserError
from llm.losses.options import ESTIMATORS, REDUCTIONS
from llm.runs.checks import given_options


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """Settings of one algorithm; a field of `config.loss` replaces its default.

  `scale` is how group advantages are scaled ('group', 'batch', 'none'), 'rloo'
  for leave-one-out, 'gae' for a value head. `defaults` are keywords of the
  loss and, for 'rloo' and 'gae', the KL that is taken off the rewards.
  `resamples` is the default of `rollout.max_resamples`, None where groups are
  not drawn until they have a signal. `ratio` is that of `policy.grpo_loss`.
  """

  scale: str
  defaults: dict[str, Any]
  resamples: int | None = None
  ratio: str = 'token'


# GRPO and its kin; each says below what it has otherwise.
_GROUP = dict(
  kl_coef=0.0,
  kl_estimator='k3',
  clip_low=0.2,
  clip_high=0.2,
  reduction='sequence',
  entropy_coef=0.0,
  dual_clip=None,  # off unless they are asked for
  kl_corrected=False,
)
ALGORITHMS = {
  'ppo': Algorithm(
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
  'rloo': Algorithm('rloo', dict(kl_coef=0.05, clip_low=0.2, clip_high=0.2)),
  'reinforce': Algorithm('batch', dict(reduction='token')),
  'grpo': Algorithm('group', _GROUP | dict(kl_coef=0.04)),
  'dr_grpo': Algorithm('none', _GROUP | dict(reduction='constant')),
  'dapo': Algorithm(
    'group', _GROUP | dict(clip_high=0.28, reduction='token'), resamples=4
  ),
  'gspo': Algorithm(
    'group', _GROUP | dict(clip_low=3e-4, clip_high=4e-4), ratio='sequence'
  ),
}
# Every field of `config.loss` that is a default of some algorithm.
OPTIONS = sorted({k for a in ALGORITHMS.values() for k in a.defaults})
# A lower clip of 1 is none: ratios are above 0.
_MOST = {'gamma': 1, 'lam': 1, 'clip_low': 1}
_LARGEST = 3e38  # in float32


def settings(loss: Any) -> dict[str, Any]:
  """The algorithm's settings with the config's fields in place.

  Raises:
    UserError: an unknown algorithm, a field that it does not read, or a value
      without a meaning.
  """
  if loss.name not in ALGORITHMS:
    raise UserError(
      f'loss.name={loss.name!r}: use one of {", ".join(ALGORITHMS)}'
    )
  defaults = ALGORITHMS[loss.name].defaults
  given = given_options(loss, OPTIONS, defaults)
  for name, value in given.items():
    most = _MOST.get(name, math.inf)
    if not isinstance(value, str) and not 0 <= value <= min(most, _LARGEST):
      to = f'from 0 to {most}' if name in _MOST else 'of at least 0'
      raise UserError(f'loss.{name}={value}: use a number {to}')
  merged = defaults | given
  for name, known in (
    ('kl_estimator', ESTIMATORS),
    ('reduction', REDUCTIONS),
  ):
    if name in merged and merged[name] not in known:
      raise UserError(
        f'loss.{name}={merged[name]!r}: use one of {", ".join(known)}'
      )
  if merged.get('kl_corrected') and not merged['kl_coef']:
    raise UserError(
      'loss.kl_corrected=True: there is no KL; set loss.kl_coef above 0'
    )
  bound = merged.get('dual_clip')
  if bound is not None and bound <= 1 + merged['clip_high']:
    raise UserError(
      f'loss.dual_clip={bound}: use a number above 1 + loss.clip_high = '
      f'{1 + merged["clip_high"]}'
    )
  return merged


def resamples(config: Any) -> int | None:
  """Further rounds of a rollout at most; None: its groups are as they come.

  Raises:
    UserError: a number of them without a meaning.
  """
  given = config.rollout.max_resamples
  default = ALGORITHMS[config.loss.name].resamples
  if given is None:
    return default
  if default is None:
    raise UserError(
      f'rollout.max_resamples={given}: {config.loss.name} takes groups as they '
      'come; leave it unset, or use loss.name=dapo'
    )
  if given < 0:
    raise UserError(f'rollout.max_resamples={given}: use 0 or more')
  return given
