"""Answers in steps, each of them labelled right or wrong (process rewards)."""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from llm.data import examples as examples_lib
from llm.data import pairs, records
from llm.data.examples import Example, Examples
from llm.errors import UserError
from llm.text import chat

SHAPE = (
  '{"prompt": …, "completions": [step, …], "labels": [true, …]} (the prompt a '
  'string or a message list)'
)


@dataclasses.dataclass(frozen=True)
class Steps:
  """Answers in labelled steps, as token ids.

  Attributes:
    examples: N of them; under the mask are the last tokens of the steps.
    labels: float32[total], beside `examples.tokens`: 1 at the last token of a
      right step, 0 elsewhere.
    counts: 'rows', 'answers', 'steps', and those left out.
  """

  examples: Examples
  labels: np.ndarray
  counts: dict[str, int]

  def __len__(self) -> int:
    return len(self.examples)

  def part(self, start: int, stop: int) -> 'Steps':
    """Answers `start` to `stop`."""
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

  Prompt, steps and separators are tokenized apart, as in TRL's PRMTrainer: so a
  step ends with a token, and the score of the steps so far does not depend on
  what follows. Answers that `max_length` leaves no end of a step are left out
  and counted as 'emptied', those without any step as 'empty'.

  Args:
    path: see `records.read_records`.
    tok: a `Tokenizer`.
    max_length: tokens of a prompt with its steps.
    overlong: 'truncate' (the last steps) or 'drop' (the answer).
    eval_fraction: the share of the answers that is held out, the last ones.
    separator: put after each step; the score is taken at its last token.
    field: the config field of `path`, for messages.
    on_bytes: progress, called with (bytes done, bytes in all).

  Returns:
    answers to train on, and those held out (None for eval_fraction=0).

  Raises:
    UserError: a bad file, row or option, by name and row number.
  """
  pairs.check_options(max_length, overlong, eval_fraction)
  counts = dict.fromkeys(
    (
      'rows',
      'answers',
      'steps',
      'truncated',
      'dropped',
      'emptied',
      'empty',
    ),
    0,
  )
  kept, labels = [], []
  for record in records.read_records(path, field=field, on_bytes=on_bytes):
    counts['rows'] += 1
    try:
      found = _encode(tok, record.value, separator)
    except UserError as error:
      raise UserError(f'{record.where}: {error}') from None
    if found is None:
      counts['empty'] += 1
      continue
    example = pairs.fit_answer(found[0], max_length, overlong, counts)
    if example is not None:
      kept.append(example)
      labels.append(found[1][: len(example.tokens)])
  counts['answers'] = len(kept)
  counts['steps'] = int(sum(example.loss_mask.sum() for example in kept))
  if not kept:
    raise UserError(f'{field}: no answer is left of {counts}')
  labels = np.concatenate(labels)
  examples = pairs.digested(examples_lib.from_list(kept), labels)
  return pairs.hold_out(
    Steps(examples, labels, counts), eval_fraction, 'answers'
  )


def _encode(
  tok, value: dict[str, Any], separator: str
) -> tuple[Example, np.ndarray] | None:
  """An answer and float32 labels of its tokens; None without a step."""
  for name in ('prompt', 'completions', 'labels'):
    if value.get(name) is None:
      keys = ', '.join(map(repr, value)) or 'none'
      raise UserError(f'has no {name!r} (its keys: {keys}); known is {SHAPE}')
  steps, labels = value['completions'], value['labels']
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
  if not steps:
    return None
  ids = list(_prompt_ids(tok, value['prompt']))
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


def _prompt_ids(tok, prompt) -> list[int]:
  if isinstance(prompt, list):
    return chat.encode(tok, prompt)
  if not isinstance(prompt, str):
    raise UserError(f'prompt={prompt!r}: give a string or a list of messages')
  return tok.encode(prompt)
