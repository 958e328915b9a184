"""The loss of a distillation, from a batch to three sums."""

from typing import Any

from llm.align.hidden import hidden_states
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
  """Divergence of the student's next tokens from the teacher's.

  It counts the tokens under the loss mask. The teacher's parameters are
  `frozen['teacher']`. The logits of either model exist for a few tokens at a
  time.

  Args:
    train_model: the student.
    teacher: of the same tokens.
    loss: `config.loss`, with `beta` and `temperature`.
    training: with LoRA's dropout; else without random numbers.
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
      hidden_states(student_model, variables, batch),
      _output_rows(variables['params'], student_model, shared),
      hidden_states(teacher.model, {'params': frozen['teacher']}, batch),
      _output_rows(frozen['teacher'], teacher.model, shared),
      weights,
      beta=loss.beta,
      temperature=loss.temperature,
      student_cap=student_model.config.final_soft_cap,
      teacher_cap=teacher.model.config.final_soft_cap,
    )

  return loss_fn


def _output_rows(params: Any, model: Transformer, count: int) -> Any:
  """The output weight's rows of the first `count` tokens."""
  return sliced(output_weight(params, model.config), slice(count))
