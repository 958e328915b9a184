"""The run `distill`: a student that learns the next tokens of a teacher.

Generalised knowledge distillation (Agarwal et al., 2306.13649): on rows as
they are and on completions that the student samples, with the same loss.
"""

import dataclasses

from llm.align import distill_data
from llm.align.checks import check_distill
from llm.align.distill_loss import make_distill_loss
from llm.align.teacher import open_teacher, read_teacher
from llm.data.ends import ends_of
from llm.parallel.sharding import shard_batch
from llm.runs import batches, training
from llm.runs.first_rows import show_first
from llm.runs.job import check_job, open_job, with_ends
from llm.runs.train_model import build_train_model
from llm.tasks.training_fields import training_fields


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/distill.py` asks for.

  Returns:
    The contents of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  check_distill(config)
  job = open_job(config, workdir, training_fields(config.task))
  teacher = open_teacher(config, job.spec)
  examples, held_out = distill_data.load(config, job.spec, teacher)
  job = with_ends(job, ends_of(examples, job.spec.tokenizer))
  contents = {
    'examples': examples.digest,
    'held_out': held_out and held_out.digest,
    'teacher': teacher.weights,
  }
  check_job(job, contents)
  show_first(job, examples)
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
    counts=examples.counts,
  )
  return training.train(job, train_model, recipe)
