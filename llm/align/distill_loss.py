"""The loss of a distillation, from a batch to three sums."""

from typing import Any

from llm.align.teacher import Teacher
from llm.losses.distill import chunked_generalized_jsd_loss
from llm.losses.language import next_token_targets
from llm.models.transformer import Transformer, output_weight
from llm.models.weights import sliced
from llm.runs.train_model import TrainModel
from llm.train.step import LossFn


def make_distill_loss(
  train_model: TrainModel, teacher: Teacher, loss: Any, *, training: bool
) -> LossFn:
  """Divergence of the student's next tokens from the teacher's, where learned.

  Reads the teacher's parameters from `frozen['teacher']`. The logits of either
  model exist for a few tokens at a time.

  Args:
    train_model: the student.
    teacher: of the same tokens.
    loss: `config.loss`, with `beta` and `temperature`.
    training: with LoRA's dropout; else nothing is drawn.
  """
  student_model, shared = train_model.model, teacher.shared

  def loss_fn(params, frozen, batch, keys):
    variables = train_model.variables(
      params, frozen, keys if training else None
    )
    _, weights = next_token_targets(
      batch['tokens'], batch['loss_mask'], batch['segment_ids']
    )
    return chunked_generalized_jsd_loss(
      _hidden(student_model, variables, batch),
      _output_rows(student_model, variables['params'], shared),
      _hidden(teacher.model, {'params': frozen['teacher']}, batch),
      _output_rows(teacher.model, frozen['teacher'], shared),
      weights,
      beta=loss.beta,
      temperature=loss.temperature,
      student_cap=student_model.config.final_soft_cap,
      teacher_cap=teacher.model.config.final_soft_cap,
    )

  return loss_fn


def _hidden(model: Transformer, variables, batch):
  hidden, _ = model.apply(
    variables,
    batch['tokens'],
    positions=batch['positions'],
    segment_ids=batch['segment_ids'],
    method='trunk',
  )
  return hidden


def _output_rows(model: Transformer, params, count: int):
  """The output weight's rows of the first `count` tokens."""
  return sliced(output_weight(params, model.config), slice(count))
