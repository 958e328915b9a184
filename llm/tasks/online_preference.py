"""The run `online_preference`: DPO on pairs of completions just sampled.

A rollout samples a group of completions of each of `train.batch_size` prompts;
the best and the worst of a group by their rewards are a pair. It is trained on
in `rollout.minibatches` parts, `rollout.epochs` times. Checkpoints are taken
where the reference, too, follows from the parameters: between rollouts, and
where the reference is refreshed, as it becomes the policy.
"""

from typing import Any

from llm.align import preference_loss
from llm.data import prompts as prompts_lib
from llm.errors import UserError
from llm.rewards.rater import make_rater
from llm.rl import checks
from llm.rl.evaluate import make_evaluate
from llm.rl.online_pairs import PairRollouts
from llm.rl.prompts import load
from llm.rl.rollouts import Rollouts
from llm.runs import training
from llm.runs.job import check_job, open_job
from llm.runs.train_model import build_train_model
from llm.tasks.training_fields import training_fields


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/online_preference.py` asks for.

  Returns:
    The contents of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  options = _check_fields(config)
  job = open_job(
    config, workdir, training_fields(config.task), _step_rows(config)
  )
  prompts, held_out = load(config, job.spec)
  contents = {
    'prompts': prompts_lib.digest(prompts),
    'held_out': held_out and prompts_lib.digest(held_out),
  }
  check_job(job, contents)
  rater = make_rater(config, job.spec.tokenizer, job.spec.config.vocab_size)
  train_model = build_train_model(config, job.spec, job.mesh)
  maker = PairRollouts(config, train_model, prompts, rater)
  rollouts = Rollouts(config, train_model, maker)
  recipe = training.Recipe(
    loss_fn=preference_loss.make_preference_loss(
      train_model, config.loss, options
    ),
    batches=rollouts,
    evaluate=held_out and make_evaluate(config, train_model, held_out, rater),
    contents=contents,
    may_stop=rollouts.is_whole,
    completions=rollouts.completions,
  )
  return training.train(job, train_model, recipe)


def _step_rows(config) -> int:
  """Pairs of one optimizer step."""
  return config.train.batch_size // config.rollout.minibatches


def _check_fields(config) -> dict[str, Any]:
  """The options of the loss, if the fields of the run have a meaning."""
  loss, rollout, train = config.loss, config.rollout, config.train
  if loss.name == preference_loss.KTO:
    raise UserError(
      "loss.name='kto': learns from single answers; here they come in pairs, "
      f'use one of {", ".join(preference_loss.LOSSES)}'
    )
  options = preference_loss.check_loss(loss)
  if rollout.group_size < 2:
    raise UserError(
      f'rollout.group_size={rollout.group_size}: a pair needs 2 answers or more'
    )
  checks.check_rollout(config)
  checks.check_microbatch(
    config,
    _step_rows(config),
    'the pairs of a step (train.batch_size / rollout.minibatches)',
  )
  every = rollout.reference_every
  if every < 0:
    raise UserError(
      f'rollout.reference_every={every}: use 0 (never) or a number of rollouts'
    )
  if every and not preference_loss.needs_reference(loss.name):
    raise UserError(
      f'rollout.reference_every={every}: {loss.name} has no reference; use 0'
    )
  steps = rollout.epochs * rollout.minibatches * every
  for name in checks.ends_of_rollouts(config):
    if every and train[name] % steps:
      raise UserError(
        f'train.{name}={train[name]}: use a multiple of {steps} '
        '(rollout.reference_every · rollout.epochs · rollout.minibatches), the '
        'steps with one reference'
      )
  return options
