"""Preference rows: a prompt with a better and a worse completion.

Each row becomes two examples, one after the other (`Examples` 2i and 2i + 1),
with the same rules for tokens and loss masks as in fine-tuning.
"""

from collections.abc import Callable
import dataclasses
import re
from typing import Any

import numpy as np

from llm.data import examples as examples_lib
from llm.data import reading, shapes
from llm.data.columns import Columns, RowOptions, string, take_shared
from llm.data.conversations import (
  COLUMNS,
  Turns,
  joined,
  plain_turns,
  read_turns,
  say,
)
from llm.data.examples import EmptyCompletionError, Example, Examples
from llm.errors import UserError
from llm.text.messages import show

_NAMES = ('chosen', 'rejected')
SHAPES = (
  '{"prompt": …, "chosen": …, "rejected": …} (strings or message lists)',
  '{"chosen": […], "rejected": […]} (whole conversations)',
  '{"instruction": …, "input": …, "chosen": …, "rejected": …} (or "question")',
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
  options: RowOptions = RowOptions(),
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
    options: how rows are read.
    field: the config field of `path`, for messages.
    on_bytes: progress, called with (bytes done, bytes in all).

  Returns:
    pairs to train on, and those held out (None for eval_fraction=0).

  Raises:
    UserError: a bad file, row or option, by name and row number.
  """
  reading.check_options(max_length, overlong, eval_fraction)

  def encode(value, counts):
    return encode_pair(tok, value, options, max_length, overlong, counts)

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
      'give rows whose chosen and rejected completions differ and fit '
      'data.max_length'
    ),
    eval_fraction=eval_fraction,
    field=field,
    on_bytes=on_bytes,
  )


def encode_pair(
  tok,
  value: dict[str, Any],
  options: RowOptions,
  max_length: int,
  overlong: str,
  counts: dict[str, int],
) -> tuple[list[tuple[list[Example], float]], list[str]]:
  """What is learned of a row: a pair with its margin, or nothing.

  Args:
    tok: a `Tokenizer`.
    value: of one of SHAPES.
    options: how rows are read.
    max_length, overlong: as for `load_pairs`.
    counts: why a row is left out, or that it is cut, is counted up.

  Returns:
    [([chosen, rejected], margin)] or [], and the columns that were not read.

  Raises:
    UserError: the row is refused.
  """
  rows, margin = parse_row(value, bool(tok.chat_templates), options)
  unread = examples_lib.unread_columns(tok, rows, options)
  try:
    pair = [encode_rated(tok, row, options) for row in rows]
  except EmptyCompletionError:
    counts['empty'] += 1
    return [], unread
  fitted = reading.fit_row(pair, max_length, overlong, counts)
  pair = [example for (example,) in fitted]
  if pair and np.array_equal(pair[0].tokens, pair[1].tokens):
    counts['equal'] += 1
    return [], unread
  return ([(pair, margin)] if pair else []), unread


def parse_row(
  value: dict[str, Any],
  has_template: bool = True,
  options: RowOptions = RowOptions(),
) -> tuple[list[shapes.Row], float]:
  """A preference row as it is encoded: two rows, chosen first, and its margin.

  Args:
    value: of one of SHAPES.
    has_template: the tokenizer has a chat template.
    options: of the run.

  Raises:
    UserError: no known shape, or a part of a wrong type.
  """
  columns = Columns(value, options.ignore)
  margin = _margin(columns.take('margin', 0.0))
  rows = read_pair(columns, has_template, options)
  return [shapes.finished(columns, row) for row in rows], margin


def read_pair(
  columns: Columns, has_template: bool, options: RowOptions
) -> list[shapes.Row]:
  """The rows with the chosen and with the rejected completion.

  Raises:
    UserError: no known shape, or a part of a wrong type.
  """
  if not all(name in columns for name in _NAMES):
    raise UserError(
      f'is no preference row (its keys: {shapes.listed(columns)}); known are '
      f'{"; ".join(SHAPES)}'
    )
  completions = [_completion_of(columns.take(name), name) for name in _NAMES]
  if isinstance(completions[0], str) != isinstance(completions[1], str):
    raise UserError('chosen and rejected are of two kinds: give two of one')
  if _are_whole(columns, completions):
    turns = [
      _read_hh(c, name) if isinstance(c, str) else c
      for c, name in zip(completions, _NAMES)
    ]
    whole = [(t, _common_turns(*turns)) for t in turns]
  elif isinstance(completions[0], str) and _is_text(columns, has_template):
    row = shapes.read_prompt(columns, has_template, options)
    return [
      dataclasses.replace(row, shape='pair', completion=c) for c in completions
    ]
  else:
    before = _prompt_turns(columns, completions)
    whole = [joined(before, _as_turns(c)) for c in completions]
  shared = take_shared(columns, options)
  return [
    shapes.as_row('pair', turns, shared, context) for turns, context in whole
  ]


def encode_rated(tok, row: shapes.Row, options: RowOptions) -> Example:
  """One completion that is rated as a whole.

  Raises:
    UserError: as `examples.encode_row`, or a turn has a weight besides 0 and 1.
  """
  other = [weight for weight in row.weights or () if weight not in (0, 1)]
  if other:
    raise UserError(
      f'a turn has the weight {other[0]:g}; a completion that is rated as a'
      ' whole has turns of weight 0 and 1 only'
    )
  return examples_lib.encode_row(tok, row, options.learn)


def _margin(margin) -> float:
  if isinstance(margin, bool) or not isinstance(margin, (int, float)):
    raise UserError(f'margin={show(margin)}: give a number')
  # An integer of the file may be beyond any float.
  if not abs(margin) <= float(np.finfo(np.float32).max):
    raise UserError(
      f'margin={show(margin)}: give a finite number that float32 holds'
    )
  return float(margin)


def _completion_of(value, name: str) -> str | Turns:
  """A completion as a string or as turns."""
  if isinstance(value, str):
    return value
  if isinstance(value, dict):
    value = [value]
  if not isinstance(value, list) or not value:
    raise UserError(
      f'{name}={show(value)}: give a string or a list of messages'
    )
  return read_turns(value, name)


def _are_whole(columns: Columns, completions: list) -> bool:
  """True where both completions are conversations with their prompt.

  A prompt beside two transcripts of hh-rlhf is the beginning of both.
  """
  sources = ('prompt', *COLUMNS, *shapes.QUESTIONS)
  if not any(name in columns for name in sources):
    return True
  texts = all(isinstance(c, str) for c in completions)
  if not texts or not all(_HH_TURN.match(c) for c in completions):
    return False
  prompt = columns.take('prompt') if 'prompt' in columns else ''
  if not isinstance(prompt, str) or not all(prompt in c for c in completions):
    raise UserError(
      f'prompt={show(prompt)}: chosen and rejected are whole conversations'
      ' ("\\n\\nHuman: …") that do not have it; give both without the prompt,'
      ' or the conversations alone'
    )
  return True


def _is_text(columns: Columns, has_template: bool) -> bool:
  """True where string completions follow a string, as it is."""
  if 'prompt' in columns:
    return isinstance(columns.take('prompt'), str)
  return not has_template and not any(name in columns for name in COLUMNS)


def _prompt_turns(columns: Columns, completions: list) -> Turns:
  """The turns before the two completions."""
  if 'prompt' in columns:
    prompt = columns.take('prompt')
    if isinstance(prompt, list):
      return read_turns(prompt, 'prompt')
    return say('user', string(prompt, 'prompt'))
  if name := columns.only(COLUMNS):
    turns = read_turns(columns.take(name), name)
    if turns.messages[-1]['role'] != 'assistant':
      return turns
    if turns in completions:  # the chosen conversation a second time
      return turns[: _common_turns(*completions)]
    raise UserError(
      f'{name}: ends with what the assistant says, and chosen and rejected'
      ' follow it; leave that message out'
    )
  return say('user', shapes.take_question(columns).text)


def _as_turns(completion: str | Turns) -> Turns:
  if isinstance(completion, str):
    return say('assistant', completion)
  return completion


def _read_hh(text: str, name: str) -> Turns:
  """The messages of a conversation that hh-rlhf wrote as one string."""
  start, *parts = _HH_TURN.split(text)
  if start.strip() or not parts:
    raise UserError(
      f'{name} is a string without a prompt beside it: give a prompt, or a '
      'conversation that begins with "\\n\\nHuman: "'
    )
  roles, contents = parts[::2], parts[1::2]
  return plain_turns(
    *(
      {'role': _HH_ROLES[role], 'content': content}
      for role, content in zip(roles, contents, strict=True)
    )
  )


def _common_turns(chosen: Turns, rejected: Turns) -> int:
  """How many turns two conversations share, their last ones aside."""
  most = min(len(chosen), len(rejected)) - 1
  for number in range(most):
    if chosen.messages[number] != rejected.messages[number]:
      return number
  return most
