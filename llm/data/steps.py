"""Completions in steps, each labelled right or wrong (process rewards)."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from llm.data import examples as examples_lib
from llm.data import reading, shapes
from llm.data.columns import Columns, RowOptions
from llm.data.examples import Example, Examples
from llm.errors import UserError
from llm.text.messages import show

SHAPE = (
  '{"prompt": …, "completions": [step, …], "labels": [true, …]} (the prompt a '
  'string or a message list)'
)


@dataclasses.dataclass(frozen=True)
class Steps:
  """Completions in labelled steps, as token ids.

  Attributes:
    examples: N of them; the mask has the last token of each step.
    labels: float32[total], beside `examples.tokens`: 1 at the last token of a
      right step, 0 elsewhere.
    counts: 'rows', 'completions', 'steps', and those left out.
  """

  examples: Examples
  labels: np.ndarray
  counts: dict[str, int]

  def __len__(self) -> int:
    return len(self.examples)

  def part(self, start: int, stop: int) -> 'Steps':
    """Completions `start` to `stop`."""
    tokens = slice(*self.examples.offsets[[start, stop]])
    return dataclasses.replace(
      self,
      examples=self.examples.part(start, stop),
      labels=self.labels[tokens],
    )


def load_steps(
  path,
  tok,
  *,
  max_length: int,
  overlong: str = 'truncate',
  eval_fraction: float = 0.0,
  separator: str = '\n',
  options: RowOptions = RowOptions(),
  field: str = 'data.path',
  on_bytes: Callable[[int, int], None] | None = None,
) -> tuple[Steps, Steps | None]:
  """Reads, checks and tokenizes rows of TRL's stepwise supervision.

    BOS prompt step separator step separator
                            ^              ^

  Prompt, steps and separators are tokenized apart, as in TRL's PRMTrainer. So a
  step ends where a token ends, and the score of the steps so far does not
  depend on what follows. A row of which `max_length` leaves no end of a step is
  left out and counted as 'emptied', one without any step as 'empty'.

  Args:
    path: see `records.read_records`.
    tok: a `Tokenizer`.
    max_length: tokens of a prompt with its steps.
    overlong: 'truncate' (the last steps) or 'drop' (the row).
    eval_fraction: the share of the completions held out, the last ones.
    separator: put after each step; the score is taken at its last token.
    options: how rows are read.
    field: the config field of `path`, for messages.
    on_bytes: progress, called with (bytes done, bytes in all).

  Returns:
    completions to train on, and those held out (None for eval_fraction=0).

  Raises:
    UserError: a bad file, row or option, by name and row number.
  """
  reading.check_options(max_length, overlong, eval_fraction)

  def encode(value, counts):
    return encode_steps(
      tok, value, options, max_length, overlong, counts, separator
    )

  def assemble(kept, counts):
    counts['steps'] = sum(int(example.loss_mask.sum()) for example, _ in kept)
    labels = np.concatenate([labels for _, labels in kept])
    examples = examples_lib.from_list(example for example, _ in kept)
    return Steps(reading.digested(examples, labels), labels, counts)

  return reading.load_completions(
    path,
    encode,
    assemble,
    name='completion',
    counted=('steps',),
    remedy='give rows with a step that fits data.max_length',
    eval_fraction=eval_fraction,
    field=field,
    on_bytes=on_bytes,
  )


def encode_steps(
  tok,
  value: dict[str, Any],
  options: RowOptions,
  max_length: int,
  overlong: str,
  counts: dict[str, int],
  separator: str = '\n',
) -> tuple[list[tuple[Example, np.ndarray]], list[str]]:
  """What is learned of a row: the ends of its steps, or nothing.

  Args:
    tok: a `Tokenizer`.
    value: of SHAPE.
    options: how rows are read.
    max_length, overlong, separator: as for `load_steps`.
    counts: why a row is left out, or that it is cut, is counted up.

  Returns:
    [(example, float32 labels of its tokens)] or [], and the columns that were
    not read.

  Raises:
    UserError: the row is refused.
  """
  row = parse_row(value, bool(tok.chat_templates), options)
  unread = examples_lib.unread_columns(tok, [row.prompt], options)
  if not row.steps:
    counts['empty'] += 1
    return [], unread
  example, labels = _encode(tok, row, separator)
  fitted = reading.fit_row([example], max_length, overlong, counts)
  kept = [(part, labels[: len(part.tokens)]) for (part,) in fitted]
  return kept, unread


class StepRow(NamedTuple):
  """A prompt without a completion, steps, and which of them are right."""

  prompt: shapes.Row
  steps: list[str]
  labels: list[bool]


def parse_row(
  value: dict[str, Any],
  has_template: bool = True,
  options: RowOptions = RowOptions(),
) -> StepRow:
  """Prompt, steps and labels of a row.

  Args:
    value: of SHAPE.
    has_template: the tokenizer has a chat template.
    options: of the run.

  Raises:
    UserError: the row is not of SHAPE.
  """
  columns = Columns(value, options.ignore)
  for name in ('completions', 'labels'):
    if name not in columns:
      raise UserError(
        f'has no {name!r} (its keys: {shapes.listed(columns)}); known is'
        f' {SHAPE}'
      )
  steps, labels = columns.take('completions'), columns.take('labels')
  if not isinstance(steps, list) or not all(isinstance(s, str) for s in steps):
    raise UserError(f'completions={show(steps)}: give a list of strings')
  if not isinstance(labels, list) or not all(
    isinstance(label, (bool, int)) and label in (0, 1) for label in labels
  ):
    raise UserError(f'labels={show(labels)}: give a list of true and false')
  if len(steps) != len(labels):
    raise UserError(
      f'has {len(steps)} completions and {len(labels)} labels: label each step'
    )
  prompt = shapes.read_prompt(columns, has_template, options)
  return StepRow(shapes.finished(columns, prompt), steps, labels)


def _encode(tok, row: StepRow, separator: str) -> tuple[Example, np.ndarray]:
  """An example and float32 labels of its tokens."""
  ids = list(examples_lib.encode_prompt_row(tok, row.prompt))
  weights, marks = [0.0] * len(ids), [0.0] * len(ids)
  for step, label in zip(row.steps, row.labels):
    part = tok.encode(step, bos=False)
    if separator:
      part = part + tok.encode(separator, bos=False)
    if not part:
      raise UserError(f'completions has an empty step: {show(row.steps)}')
    ids += part
    weights += [0.0] * (len(part) - 1) + [1.0]
    marks += [0.0] * (len(part) - 1) + [float(label)]
  example = Example(np.array(ids, np.int32), np.array(weights, np.float32))
  return example, np.array(marks, np.float32)
