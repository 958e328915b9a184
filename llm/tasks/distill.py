"""The run `distill`: a student that learns the next tokens of a teacher.

Generalised knowledge distillation (Agarwal et al., 2306.13649): on rows as
they are and on answers of the student, with the same loss.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax

from llm.align import distill_data
from llm.align.distill_loss import make_distill_loss
from llm.align.teacher import Teacher, open_teacher, read_teacher
from llm.data import pipeline
from llm.data.examples import Examples
from llm.errors import UserError
from llm.parallel.mesh import check_batch, make_mesh, on_mesh
from llm.parallel.sharding import shard_batch
from llm.runs import checks as training_checks
from llm.runs import training
from llm.runs.train_model import TrainModel, build_train_model, read_spec
from llm.tasks.training_fields import training_fields
from llm.train.step import make_eval_step


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/distill.py` asks for.

  Returns:
    The row of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  workdir = training_checks.check_fields(
    config, workdir, training_fields(config.task)
  )
  _check_fields(config)
  mesh = make_mesh(config.mesh)
  train = config.train
  microbatches = check_batch(train.batch_size, train.microbatch_size, mesh)
  spec = read_spec(config)
  teacher = open_teacher(config, spec)
  examples, held_out = distill_data.load(config, spec, teacher)
  identity = {
    'examples': examples.digest,
    'held_out': held_out and held_out.digest,
    'teacher': teacher.weights,
  }
  training.check_run(config, workdir, spec, identity)
  train_model = build_train_model(config, spec, mesh)
  frozen = {**train_model.frozen, 'teacher': read_teacher(teacher, mesh)}
  train_model = dataclasses.replace(train_model, frozen=frozen)
  batches = distill_data.Batches(config, train_model, teacher, examples)
  recipe = training.Recipe(
    loss_fn=make_distill_loss(train_model, teacher, config.loss, training=True),
    draw=batches.draw,
    data_state=batches.get_state,
    seek=batches.set_state,
    evaluate=held_out
    and _make_evaluate(config, train_model, teacher, held_out),
    identity=identity,
  )
  return training.train(config, workdir, train_model, recipe, microbatches)


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


def _make_evaluate(
  config, train_model: TrainModel, teacher: Teacher, held_out: Examples
) -> Callable[[Any], dict[str, float]]:
  """Returns `evaluate(trained) -> {eval_loss, eval_agreement, …}`.

  Means over all tokens of the held-out rows' own answers, whatever the
  training is on: so that runs can be compared.
  """
  loss_fn = make_distill_loss(train_model, teacher, config.loss, training=False)
  eval_step = on_mesh(jax.jit(make_eval_step(loss_fn)), train_model.mesh)
  key = jax.random.key(0)  # nothing is drawn

  def evaluate(params: Any) -> dict[str, float]:
    totals = {}
    for batch in pipeline.eval_batches(
      held_out,
      batch_size=config.train.batch_size,
      max_length=config.data.max_length,
      packing=config.data.packing,
    ):
      batch = shard_batch(batch, train_model.mesh)
      sums = eval_step(params, batch, key, train_model.frozen)
      totals = {k: totals.get(k, 0.0) + v for k, v in sums.items()}
    weight = float(totals.pop('weight'))
    return {f'eval_{k}': float(v) / weight for k, v in totals.items()}

  return evaluate
