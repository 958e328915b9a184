"""The run `rl`: a model that learns from the rewards of its own answers.

A rollout draws a group of answers to each of `train.batch_size` prompts, rates
them, and is then trained on in `rollout.minibatches` parts, `rollout.epochs`
times: so many steps. Checkpoints are taken between rollouts only, so that a
resumed run has no half-used one to bring back.
"""

from collections.abc import Callable
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from llm.data import prompts as prompts_lib
from llm.data.examples import check_vocabulary
from llm.data.prompts import Prompt
from llm.errors import UserError
from llm.parallel.mesh import check_batch, make_mesh
from llm.tasks import report, rl_loss, supervised, training
from llm.tasks.rl_rollouts import Rollouts, make_evaluate
from llm.tasks.trainee import Blueprint, Trainee, build_trainee, draw_blueprint
from llm.train import rewards as rewards_lib


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/rl.py` asks for.

  Returns:
    The row of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  workdir = training.check_fields(config, workdir)
  _check_fields(config)
  mesh = make_mesh(config.mesh)
  rows = config.train.batch_size * config.rollout.group_size
  microbatches = check_batch(
    rows // config.rollout.minibatches, config.train.microbatch_size, mesh
  )
  blueprint = draw_blueprint(config)
  prompts, held_out = _load(config, blueprint)
  identity = {'prompts': prompts_lib.digest(prompts)}
  training.check_run(config, workdir, blueprint, identity)
  trainee = _with_reference(config, build_trainee(config, blueprint, mesh))
  rollouts = Rollouts(config, trainee, prompts)
  recipe = training.Recipe(
    loss_fn=rl_loss.make_rl_loss(trainee, config.loss, config.rollout),
    draw=rollouts.draw,
    data_state=rollouts.get_state,
    seek=rollouts.set_state,
    evaluate=held_out and make_evaluate(config, trainee, held_out),
    identity=identity,
    language_model=_policy(config),
    may_stop=rollouts.is_used_up,
  )
  if config.loss.name == 'ppo':
    trainee = dataclasses.replace(trainee, params=_with_head(trainee))
  return training.train(config, workdir, trainee, recipe, microbatches)


def _check_fields(config) -> None:
  rollout, train = config.rollout, config.train
  chosen = rl_loss.settings(config.loss)
  for name in ('group_size', 'max_new_tokens', 'epochs', 'minibatches'):
    if rollout[name] < 1:
      raise UserError(f'rollout.{name}={rollout[name]}: use 1 or more')
  if not 0.0 < rollout.temperature < float('inf'):
    raise UserError(
      f'rollout.temperature={rollout.temperature}: use a number above 0'
    )
  if rollout.max_resamples < 0:
    raise UserError(f'rollout.max_resamples={rollout.max_resamples}: use 0 up')
  if train.batch_size % rollout.minibatches:
    raise UserError(
      f'rollout.minibatches={rollout.minibatches}: use a divisor of '
      f'train.batch_size={train.batch_size} prompts'
    )
  alone = rl_loss.ALGORITHMS[config.loss.name].scale in ('group', 'rloo')
  if alone and rollout.group_size < 2:
    raise UserError(
      f'rollout.group_size={rollout.group_size}: {config.loss.name} compares '
      'the answers to one prompt; use 2 or more'
    )
  steps = rollout.epochs * rollout.minibatches
  for name in ('steps', 'checkpoint_every'):
    if train[name] % steps:
      raise UserError(
        f'train.{name}={train[name]}: use a multiple of {steps} '
        '(rollout.epochs · rollout.minibatches), the steps of a rollout'
      )
  if config.loss.kl_target is not None:
    if config.loss.kl_target <= 0 or not chosen.get('kl_coef'):
      raise UserError(
        f'loss.kl_target={config.loss.kl_target}: use a number above 0, with '
        'loss.kl_coef above 0 to begin with'
      )
    if rl_loss.ALGORITHMS[config.loss.name].scale not in ('gae', 'rloo'):
      raise UserError(
        f'loss.kl_target={config.loss.kl_target}: the controller is of ppo and '
        f'rloo, whose rewards have the KL; {config.loss.name} has loss.kl_coef'
      )
  margin = rollout.overlong_margin
  if not 0 <= margin <= rollout.max_new_tokens:
    raise UserError(
      f'rollout.overlong_margin={margin}: use 0 (off) to '
      f'rollout.max_new_tokens={rollout.max_new_tokens}'
    )
  rewards_lib.check_rewards(config.rewards)
  if not config.rewards:
    raise UserError("rewards=(): give one, such as (('exact_answer', 1.0),)")
  data = config.data
  if data.curriculum or data.separator:
    raise UserError(
      'data.curriculum and data.separator are of texts: leave them unset'
    )


def _load(
  config, blueprint: Blueprint
) -> tuple[list[Prompt], list[Prompt] | None]:
  """The prompts to train on and those held out, or None."""
  data, tok = config.data, blueprint.tokenizer
  supervised.check_data(data, blueprint)
  check_vocabulary(tok, blueprint.config.vocab_size)
  room = blueprint.config.max_length - config.rollout.max_new_tokens
  if blueprint.config.rope.type != 'dynamic' and data.max_length > room:
    raise UserError(
      f'data.max_length={data.max_length}, tokens of a prompt, and '
      f'rollout.max_new_tokens={config.rollout.max_new_tokens} exceed the '
      f"model's {blueprint.config.max_length}; use at most {room} for prompts"
    )
  read = lambda path, field: prompts_lib.load_prompts(
    path, tok, max_length=data.max_length, field=field
  )
  prompts, held_out = read(data.path, 'data.path'), None
  if data.eval_path is not None:
    held_out = read(data.eval_path, 'data.eval_path')
  elif data.eval_fraction:
    train = int(len(prompts) * (1 - data.eval_fraction) + 1e-9)
    if not 0 < train < len(prompts):
      raise UserError(
        f'data.eval_fraction={data.eval_fraction}: of {len(prompts)} rows both '
        'parts need at least one'
      )
    prompts, held_out = prompts[:train], prompts[train:]
  for number, prompt in enumerate(itertools.chain(prompts, held_out or ()), 1):
    try:
      rewards_lib.check_row(config.rewards, prompt.row)
    except UserError as error:
      raise UserError(f'data: row {number} {error}') from None
  report.tell(
    f'data: {len(prompts):,} prompts'
    + (f', {len(held_out):,} held out' if held_out else '')
  )
  return prompts, held_out


def _with_reference(config, trainee: Trainee) -> Trainee:
  """The trainee, with the model before training where a KL is asked for.

  Under LoRA that is the base, which is there anyway.
  """
  chosen = rl_loss.settings(config.loss)
  if not chosen.get('kl_coef') or trainee.blueprint.lora is not None:
    return trainee
  # A copy: the first parameters are donated.
  reference = jax.tree.map(jnp.copy, trainee.params)
  return dataclasses.replace(
    trainee, frozen={**trainee.frozen, 'reference': reference}
  )


def _with_head(trainee: Trainee) -> dict[str, Any]:
  """The policy's parameters, and a value head that says 0."""
  width = trainee.blueprint.config.embed_dim
  head = {'kernel': jnp.zeros((width,)), 'bias': jnp.zeros(())}
  return {'policy': trainee.params, 'value_head': head}


def _policy(config) -> Callable[[Any], Any]:
  if config.loss.name == 'ppo':
    return lambda params: params['policy']
  return lambda params: params
