"""Completions that are rated one by one, good or bad (KTO)."""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from llm.data import examples as examples_lib
from llm.data import pairs, reading, shapes
from llm.data.examples import EmptyCompletionError, Example, Examples
from llm.errors import UserError

SHAPES = (
  '{"prompt": …, "completion": …, "label": true} (strings or message lists)',
  '{"messages": […], "label": true} (or "conversations", or "kto_tag")',
  '{"instruction": …, "input": …, "output": …, "label": true} (Alpaca)',
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
    field: the config field of `path`, for messages.
    on_bytes: progress, called with (bytes done, bytes in all).

  Returns:
    completions to train on, and those held out (None for eval_fraction=0).

  Raises:
    UserError: a bad file, row or option, by name and row number.
  """
  reading.check_options(max_length, overlong, eval_fraction)

  def encode(value, counts):
    kept = []
    for example, good in _encode(tok, value, counts):
      for fitted in reading.fit_row([example], max_length, overlong, counts):
        kept.append((fitted[0], good))
    return kept

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
    (tokens, mask), (others, learned) = examples[index], examples[other]
    prompt, begin = tokens[: mask.argmax()], learned.argmax()
    joined = np.concatenate([prompt, others[begin:]])
    learned = np.concatenate([np.zeros(len(prompt), bool), learned[begin:]])
    if np.array_equal(prompt, others[:begin]):
      learned[:] = False
    out.append(Example(joined[:max_length], learned[:max_length]))
  return out


def parse_row(
  value: dict[str, Any], has_template: bool = True
) -> list[tuple[shapes.Row, bool]]:
  """A row as it is encoded: its completions, and which of them are good.

  Args:
    value: of one of SHAPES.
    has_template: the tokenizer has a chat template.

  Raises:
    UserError: no known shape, or a part of a wrong type.
  """
  value = {k: v for k, v in value.items() if v is not None}
  if 'chosen' in value or 'rejected' in value:
    rows = zip(pairs.canonical_pair(value), (True, False), strict=True)
  else:
    rows = [_rated_row(value)]
  return [(shapes.canonical_row(row, has_template), good) for row, good in rows]


def _encode(tok, value: dict[str, Any], counts) -> list[tuple[Example, bool]]:
  """The completions of a row with their ratings; empty ones are counted."""
  out = []
  for row, good in parse_row(value, bool(tok.chat_templates)):
    try:
      out.append((examples_lib.encode_row(tok, row), good))
    except EmptyCompletionError:
      counts['empty'] += 1
  if len(out) == 2 and np.array_equal(out[0][0].tokens, out[1][0].tokens):
    counts['equal'] += 1
    return []
  return out


def _rated_row(value: dict[str, Any]) -> tuple[dict[str, Any], bool]:
  """A row that `shapes.canonical_row` knows, and its rating."""
  names = [name for name in ('label', 'kto_tag') if name in value]
  if len(names) != 1:
    keys = ', '.join(map(repr, value)) or 'none'
    raise UserError(
      f'is no rated completion (its keys: {keys}); known are '
      f'{"; ".join(SHAPES)}'
    )
  good = value[names[0]]
  if not isinstance(good, bool):
    raise UserError(f'{names[0]}={good!r}: give true (good) or false (bad)')
  for name in ('messages', 'conversations'):
    if name in value:
      row = shapes.canonical_row({name: value[name]}, True)
      last = row.messages[-1]
      if last['role'] != 'assistant':
        raise UserError(
          f'{name}: the last message is rated, and its role is '
          f'{last["role"]!r}; end with what the assistant says'
        )
      return {'prompt': row.messages[:-1], 'completion': [last]}, good
  return value, good
