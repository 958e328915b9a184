"""Completions that are rated one by one, good or bad (KTO)."""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from llm.data import examples as examples_lib
from llm.data import pairs, reading, shapes
from llm.data.columns import Columns, RowOptions
from llm.data.examples import EmptyCompletionError, Example, Examples
from llm.errors import UserError
from llm.text.messages import show

SHAPES = (
  '{"prompt": …, "completion": …, "label": true} (strings or message lists)',
  '{"messages": […], "label": true} (or "conversations", or "kto_tag")',
  '{"instruction": …, "input": …, "output": …, "label": true} (or "question")',
  'preference pairs, {"prompt": …, "chosen": …, "rejected": …}',
)


@dataclasses.dataclass(frozen=True)
class Rated:
  """Rated completions as token ids.

  Attributes:
    examples: N of them, each a prompt with one completion.
    desirable: bool[N].
    counts: 'rows', 'completions', and those left out (see `load_rated`).
  """

  examples: Examples
  desirable: np.ndarray
  counts: dict[str, int]

  def __len__(self) -> int:
    return len(self.desirable)

  def part(self, start: int, stop: int) -> 'Rated':
    """Completions `start` to `stop`."""
    return dataclasses.replace(
      self,
      examples=self.examples.part(start, stop),
      desirable=self.desirable[start:stop],
    )


def load_rated(
  path,
  tok,
  *,
  max_length: int,
  overlong: str = 'truncate',
  eval_fraction: float = 0.0,
  options: RowOptions = RowOptions(),
  field: str = 'data.path',
  on_bytes: Callable[[int, int], None] | None = None,
) -> tuple[Rated, Rated | None]:
  """Reads, checks and tokenizes files of rated completions.

  A preference pair becomes two of them, the good one first. Of a conversation
  the last message is the one that is rated. What teaches nothing is left out
  and counted as in `pairs.load_pairs`: 'empty', 'equal' (pairs), 'emptied'.

  Args:
    path: see `records.read_records`.
    tok: a `Tokenizer`.
    max_length: tokens of a prompt with its completion.
    overlong: 'truncate' (the end of the completion) or 'drop'.
    eval_fraction: the share of the completions held out, the last ones.
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
    return encode_completions(tok, value, options, max_length, overlong, counts)

  def assemble(kept, counts):
    ratings = np.array([good for _, good in kept], bool)
    examples = examples_lib.from_list(example for example, _ in kept)
    return Rated(reading.digested(examples, ratings), ratings, counts)

  return reading.load_completions(
    path,
    encode,
    assemble,
    name='completion',
    counted=('equal',),
    remedy='give rows with a completion that fits data.max_length',
    eval_fraction=eval_fraction,
    field=field,
    on_bytes=on_bytes,
  )


def encode_completions(
  tok,
  value: dict[str, Any],
  options: RowOptions,
  max_length: int,
  overlong: str,
  counts: dict[str, int],
) -> tuple[list[tuple[Example, bool]], list[str]]:
  """What is learned of a row: completions, and which of them are good.

  Args:
    tok: a `Tokenizer`.
    value: of one of SHAPES.
    options: how rows are read.
    max_length, overlong: as for `load_rated`.
    counts: why a completion is left out, or that it is cut, is counted up.

  Returns:
    up to two completions, and the columns that were not read.

  Raises:
    UserError: the row is refused.
  """
  rows = parse_row(value, bool(tok.chat_templates), options)
  kept = []
  for example, good in _encode(tok, rows, options, counts):
    for fitted in reading.fit_row([example], max_length, overlong, counts):
      kept.append((fitted[0], good))
  unread = [row for row, _ in rows]
  return kept, examples_lib.unread_columns(tok, unread, options)


def mismatched(
  examples: Examples, indices: np.ndarray, max_length: int
) -> list[Example]:
  """Each prompt with the completion of the next example, in a circle.

  KTO estimates its KL on these. A completion is cut off where the row is full.
  The mask is empty where a prompt leaves no room, and where the neighbour has
  the same prompt (the two completions of a pair).

  Args:
    examples: of `Rated`.
    indices: int[M], of a batch, in its order.
    max_length: tokens of a row.
  """
  out = []
  for index, other in zip(indices, np.roll(indices, -1), strict=True):
    tokens, others = examples[index].tokens, examples[other].tokens
    mask, learned = examples[index].loss_mask, examples[other].loss_mask
    prompt, begin = tokens[: mask.argmax()], learned.argmax()
    joined = np.concatenate([prompt, others[begin:]])
    learned = np.concatenate([np.zeros(len(prompt), bool), learned[begin:]])
    if np.array_equal(prompt, others[:begin]):
      learned[:] = False
    weights = learned[:max_length].astype(np.float32)
    out.append(Example(joined[:max_length], weights))
  return out


def parse_row(
  value: dict[str, Any],
  has_template: bool = True,
  options: RowOptions = RowOptions(),
) -> list[tuple[shapes.Row, bool]]:
  """A row as it is encoded: its completions, and which of them are good.

  Args:
    value: of one of SHAPES.
    has_template: the tokenizer has a chat template.
    options: of the run.

  Raises:
    UserError: no known shape, or a part of a wrong type.
  """
  columns = Columns(value, options.ignore)
  if 'chosen' in columns or 'rejected' in columns:
    rows = pairs.read_pair(columns, has_template, options)
    goods = (True, False)
  else:
    goods = (_take_label(columns),)
    rows = [_last_turn(shapes.read_row(columns, has_template, options))]
  return [
    (shapes.finished(columns, row), good)
    for row, good in zip(rows, goods, strict=True)
  ]


def _encode(
  tok, rows: list[tuple[shapes.Row, bool]], options: RowOptions, counts
) -> list[tuple[Example, bool]]:
  """The completions of a row with their ratings; empty ones are counted."""
  out = []
  for row, good in rows:
    try:
      out.append((pairs.encode_rated(tok, row, options), good))
    except EmptyCompletionError:
      counts['empty'] += 1
  if len(out) == 2 and np.array_equal(out[0][0].tokens, out[1][0].tokens):
    counts['equal'] += 1
    return []
  return out


def _take_label(columns: Columns) -> bool:
  name = columns.only(('label', 'kto_tag'))
  if name is None:
    raise UserError(
      f'is no rated completion (its keys: {shapes.listed(columns)}); known are '
      f'{"; ".join(SHAPES)}'
    )
  good = columns.take(name)
  if not isinstance(good, bool):
    raise UserError(f'{name}={show(good)}: give true (good) or false (bad)')
  return good


def _last_turn(row: shapes.Row) -> shapes.Row:
  """A conversation of which the last message is rated.

  A row with a prompt of its own is rated in all that follows the prompt.
  """
  if row.messages is None or row.learn_from:
    return row
  last = row.messages[-1]
  if last['role'] != 'assistant':
    raise UserError(
      f'{row.shape}: the last message is rated, and its role is '
      f'{last["role"]!r}; end with what the assistant says'
    )
  return dataclasses.replace(row, learn_from=len(row.messages) - 1)
