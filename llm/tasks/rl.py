"""The run `rl`: a model that learns from the rewards of its own answers.

A rollout draws a group of answers to each of `train.batch_size` prompts, rates
them, and is then trained on in `rollout.minibatches` parts, `rollout.epochs`
times: so many steps. Checkpoints are taken between rollouts only, so that a
resumed run has no half-used one to bring back.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from llm.data import prompts as prompts_lib
from llm.data.prompts import Prompt
from llm.errors import UserError
from llm.parallel.mesh import check_batch, make_mesh
from llm.rewards import functions as rewards_lib
from llm.rewards.rater import make_rater
from llm.rl import algorithms as rl_algorithms
from llm.rl import loss as rl_loss
from llm.rl.rollouts import Rollouts, make_evaluate, policy_of
from llm.runs import checks as training_checks
from llm.runs import datasets, training
from llm.runs.train_model import (
  ModelSpec,
  TrainModel,
  build_train_model,
  read_spec,
  trained_shapes,
)
from llm.tasks.training_fields import training_fields


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/rl.py` asks for.

  Returns:
    The row of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  workdir = training_checks.check_fields(
    config, workdir, training_fields(config.task)
  )
  check_fields(config)
  mesh = make_mesh(config.mesh)
  rows = config.train.batch_size * config.rollout.group_size
  step_rows = rows // config.rollout.minibatches
  microbatches = check_rows(
    step_rows,
    config.train.microbatch_size,
    mesh,
    'the answers of a step (train.batch_size · rollout.group_size / '
    'rollout.minibatches)',
  )
  spec = read_spec(config)
  prompts, held_out = load(config, spec)
  identity = {
    'prompts': prompts_lib.digest(prompts),
    'held_out': held_out and prompts_lib.digest(held_out),
  }
  shapes = jax.eval_shape(
    lambda params: _with_head(config, spec, params),
    trained_shapes(config, spec),
  )
  training.check_run(config, workdir, spec, identity, shapes=shapes)
  rater = make_rater(config, spec.tokenizer, spec.config.vocab_size)
  train_model = _with_reference(config, build_train_model(config, spec, mesh))
  rollouts = Rollouts(config, train_model, prompts, rater)
  recipe = training.Recipe(
    loss_fn=rl_loss.make_rl_loss(
      train_model,
      config.loss,
      config.rollout,
      rl_loss.rows_of_a_prompt(config, train_model, step_rows, microbatches),
    ),
    draw=rollouts.draw,
    data_state=rollouts.get_state,
    seek=rollouts.set_state,
    evaluate=held_out and make_evaluate(config, train_model, held_out, rater),
    identity=identity,
    language_model=policy_of,
    may_stop=rollouts.is_used_up,
    completions=rollouts.completions,
  )
  trained = _with_head(config, spec, train_model.params)
  train_model = dataclasses.replace(train_model, params=trained)
  return training.train(config, workdir, train_model, recipe, microbatches)


def check_fields(config) -> None:
  """Refuses fields of its own that have no meaning, or none together."""
  _check_loss(config)
  check_rollout(config)
  rl_algorithms.resamples(config)


def check_rollout(config) -> None:
  """Refuses what does not fit a run on the model's own answers."""
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
      f'lora.dropout={config.lora.dropout}: answers are drawn and rated '
      'without it; use 0'
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
  evaluates = training_checks.is_evaluated(config)
  return ('steps', 'checkpoint_every', *['eval_every'] * evaluates)


def _check_loss(config) -> None:
  loss, size = config.loss, config.rollout.group_size
  chosen = rl_algorithms.settings(loss)
  scale = rl_algorithms.ALGORITHMS[loss.name].scale
  if scale != 'gae' and size < 2:
    raise UserError(
      f'rollout.group_size={size}: {loss.name} compares the answers to one '
      'prompt; use 2 or more'
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
  if not 0 < loss.kl_target < math.inf or not chosen['kl_coef']:
    raise UserError(
      f'loss.kl_target={loss.kl_target}: use a number above 0, with '
      'loss.kl_coef above 0 to begin with'
    )
  if loss.kl_horizon is not None and not 0 < loss.kl_horizon < math.inf:
    raise UserError(f'loss.kl_horizon={loss.kl_horizon}: use a number above 0')


def check_rows(rows: int, microbatch_size: int, mesh, what: str) -> int:
  """`check_batch`, in the words of a rollout: `what` its rows are."""
  if microbatch_size > 0 and rows % microbatch_size:
    raise UserError(
      f'train.microbatch_size={microbatch_size}: use a divisor of {rows}, '
      f'{what}'
    )
  return check_batch(rows, microbatch_size, mesh)


def load(config, spec: ModelSpec) -> tuple[list[Prompt], list[Prompt] | None]:
  """The prompts to train on and those held out, or None."""
  data = config.data
  datasets.check_data(data, spec)
  room = spec.config.max_length - config.rollout.max_new_tokens
  if spec.config.rope.type != 'dynamic' and data.max_length > room:
    raise UserError(
      f'data.max_length={data.max_length}, tokens of a prompt, and '
      f'rollout.max_new_tokens={config.rollout.max_new_tokens} exceed the '
      f"model's {spec.config.max_length}; use at most {room} for prompts"
    )
  return datasets.load_prompts(
    config, spec, lambda row: rewards_lib.check_row(config.rewards, row)
  )


def _with_reference(config, train_model: TrainModel) -> TrainModel:
  """The trainee, with the model before training where a KL is asked for.

  Under fresh adapters that is the base, which is there anyway.
  """
  chosen, spec = rl_algorithms.settings(config.loss), train_model.spec
  fresh = spec.lora is not None and spec.adapters is None
  if not chosen.get('kl_coef') or fresh:
    return train_model
  # A copy: the first parameters are donated.
  reference = jax.tree.map(jnp.copy, train_model.folded(train_model.params))
  return dataclasses.replace(
    train_model, frozen={**train_model.frozen, 'reference': reference}
  )


def _with_head(config, spec: ModelSpec, params: Any) -> Any:
  """What is trained; for PPO with a value head, which says 0 at first."""
  if config.loss.name != 'ppo':
    return params
  width = spec.config.embed_dim
  head = {'kernel': jnp.zeros((width,)), 'bias': jnp.zeros(())}
  return {'policy': params, 'value_head': head}
