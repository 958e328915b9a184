"""The teacher of a distillation: checked first, its weights read later."""

import dataclasses
from typing import Any

import jax

from llm.align.checks import of_teacher, open_teacher_source
from llm.checkpoints.opened import Source
from llm.checkpoints.source import to_dtype
from llm.errors import UserError
from llm.host import terminal
from llm.models.config import ModelConfig, length_limit
from llm.models.transformer import Transformer, init_params
from llm.parallel.sharding import param_shardings
from llm.runs.train_model import ModelSpec, fingerprint
from llm.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A teacher without its weights.

  Attributes:
    source: the opened checkpoint.
    weights: a fingerprint of its files.
    model: the Transformer; it is frozen, so nothing is recomputed for it.
    shared: how many ids both models have; rows above them are padding.
  """

  source: Source
  weights: str
  model: Transformer
  shared: int


def open_teacher(config, student: ModelSpec) -> Teacher:
  """Reads shape and vocabulary of `config.teacher.path`.

  Raises:
    UserError: it is no model, has another vocabulary than the student, or
      takes fewer tokens than a row may have.
  """
  source = open_teacher_source(config)
  shape, path = source.config, config.teacher.path
  try:
    _check_vocabulary(shape, source.tokenizer, student)
  except UserError as error:
    raise of_teacher(path, error) from None
  limit = length_limit(shape)
  if config.data.max_length > limit:
    raise UserError(
      f'data.max_length={config.data.max_length}: the teacher takes '
      f'{limit} tokens; use at most as many'
    )
  return Teacher(
    source,
    fingerprint(path),
    Transformer(shape, dtype=to_dtype(config.dtype)),
    min(shape.vocab_size, student.config.vocab_size),
  )


def read_teacher(teacher: Teacher, mesh) -> Any:
  """The parameters, in the dtype of the computation, on the mesh."""
  shape, dtype = teacher.model.config, teacher.model.dtype
  key = jax.random.key(0)  # only shapes are made
  shapes = jax.eval_shape(lambda: init_params(shape, key, dtype))
  with terminal.progress_bar() as bar:
    task = bar.add_task('loading the teacher', total=None)
    return teacher.source.load(
      dtype,
      param_shardings(shapes, mesh),
      lambda done, total, _: bar.update(task, completed=done, total=total),
    )


def _check_vocabulary(
  shape: ModelConfig, tokenizer: Tokenizer | None, student: ModelSpec
) -> None:
  """Refuses other tokens; rows that pad a table to a round number may differ.

  A teacher without a tokenizer has to have a table of the student's size.
  """
  ours, size = student.tokenizer, student.config.vocab_size
  remedy = 'use a teacher and a student of one family'
  if tokenizer is None and shape.vocab_size != size:
    raise UserError(
      f'has no tokenizer and {shape.vocab_size} ids, the student {size}; '
      f'{remedy}'
    )
  tokens = max(ours.vocab_size, tokenizer.vocab_size if tokenizer else 0)
  if tokens > min(shape.vocab_size, size):
    raise UserError(
      f'has another vocabulary than the student: a table of {shape.vocab_size} '
      f'ids beside {size}, for {tokens} tokens; {remedy}'
    )
  for i in range(tokens if tokenizer else 0):
    theirs, own = tokenizer.token_bytes(i), ours.token_bytes(i)
    if theirs != own:
      raise UserError(
        f'has another vocabulary than the student: id {i} is {theirs!r} and '
        f"the student's is {own!r}; {remedy}"
      )
