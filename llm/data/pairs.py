"""Preference rows: a prompt with a better and a worse answer.

Each row becomes two examples, one after the other (`Examples` 2i and 2i + 1),
with the same rules for tokens and loss masks as in fine-tuning.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import math
import re
from typing import Any

import numpy as np

from llm.data import examples as examples_lib
from llm.data import records, shapes
from llm.data.examples import EmptyAnswerError, Example, Examples
from llm.errors import UserError

SHAPES = (
  '{"prompt": …, "chosen": …, "rejected": …} (strings or message lists)',
  '{"chosen": […], "rejected": […]} (whole conversations)',
  '{"instruction": …, "input": …, "chosen": …, "rejected": …} (Alpaca)',
  '{"conversations": […], "chosen": {…}, "rejected": {…}} (ShareGPT)',
)
# Anthropic's hh-rlhf writes a conversation as one string.
_HH_TURN = re.compile(r'\n\n(Human|Assistant): ?')
_HH_ROLES = {'Human': 'user', 'Assistant': 'assistant'}


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Preference pairs as token ids.

  Attributes:
    examples: 2N of them: the chosen answer of pair i is example 2i, the
      rejected one 2i + 1, each with its prompt.
    margins: float32[N], by how much the chosen answer is better, 0 where a row
      has no `margin`.
    counts: 'rows', 'pairs', and those left out (see `load_pairs`).
  """

  examples: Examples
  margins: np.ndarray
  counts: dict[str, int]

  def __len__(self) -> int:
    return len(self.margins)

  def part(self, start: int, stop: int) -> 'Pairs':
    """Pairs `start` to `stop`."""
    return dataclasses.replace(
      self,
      examples=self.examples.part(2 * start, 2 * stop),
      margins=self.margins[start:stop],
    )


def load_pairs(
  path,
  tok,
  *,
  max_length: int,
  overlong: str = 'truncate',
  eval_fraction: float = 0.0,
  field: str = 'data.path',
  on_bytes: Callable[[int, int], None] | None = None,
) -> tuple[Pairs, Pairs | None]:
  """Reads, checks and tokenizes files of preference rows.

  Real files have pairs that say nothing, and those are left out and counted:
  'empty', an answer without text; 'equal', twice the same tokens; 'emptied', an
  answer that `max_length` cuts away.

  Args:
    path: see `records.read_records`.
    tok: a `Tokenizer`.
    max_length: tokens of a prompt with one answer.
    overlong: 'truncate' (the end of the answer) or 'drop' (the pair).
    eval_fraction: the share of the pairs that is held out, the last ones.
    field: the config field of `path`, for messages.
    on_bytes: progress, called with (bytes done, bytes in all).

  Returns:
    pairs to train on, and those held out (None for eval_fraction=0).

  Raises:
    UserError: a bad file, row or option, by name and row number.
  """
  check_options(max_length, overlong, eval_fraction)
  counts = dict.fromkeys(
    ('rows', 'pairs', 'truncated', 'dropped', 'emptied', 'empty', 'equal'), 0
  )
  kept, margins = [], []
  for record in records.read_records(path, field=field, on_bytes=on_bytes):
    counts['rows'] += 1
    try:
      pair, margin = _encode(tok, record.value)
    except EmptyAnswerError:
      counts['empty'] += 1
      continue
    except UserError as error:
      raise UserError(f'{record.where}: {error}') from None
    fitted = _fit(pair, max_length, overlong, counts)
    if fitted is not None:
      kept += fitted
      margins.append(margin)
  counts['pairs'] = len(margins)
  if not kept:
    left_out = ', '.join(f'{n} {name}' for name, n in counts.items() if n)
    raise UserError(
      f'{field}: no pair is left ({left_out}); give rows whose chosen and '
      'rejected answers differ and fit data.max_length'
    )
  margins = np.array(margins, np.float32)
  pairs = Pairs(
    digested(examples_lib.from_list(kept), margins), margins, counts
  )
  return hold_out(pairs, eval_fraction, 'pairs')


def check_options(max_length: int, overlong: str, eval_fraction: float) -> None:
  """Refuses values of `data` that have no meaning for rated answers."""
  examples_lib.check_options(max_length, overlong)
  if overlong == 'split':
    raise UserError(
      "data.overlong='split': answers are truncated or dropped, for the parts "
      'of one cannot be rated'
    )
  if not 0.0 <= eval_fraction < 1.0:
    raise UserError(
      f'data.eval_fraction={eval_fraction}: use 0.0 or more, below 1.0'
    )


def hold_out(data: Any, eval_fraction: float, name: str) -> tuple[Any, Any]:
  """(the part to train on, the last `eval_fraction` of it or None).

  Args:
    data: has a length and `part(start, stop)`.
    eval_fraction: from 0 to 1; 0 holds nothing out.
    name: what it is made of, for messages.

  Raises:
    UserError: one of the two would be empty.
  """
  if not eval_fraction:
    return data, None
  train = int(len(data) * (1 - eval_fraction) + 1e-9)
  if not 0 < train < len(data):
    raise UserError(
      f'data.eval_fraction={eval_fraction}: of {len(data)} {name} it leaves '
      f'{train} to train on; both parts need at least one'
    )
  return data.part(0, train), data.part(train, len(data))


