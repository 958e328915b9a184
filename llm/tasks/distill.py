"""The run `distill`: a student that learns the next tokens of a teacher.

Generalised knowledge distillation (Agarwal et al., 2306.13649): on rows as
they are and on completions that the student samples, with the same loss.
"""

import dataclasses
import math

from llm.align import distill_data
from llm.align.distill_loss import make_distill_loss
from llm.align.teacher import open_teacher, read_teacher
from llm.errors import UserError
from llm.parallel.sharding import shard_batch
from llm.runs import batches, training
from llm.runs.job import check_job, open_job
from llm.runs.train_model import build_train_model
from llm.tasks.training_fields import training_fields


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/distill.py` asks for.

  Returns:
    The contents of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  _check_fields(config)
  job = open_job(config, workdir, training_fields(config.task))
  teacher = open_teacher(config, job.spec)
  examples, held_out = distill_data.load(config, job.spec, teacher)
  contents = {
    'examples': examples.digest,
    'held_out': held_out and held_out.digest,
    'teacher': teacher.weights,
  }
  check_job(job, contents)
  train_model = build_train_model(config, job.spec, job.mesh)
  frozen = {**train_model.frozen, 'teacher': read_teacher(teacher, job.mesh)}
  train_model = dataclasses.replace(train_model, frozen=frozen)
  recipe = training.Recipe(
    loss_fn=make_distill_loss(train_model, teacher, config.loss, training=True),
    batches=distill_data.Batches(config, train_model, teacher, examples),
    # On the held-out rows' own completions, whatever the training is on, so
    # that runs can be compared.
    evaluate=held_out
    and batches.make_evaluate(
      config,
      train_model,
      make_distill_loss(train_model, teacher, config.loss, training=False),
      held_out,
      lambda params, batch: shard_batch(batch, job.mesh),
    ),
    contents=contents,
  )
  return training.train(job, train_model, recipe)


def _check_fields(config) -> None:
  loss, rollout, data = config.loss, config.rollout, config.data
  if not 0.0 <= loss.beta <= 1.0:
    raise UserError(
      f'loss.beta={loss.beta}: use 0 (forward KL) to 1 (reverse KL)'
    )
  if not 1e-4 <= loss.temperature < math.inf:
    raise UserError(
      f'loss.temperature={loss.temperature}: use a number of 0.0001 or more'
    )
  if not 0.0 <= rollout.lmbda <= 1.0:
    raise UserError(
      f'rollout.lmbda={rollout.lmbda}: use 0 (rows only) to 1 (answers of the '
      'student only)'
    )
  if not 0.0 <= rollout.temperature < math.inf:
    raise UserError(
      f'rollout.temperature={rollout.temperature}: use 0 (greedy) or more'
    )
  if rollout.max_new_tokens < 1:
    raise UserError(
      f'rollout.max_new_tokens={rollout.max_new_tokens}: use 1 or more'
    )
  sampler = {
    'max_new_tokens': distill_data.MAX_NEW_TOKENS,
    'temperature': distill_data.TEMPERATURE,
  }
  for name, default in sampler.items():
    if rollout[name] != default and not distill_data.draws_completions(rollout):
      raise UserError(
        f'rollout.{name}={rollout[name]}: with rollout.lmbda=0 and without '
        f'rollout.seq_kd no answer is drawn; use {default}'
      )
  if rollout.seq_kd and rollout.lmbda == 1.0:
    raise UserError(
      'rollout.seq_kd=True: with rollout.lmbda=1 the student writes all '
      'batches and leaves none to the teacher; lower rollout.lmbda'
    )
  if data.packing and distill_data.draws_completions(rollout):
    raise UserError(
      'data.packing=True: prompts are answered one in a row; leave it unset, '
      'or use rollout.lmbda=0 without rollout.seq_kd'
    )
  if data.curriculum:
    raise UserError(
      f'data.curriculum={data.curriculum}: is of pretraining; leave it unset'
    )
