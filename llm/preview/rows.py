"""What a training run makes of one row, by the functions that it reads with."""

import collections
from collections.abc import Callable
import dataclasses
import sys
from typing import Any

from llm.data import dataset, pairs, prompts, rated, steps
from llm.data.columns import Columns, RowOptions
from llm.data.examples import Example
from llm.errors import UserError

# Why a row is left out, by the name that training counts it under.
_WHY = {
  'empty': 'a completion is empty',
  'equal': 'chosen and rejected are the same tokens',
  'dropped': 'has {length} tokens, more than data.max_length={limit}',
  'emptied': (
    'has {length} tokens, and nothing to learn is among the first'
    ' data.max_length={limit}'
  ),
  'overlong': 'has {length} tokens, more than data.max_length={limit}',
}


@dataclasses.dataclass(frozen=True)
class Reader:
  """How a run reads its rows.

  Attributes:
    kind: one of KINDS.
    tok: a `Tokenizer`.
    options: see `RowOptions`.
    max_length, overlong: the fields of `data`.
    separator: what ends a step, for kind='reward' with labelled steps.
  """

  kind: str
  tok: Any
  options: RowOptions
  max_length: int
  overlong: str = 'truncate'
  separator: str = '\n'


@dataclasses.dataclass(frozen=True)
class Seen:
  """One row as a run learns it, or why it is left out.

  Attributes:
    parts: examples by name: 'chosen' and 'rejected' of a pair, else ''.
    lengths: tokens of what shares a row of a batch: a text, a pair, or several
      windows of a text that was split.
    group: examples that share a row of a batch at least: 2 for pairs.
    length: tokens of the longest part before it was cut.
    cut: it was cut to data.max_length.
    missing: the parts of a pair that are left out, and why.
    left_out: why nothing is learned of the row, None otherwise.
    counted: the name that training counts the reason under; 'refused' where it
      would end the run.
    unread: columns that nothing is read from.
    extra: what else is known of the row: {'label': True}.
  """

  parts: dict[str, Example] = dataclasses.field(default_factory=dict)
  lengths: tuple[int, ...] = ()
  group: int = 1
  length: int = 0
  cut: bool = False
  missing: dict[str, str] = dataclasses.field(default_factory=dict)
  left_out: str | None = None
  counted: str | None = None
  unread: tuple[str, ...] = ()
  extra: dict[str, Any] = dataclasses.field(default_factory=dict)


# (reader, row, max_length, counts) -> Seen with its parts.
_See = Callable[[Reader, dict, int, dict], Seen]


def see_row(reader: Reader, value: dict[str, Any]) -> Seen:
  """One row as the run of this kind learns it.

  Args:
    reader: how rows are read.
    value: the row, as it stands in its file.
  """
  see = KINDS[reader.kind]
  try:
    counts = _counts()
    seen = see(reader, value, reader.max_length, counts)
    lengths = [len(part.tokens) for part in seen.parts.values()]
    length, cut = max(lengths, default=0), bool(counts['truncated'])
    if cut or any(
      counts[n] for n in ('dropped', 'emptied', 'overlong', 'split')
    ):
      whole = see(reader, value, sys.maxsize, _counts())
      length = max(len(part.tokens) for part in whole.parts.values())
      if counts['split']:
        seen = dataclasses.replace(seen, parts=whole.parts)
  except UserError as error:
    return Seen(left_out=str(error), counted='refused')
  limit = reader.max_length
  reasons = {
    name: why.format(length=length, limit=limit)
    for name, why in _WHY.items()
    if counts[name]
  }
  seen = dataclasses.replace(seen, length=length, cut=cut)
  if not reasons:
    return seen
  if seen.parts:  # the other completion of a pair
    gone = {'chosen', 'rejected'} - set(seen.parts)
    missing = dict.fromkeys(sorted(gone), '; '.join(reasons.values()))
    return dataclasses.replace(seen, missing=missing)
  counted, left_out = next(iter(reasons.items()))
  return dataclasses.replace(seen, left_out=left_out, counted=counted)


def _counts() -> collections.Counter:
  counts = collections.Counter()
  counts['shapes'] = {}
  return counts


def _see_text(reader: Reader, value: dict, max_length: int, counts) -> Seen:
  found, unread = dataset.encode_text(
    reader.tok, value, reader.options, max_length, reader.overlong, counts
  )
  return Seen(
    {'': found[0]} if found else {},
    tuple(len(example.tokens) for example in found),
    unread=tuple(unread),
  )


def _see_pair(reader: Reader, value: dict, max_length: int, counts) -> Seen:
  found, unread = pairs.encode_pair(
    reader.tok, value, reader.options, max_length, reader.overlong, counts
  )
  if not found:
    return Seen(unread=tuple(unread))
  [((chosen, rejected), margin)] = found
  return Seen(
    {'chosen': chosen, 'rejected': rejected},
    (len(chosen.tokens) + len(rejected.tokens),),
    group=2,
    unread=tuple(unread),
    extra={'margin': margin} if margin else {},
  )


def _see_rated(reader: Reader, value: dict, max_length: int, counts) -> Seen:
  found, unread = rated.encode_completions(
    reader.tok, value, reader.options, max_length, reader.overlong, counts
  )
  columns = Columns(value, reader.options.ignore)
  is_pair = 'chosen' in columns
  parts, extra = {}, {}
  for example, good in found:
    name = ('chosen' if good else 'rejected') if is_pair else ''
    parts[name] = example
    extra = {} if is_pair else {'label': good}
  lengths = tuple(len(example.tokens) for example, _ in found)
  return Seen(parts, lengths, unread=tuple(unread), extra=extra)


def _see_reward(reader: Reader, value: dict, max_length: int, counts) -> Seen:
  if 'completions' in Columns(value, reader.options.ignore):
    return _see_steps(reader, value, max_length, counts)
  return _see_pair(reader, value, max_length, counts)


def _see_steps(reader: Reader, value: dict, max_length: int, counts) -> Seen:
  found, unread = steps.encode_steps(
    reader.tok,
    value,
    reader.options,
    max_length,
    reader.overlong,
    counts,
    reader.separator,
  )
  if not found:
    return Seen(unread=tuple(unread))
  [(example, labels)] = found
  marks = [bool(label) for label in labels[example.loss_mask]]
  return Seen(
    {'': example},
    (len(example.tokens),),
    unread=tuple(unread),
    extra={'labels': marks},
  )


def _see_prompt(reader: Reader, value: dict, max_length: int, counts) -> Seen:
  found = prompts.encode_prompt(
    reader.tok, value, reader.options, max_length, counts
  )
  examples = prompts.as_examples(found)
  parts = {'': examples[0]} if found else {}
  return Seen(parts, tuple(examples.lengths.tolist()))


KINDS: dict[str, _See] = {
  'sft': _see_text,
  'preference': _see_pair,
  'kto': _see_rated,
  'reward': _see_reward,
  'rl': _see_prompt,
}
