"""What a run on the model's own completions refuses before it reads a file."""

import math
from typing import Any

from llm.align.checks import KTO, check_pair_loss, needs_reference
from llm.errors import UserError
from llm.losses.options import PREFERENCE
from llm.rewards import functions as rewards_lib
from llm.rl.algorithms import Algorithm, read_algorithm
from llm.runs.checks import is_evaluated


def check_fields(config) -> Algorithm:
  """The algorithm of `configs/rl.py`, if the fields of the run have a meaning.

  Raises:
    UserError: a field has none, or does not fit the others.
  """
  algorithm = read_algorithm(config)
  _check_loss(config, algorithm)
  check_rollout(config)
  check_microbatch(
    config,
    step_rows(config),
    'the completions of a step (train.batch_size · rollout.group_size / '
    'rollout.minibatches)',
  )
  return algorithm


def step_rows(config) -> int:
  """Completions of one optimizer step."""
  rollout = config.rollout
  return config.train.batch_size * rollout.group_size // rollout.minibatches


def step_pairs(config) -> int:
  """Pairs of one optimizer step."""
  return config.train.batch_size // config.rollout.minibatches


def check_online(config) -> dict[str, Any]:
  """The options of `configs/online_preference.py`'s loss, if all fields fit.

  Raises:
    UserError: a field is invalid, or does not fit the others.
  """
  loss, rollout, train = config.loss, config.rollout, config.train
  if loss.name == KTO:
    raise UserError(
      "loss.name='kto': learns from single completions; here they come in "
      f'pairs, use one of {", ".join(PREFERENCE)}'
    )
  options = check_pair_loss(loss)
  if rollout.group_size < 2:
    raise UserError(
      f'rollout.group_size={rollout.group_size}: a pair needs 2 completions or '
      'more'
    )
  check_rollout(config)
  check_microbatch(
    config,
    step_pairs(config),
    'the pairs of a step (train.batch_size / rollout.minibatches)',
  )
  every = rollout.reference_every
  if every < 0:
    raise UserError(
      f'rollout.reference_every={every}: use 0 (never) or a number of rollouts'
    )
  if every and not needs_reference(loss.name):
    raise UserError(
      f'rollout.reference_every={every}: {loss.name} has no reference; use 0'
    )
  steps = rollout.epochs * rollout.minibatches * every
  for name in ends_of_rollouts(config):
    if every and train[name] % steps:
      raise UserError(
        f'train.{name}={train[name]}: use a multiple of {steps} '
        '(rollout.reference_every · rollout.epochs · rollout.minibatches), the '
        'steps with one reference'
      )
  return options


def check_microbatch(config, rows: int, what: str) -> None:
  """Refuses a microbatch that does not divide the rows of a step.

  Args:
    config: of the run.
    rows: of a step.
    what: they are, for the message.
  """
  size = config.train.microbatch_size
  if size > 0 and rows % size:
    raise UserError(
      f'train.microbatch_size={size}: use a divisor of {rows}, {what}'
    )


def check_room(config, limit: int) -> None:
  """Refuses prompts that leave no room for a completion.

  Args:
    config: of the run.
    limit: tokens that the model takes.

  Raises:
    UserError: naming the fields.
  """
  data, rollout = config.data, config.rollout
  room = limit - rollout.max_new_tokens
  if data.max_length > room:
    remedy = (
      f'use at most {room} for prompts'
      if room > 0
      else 'use fewer rollout.max_new_tokens'
    )
    raise UserError(
      f'data.max_length={data.max_length}, tokens of a prompt, and '
      f'rollout.max_new_tokens={rollout.max_new_tokens} exceed the '
      f"model's {limit}; {remedy}"
    )


def check_rollout(config) -> None:
  """Refuses what does not fit a run on the model's own completions."""
  _check_sizes(config)
  rewards_lib.check_rewards(config.rewards)
  data = config.data
  if data.curriculum or data.separator:
    raise UserError(
      'data.curriculum and data.separator are of texts: leave them unset'
    )
  for name, only in (('packing', False), ('overlong', 'drop')):
    if data[name] != only:
      raise UserError(
        f'data.{name}={data[name]!r}: prompts are neither packed nor cut; use '
        f'{only!r}'
      )
  if config.lora.rank and config.lora.dropout:
    raise UserError(
      f'lora.dropout={config.lora.dropout}: completions are sampled and '
      'rated without it; use 0'
    )


def _check_sizes(config) -> None:
  rollout, train = config.rollout, config.train
  for name in ('group_size', 'max_new_tokens', 'epochs', 'minibatches'):
    if rollout[name] < 1:
      raise UserError(f'rollout.{name}={rollout[name]}: use 1 or more')
  if not 1e-4 <= rollout.temperature < float('inf'):
    raise UserError(
      f'rollout.temperature={rollout.temperature}: use a number of 0.0001 or '
      'more'
    )
  margin = rollout.overlong_margin
  if not 0 <= margin <= rollout.max_new_tokens:
    raise UserError(
      f'rollout.overlong_margin={margin}: use 0 (off) to '
      f'rollout.max_new_tokens={rollout.max_new_tokens}'
    )
  if train.batch_size % rollout.minibatches:
    raise UserError(
      f'rollout.minibatches={rollout.minibatches}: use a divisor of '
      f'train.batch_size={train.batch_size} prompts'
    )
  steps = rollout.epochs * rollout.minibatches
  for name in ends_of_rollouts(config):
    if train[name] % steps:
      raise UserError(
        f'train.{name}={train[name]}: use a multiple of {steps} '
        '(rollout.epochs · rollout.minibatches), the steps of a rollout'
      )


def ends_of_rollouts(config) -> tuple[str, ...]:
  """Fields of `train` that name steps at which a rollout must be over."""
  evaluates = is_evaluated(config)
  return ('steps', 'checkpoint_every', *['eval_every'] * evaluates)


def _check_loss(config, algorithm: Algorithm) -> None:
  """Refuses what does not fit the algorithm."""
  loss, size, scale = config.loss, config.rollout.group_size, algorithm.scale
  if scale != 'gae' and size < 2:
    raise UserError(
      f'rollout.group_size={size}: {loss.name} compares the completions of '
      'one prompt; use 2 or more'
    )
  if loss.kl_target is None:
    if loss.kl_horizon is not None:
      raise UserError(
        f'loss.kl_horizon={loss.kl_horizon}: is of the controller; set '
        'loss.kl_target too, or leave it unset'
      )
    return
  if scale not in ('gae', 'rloo'):
    raise UserError(
      f'loss.kl_target={loss.kl_target}: the controller is of ppo and rloo, '
      f'whose rewards have the KL; {loss.name} has loss.kl_coef'
    )
  if not 0 < loss.kl_target < math.inf or not algorithm.options['kl_coef']:
    raise UserError(
      f'loss.kl_target={loss.kl_target}: use a number above 0, with '
      'loss.kl_coef above 0 to begin with'
    )
  if loss.kl_horizon is not None and not 0 < loss.kl_horizon < math.inf:
    raise UserError(f'loss.kl_horizon={loss.kl_horizon}: use a number above 0')
