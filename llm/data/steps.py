"""Completions in steps, each labelled right or wrong (process rewards)."""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from llm.data import examples as examples_lib
from llm.data import reading
from llm.data.examples import Example, Examples
from llm.errors import UserError
from llm.text import chat

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
    field: the config field of `path`, for messages.
    on_bytes: progress, called with (bytes done, bytes in all).

  Returns:
    completions to train on, and those held out (None for eval_fraction=0).

  Raises:
    UserError: a bad file, row or option, by name and row number.
  """
  reading.check_options(max_length, overlong, eval_fraction)

  def encode(value, counts):
    found = _encode(tok, value, separator)
    if found is None:
      counts['empty'] += 1
      return []
    example, labels = found
    fitted = reading.fit_row([example], max_length, overlong, counts)
    return [(part, labels[: len(part.tokens)]) for (part,) in fitted]

  def assemble(kept, counts):
    counts['steps'] = int(sum(example.loss_mask.sum() for example, _ in kept))
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


def parse_row(
  value: dict[str, Any],
) -> tuple[str | list[dict], list[str], list[bool]]:
  """Prompt, steps and labels of a row.

  Raises:
    UserError: the row is not of SHAPE.
  """
  for name in ('prompt', 'completions', 'labels'):
    if value.get(name) is None:
      keys = ', '.join(map(repr, value)) or 'none'
      raise UserError(f'has no {name!r} (its keys: {keys}); known is {SHAPE}')
  prompt, steps, labels = (
    value[name] for name in ('prompt', 'completions', 'labels')
  )
  if not isinstance(steps, list) or not all(isinstance(s, str) for s in steps):
    raise UserError(f'completions={steps!r}: give a list of strings')
  if not isinstance(labels, list) or not all(
    isinstance(label, bool) or (label in (0, 1)) for label in labels
  ):
    raise UserError(f'labels={labels!r}: give a list of true and false')
  if len(steps) != len(labels):
    raise UserError(
      f'has {len(steps)} completions and {len(labels)} labels: label each step'
    )
  if not isinstance(prompt, (str, list)):
    raise UserError(f'prompt={prompt!r}: give a string or a list of messages')
  return prompt, steps, labels


def _encode(
  tok, value: dict[str, Any], separator: str
) -> tuple[Example, np.ndarray] | None:
  """An example and float32 labels of its tokens; None for a row of no step."""
  prompt, steps, labels = parse_row(value)
  if not steps:
    return None
  is_text = isinstance(prompt, str)
  ids = list(tok.encode(prompt) if is_text else chat.encode(tok, prompt))
  mask, marks = [False] * len(ids), [0.0] * len(ids)
  for step, label in zip(steps, labels):
    part = tok.encode(step, bos=False)
    if separator:
      part = part + tok.encode(separator, bos=False)
    if not part:
      raise UserError(f'completions has an empty step: {steps!r}')
    ids += part
    mask += [False] * (len(part) - 1) + [True]
    marks += [0.0] * (len(part) - 1) + [float(label)]
  example = Example(np.array(ids, np.int32), np.array(mask, bool))
  return example, np.array(marks, np.float32)
