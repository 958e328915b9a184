"""From files to encoded rows: the loop that every loader of rows runs.

A loader gives `encode_records` a function that turns one row into the parts to
keep, none for a row that is left out; what is left out is counted.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import hashlib
from typing import Any

import numpy as np

from llm.data import examples as examples_lib
from llm.data import records
from llm.data.examples import Example, Examples
from llm.data.records import Record
from llm.errors import UserError

# How much `check_first_rows` reads: files, and bytes of a file that has to be
# read as a whole.
_MOST_FILES, _MOST_BYTES = 16, 1 << 24
# What a row that is too long is counted as, by `data.overlong`.
_COUNTED = {'truncate': 'truncated', 'drop': 'dropped', 'split': 'split'}


def encode_records(
  rows: Iterable[Record],
  encode: Callable[[dict[str, Any]], tuple[list[Any], Iterable[str]]],
  counts: dict[str, Any],
) -> Iterator[list[Any]]:
  """Encodes row after row; yields what is kept of each, in order.

  Args:
    rows: such as from `records.read_records`.
    encode: takes a row and returns the parts of it to keep, and the columns
      that it did not read.
    counts: 'rows' is counted here, and 'unread', {file: {column: rows}}; all
      else by `encode`.

  Raises:
    UserError: `encode` refuses a row; file and row number are put before its
      message.
  """
  unread = counts.setdefault('unread', {})
  for record in rows:
    try:
      kept, columns = encode(record.value)
    except UserError as error:
      raise UserError(f'{record.where}: {error}') from None
    counts['rows'] += 1
    for column in columns:
      of_file = unread.setdefault(record.file, {})
      of_file[column] = of_file.get(column, 0) + 1
    yield kept


def check_first_rows(
  path, parse: Callable[[dict[str, Any]], Any], field: str = 'data.path'
) -> None:
  """Refuses files whose first row is broken, as reading all of them would.

  Args:
    path: see `records.read_records`.
    parse: raises a UserError for a row that cannot be used.
    field: the config field of `path`, for messages.

  Raises:
    UserError: there is no such file, one is empty or of no known kind, or a
      first row is refused.
  """
  for file in records.find_files(path, field)[:_MOST_FILES]:
    if records.is_read_by_row(file) or file.stat().st_size <= _MOST_BYTES:
      rows = records.read_records([file], field=field)
      next(encode_records(rows, lambda row: (parse(row), ()), {'rows': 0}))


def load_completions(
  path,
  encode: Callable[
    [dict[str, Any], dict[str, int]], tuple[list[Any], Iterable[str]]
  ],
  assemble: Callable[[list[Any], dict[str, int]], Any],
  *,
  name: str,
  counted: tuple[str, ...],
  remedy: str,
  eval_fraction: float = 0.0,
  field: str = 'data.path',
  on_bytes: Callable[[int, int], None] | None = None,
) -> tuple[Any, Any]:
  """Reads files of rated completions: pairs, single ones or labelled steps.

  Args:
    path: see `records.read_records`.
    encode: takes a row and the counts; returns the parts of it to keep, and the
      columns that it did not read.
    assemble: takes the parts of all rows and the counts; returns the data,
      which has a length and `part(start, stop)`.
    name: what one part is, in the singular.
    counted: names of what is counted besides the rows, the parts, and those
      that are 'truncated', 'dropped', 'emptied' and 'empty'.
    remedy: what to do where nothing is kept, for the message.
    eval_fraction: the share of the parts that is held out, the last ones.
    field: the config field of `path`, for messages.
    on_bytes: progress, called with (bytes done, bytes in all).

  Returns:
    the data to train on, and those held out (None for eval_fraction=0).

  Raises:
    UserError: a bad file, row or option, by name and row number.
  """
  shared = ('truncated', 'dropped', 'emptied', 'empty')
  counts = dict.fromkeys(('rows', f'{name}s', *shared, *counted), 0)
  rows = records.read_records(path, field=field, on_bytes=on_bytes)
  kept = []
  for parts in encode_records(rows, lambda row: encode(row, counts), counts):
    kept += parts
  counts[f'{name}s'] = len(kept)
  if not kept:
    numbers = {what: n for what, n in counts.items() if what != 'unread'}
    left_out = ', '.join(f'{n} {what}' for what, n in numbers.items() if n)
    raise UserError(f'{field}: no {name} is left ({left_out}); {remedy}')
  data = assemble(kept, counts)
  if not eval_fraction:
    return data, None
  train = train_share(len(data), eval_fraction, f'{name}s')
  return data.part(0, train), data.part(train, len(data))


def fit_row(
  examples: list[Example],
  max_length: int,
  overlong: str,
  counts: dict[str, int],
  is_text: bool = False,
) -> list[list[Example]]:
  """The examples of one row, cut to `max_length` tokens.

  Args:
    examples: kept or left out together.
    max_length, overlong, is_text: see `examples.fit_example`.
    counts: one of 'truncated', 'dropped', 'split' and 'emptied' (there is
      nothing left to learn) is counted up where an example is too long.

  Returns:
    for each example its parts, several where a text was split; an empty list
    for a row that is left out.
  """
  fitted = [
    list(examples_lib.fit_example(example, max_length, overlong, is_text))
    for example in examples
  ]
  kept = fitted if all(fitted) else []
  if max(len(example.tokens) for example in examples) > max_length:
    is_named = kept or overlong == 'drop'
    counts[_COUNTED[overlong] if is_named else 'emptied'] += 1
  return kept


def check_options(max_length: int, overlong: str, eval_fraction: float) -> None:
  """Refuses values of `data` that are invalid for rated completions."""
  examples_lib.check_options(max_length, overlong)
  if overlong == 'split':
    raise UserError(
      "data.overlong='split': completions are truncated or dropped, for the "
      'parts of one cannot be rated'
    )
  check_fraction(eval_fraction)


def check_fraction(eval_fraction: float) -> None:
  """Refuses values of `data.eval_fraction` that are no share."""
  if not 0.0 <= eval_fraction < 1.0:
    raise UserError(
      f'data.eval_fraction={eval_fraction}: use 0.0 or more, below 1.0'
    )


def train_count(total: int, eval_fraction: float) -> int:
  """How many of `total` are not held out, rounded down."""
  # 1e-9, as a float such as 0.7 can be a little below its decimal value.
  return int(total * (1 - eval_fraction) + 1e-9)


def train_share(total: int, eval_fraction: float, name: str) -> int:
  """How many of `total` are to train on; the others are held out.

  Args:
    total: how many there are.
    eval_fraction: the share that is held out, above 0.
    name: what they are, for messages.

  Raises:
    UserError: one of the two parts would be empty.
  """
  train = train_count(total, eval_fraction)
  if not 0 < train < total:
    raise UserError(
      f'data.eval_fraction={eval_fraction}: of {total} {name} it leaves '
      f'{train} to train on; both parts need at least one'
    )
  return train


def digested(examples: Examples, ratings: np.ndarray) -> Examples:
  """The examples with a digest that depends on their ratings too.

  A resumed run compares the digest, see `Examples`.
  """
  content = examples.digest.encode() + ratings.tobytes()
  return dataclasses.replace(
    examples, digest=hashlib.sha256(content).hexdigest()
  )
