"""Preference rows: a prompt with a better and a worse completion.

Each row becomes two examples, one after the other (`Examples` 2i and 2i + 1),
with the same rules for tokens and loss masks as in fine-tuning.
"""

from collections.abc import Callable
import dataclasses
import math
import re
from typing import Any

import numpy as np

from llm.data import examples as examples_lib
from llm.data import reading, shapes
from llm.data.examples import EmptyCompletionError, Examples
from llm.errors import UserError

SHAPES = (
  '{"prompt": …, "chosen": …, "rejected": …} (strings or message lists)',
  '{"chosen": […], "rejected": […]} (whole conversations)',
  '{"instruction": …, "input": …, "chosen": …, "rejected": …} (Alpaca)',
  '{"conversations": […], "chosen": {…}, "rejected": {…}} (ShareGPT)',
)
# Anthropic's hh-rlhf has each conversation as one string.
_HH_TURN = re.compile(r'\n\n(Human|Assistant): ?')
_HH_ROLES = {'Human': 'user', 'Assistant': 'assistant'}


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Preference pairs as token ids.

  Attributes:
    examples: 2N of them: the chosen completion of pair i is example 2i, the
      rejected one 2i + 1, each with its prompt.
    margins: float32[N], by how much the chosen one is better; 0 for a row
      without `margin`.
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

  Real files have pairs that teach nothing. They are left out and counted:
  'empty', a completion without text; 'equal', twice the same tokens; 'emptied',
  a completion of which `max_length` leaves no token.

  Args:
    path: see `records.read_records`.
    tok: a `Tokenizer`.
    max_length: tokens of a prompt with one completion.
    overlong: 'truncate' (the end of the completion) or 'drop' (the pair).
    eval_fraction: the share of the pairs that is held out, the last ones.
    field: the config field of `path`, for messages.
    on_bytes: progress, called with (bytes done, bytes in all).

  Returns:
    pairs to train on, and those held out (None for eval_fraction=0).

  Raises:
    UserError: a bad file, row or option, by name and row number.
  """
  reading.check_options(max_length, overlong, eval_fraction)

  def encode(value, counts):
    try:
      pair, margin = _encode(tok, value)
    except EmptyCompletionError:
      counts['empty'] += 1
      return []
    fitted = reading.fit_row(pair, max_length, overlong, counts)
    pair = [example for (example,) in fitted]
    if pair and np.array_equal(pair[0].tokens, pair[1].tokens):
      counts['equal'] += 1
      return []
    return [(pair, margin)] if pair else []

  def assemble(kept, counts):
    margins = np.array([margin for _, margin in kept], np.float32)
    examples = examples_lib.from_list(e for pair, _ in kept for e in pair)
    return Pairs(reading.digested(examples, margins), margins, counts)

  return reading.load_completions(
    path,
    encode,
    assemble,
    name='pair',
    counted=('equal',),
    remedy=(
      'give rows whose chosen and rejected answers differ and fit '
      'data.max_length'
    ),
    eval_fraction=eval_fraction,
    field=field,
    on_bytes=on_bytes,
  )


def canonical_pair(value: dict[str, Any]) -> tuple[dict, dict]:
  """A preference row as two rows that `shapes.canonical_row` knows.

  Args:
    value: of one of SHAPES.

  Returns:
    the row with the chosen and the row with the rejected completion.

  Raises:
    UserError: no known shape, or a part of a wrong type.
  """
  value = {k: v for k, v in value.items() if v is not None}
  if not {'chosen', 'rejected'} <= set(value):
    keys = ', '.join(map(repr, value)) or 'none'
    raise UserError(
      f'is no preference row (its keys: {keys}); known are {"; ".join(SHAPES)}'
    )
  names = ('chosen', 'rejected')
  completions = [_messages_of(value[name], name) for name in names]
  if type(completions[0]) is not type(completions[1]):
    raise UserError('chosen and rejected are of two kinds: give two of one')
  if 'conversations' in value:
    turns = shapes.canonical_row(
      {'conversations': value['conversations']}, True
    )
    return _continued(turns.messages, completions)
  if 'instruction' in value:
    rest = {
      k: value[k] for k in ('instruction', 'input', 'system') if k in value
    }
    return tuple({**rest, 'output': value[name]} for name in names)
  if 'prompt' in value:
    prompt = value['prompt']
    if isinstance(prompt, list):
      return _continued(prompt, completions)
    if isinstance(completions[0], str):
      return tuple({'prompt': prompt, 'completion': c} for c in completions)
    return _continued([{'role': 'user', 'content': prompt}], completions)
  if isinstance(completions[0], str):
    completions = [_read_hh(c, name) for c, name in zip(completions, names)]
  shared = _common_turns(*completions)
  return _continued(completions[0][:shared], [c[shared:] for c in completions])


def parse_row(
  value: dict[str, Any], has_template: bool = True
) -> tuple[list[shapes.Row], float]:
  """A preference row as it is encoded: two rows, chosen first, and its margin.

  Args:
    value: of one of SHAPES.
    has_template: the tokenizer has a chat template.

  Raises:
    UserError: no known shape, or a part of a wrong type.
  """
  margin = value.get('margin')
  margin = 0.0 if margin is None else margin
  if isinstance(margin, bool) or not isinstance(margin, (int, float)):
    raise UserError(f'margin={margin!r}: give a number')
  if not math.isfinite(margin):
    raise UserError(f'margin={margin!r}: give a finite number')
  rows = [
    shapes.canonical_row(row, has_template) for row in canonical_pair(value)
  ]
  return rows, float(margin)


def _encode(tok, value: dict):
  """Two examples, chosen first, and the margin of a row."""
  rows, margin = parse_row(value, bool(tok.chat_templates))
  return [examples_lib.encode_row(tok, row) for row in rows], margin


def _messages_of(value, name: str):
  """A completion as a string or a list of messages."""
  if isinstance(value, str):
    return value
  if isinstance(value, dict):
    value = [value]
  if not isinstance(value, list) or not value:
    raise UserError(f'{name}={value!r}: give a string or a list of messages')
  return shapes.canonical_row({'conversations': value}, True).messages


def _continued(before: list[dict], completions: list) -> tuple[dict, dict]:
  """Rows whose prompt is a list of messages."""
  lists = [
    [{'role': 'assistant', 'content': c}] if isinstance(c, str) else c
    for c in completions
  ]
  return tuple({'prompt': before, 'completion': c} for c in lists)


def _read_hh(text: str, name: str) -> list[dict]:
  """The messages of a conversation that hh-rlhf wrote as one string."""
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
  """How many turns two conversations share, their last ones aside."""
  most = min(len(chosen), len(rejected)) - 1
  for number in range(most):
    if chosen[number] != rejected[number]:
      return number
  return most