def digested(examples: Examples, ratings: np.ndarray) -> Examples:
  """The examples, their ratings part of the content that a resumed run has."""
  content = examples.digest.encode() + ratings.tobytes()
  return dataclasses.replace(
    examples, digest=hashlib.sha256(content).hexdigest()
  )


def fit_answer(
  example: Example, max_length: int, overlong: str, counts: dict[str, int]
) -> Example | None:
  """The example in a row of `max_length`; None, and counted, if none is left.

  Args:
    example: a prompt with an answer under the mask.
    max_length: tokens of a row.
    overlong: 'truncate' or 'drop'.
    counts: 'truncated', 'dropped' and 'emptied' are counted here.
  """
  if len(example.tokens) <= max_length:
    return example
  if overlong == 'drop':
    counts['dropped'] += 1
    return None
  fitted = list(examples_lib.fit_example(example, max_length, overlong, False))
  counts['truncated' if fitted else 'emptied'] += 1
  return fitted[0] if fitted else None


def canonical_pair(value: dict[str, Any]) -> tuple[dict, dict]:
  """A preference row as two rows that `shapes.canonical_row` knows.

  Args:
    value: of one of SHAPES.

  Returns:
    the row with the chosen and the row with the rejected answer.

  Raises:
    UserError: no known shape, or a part of a wrong type.
  """
  value = {k: v for k, v in value.items() if v is not None}
  if not {'chosen', 'rejected'} <= set(value):
    keys = ', '.join(map(repr, value)) or 'none'
    raise UserError(
      f'is no preference row (its keys: {keys}); known are {"; ".join(SHAPES)}'
    )
  answers = [_messages_of(value[name], name) for name in ('chosen', 'rejected')]
  if type(answers[0]) is not type(answers[1]):
    raise UserError('chosen and rejected are of two kinds: give two of one')
  if 'conversations' in value:
    turns = shapes.canonical_row(
      {'conversations': value['conversations']}, True
    )
    return _continued(turns.messages, answers)
  if 'instruction' in value:
    rest = {
      k: value[k] for k in ('instruction', 'input', 'system') if k in value
    }
    return tuple({**rest, 'output': value[n]} for n in ('chosen', 'rejected'))
  if 'prompt' in value:
    prompt = value['prompt']
    if isinstance(prompt, list):
      return _continued(prompt, answers)
    if isinstance(answers[0], str):
      return tuple({'prompt': prompt, 'completion': a} for a in answers)
    return _continued([{'role': 'user', 'content': prompt}], answers)
  if isinstance(answers[0], str):
    answers = [_read_hh(a, n) for a, n in zip(answers, ('chosen', 'rejected'))]
  shared = _common_turns(*answers)
  return _continued(answers[0][:shared], [a[shared:] for a in answers])


def _encode(tok, value: dict):
  """Two examples, chosen first, and the margin of a row."""
  margin = value.get('margin')
  margin = 0.0 if margin is None else margin
  if isinstance(margin, bool) or not isinstance(margin, (int, float)):
    raise UserError(f'margin={margin!r}: give a number')
  if not math.isfinite(margin):
    raise UserError(f'margin={margin!r}: give a finite number')
  has_template = bool(tok.chat_templates)
  return [
    examples_lib.encode_row(tok, shapes.canonical_row(row, has_template))
    for row in canonical_pair(value)
  ], float(margin)


def _fit(pair, max_length: int, overlong: str, counts: dict[str, int]):
  """The pair in rows of `max_length`; None, and counted, if none is left."""
  if max(len(example.tokens) for example in pair) > max_length:
    if overlong == 'drop':
      counts['dropped'] += 1
      return None
    fitted = [
      list(examples_lib.fit_example(example, max_length, overlong, False))
      for example in pair
    ]
    if not all(fitted):
      counts['emptied'] += 1
      return None
    counts['truncated'] += 1
    pair = [examples[0] for examples in fitted]
  if np.array_equal(pair[0].tokens, pair[1].tokens):
    counts['equal'] += 1
    return None
  return pair


def _messages_of(answer, name: str):
  """An answer as a string or a list of messages."""
  if isinstance(answer, str):
    return answer
  if isinstance(answer, dict):
    answer = [answer]
  if not isinstance(answer, list) or not answer:
    raise UserError(f'{name}={answer!r}: give a string or a list of messages')
  return shapes.canonical_row({'conversations': answer}, True).messages


def _continued(before: list[dict], answers: list) -> tuple[dict, dict]:
  """Rows whose prompt is a list of messages."""
  lists = [
    [{'role': 'assistant', 'content': a}] if isinstance(a, str) else a
    for a in answers
  ]
  return tuple({'prompt': before, 'completion': a} for a in lists)


def _read_hh(text: str, name: str) -> list[dict]:
  """A conversation in hh-rlhf's one string as messages."""
  start, *parts = _HH_TURN.split(text)
  if start.strip() or not parts:
    raise UserError(
      f'{name} is a string without a prompt beside it: give a prompt, or a '
      'conversation that begins with "\\n\\nHuman: "'
    )
  roles, contents = parts[::2], parts[1::2]
  return [
    {'role': _HH_ROLES[role], 'content': content}
    for role, content in zip(roles, contents, strict=True)
  ]


def _common_turns(chosen: list[dict], rejected: list[dict]) -> int:
  """How many turns two conversations share before their last answers."""
  most = min(len(chosen), len(rejected)) - 1
  for number in range(most):
    if chosen[number] != rejected[number]:
      return number
  return most
