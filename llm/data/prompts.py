"""Rows of a prompt alone, with what reward functions need to know."""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from llm.data import reading, records, shapes
from llm.data.columns import RowOptions
from llm.data.examples import Example, Examples, encode_prompt_row, from_list
from llm.errors import UserError
from llm.text.turn_end import turn_end


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One prompt.

  Attributes:
    token_ids: the prompt, up to where the completion begins.
    row: the row as it was written, for reward functions ('answer' and others).
    is_chat: it went through the chat template.
  """

  token_ids: tuple[int, ...]
  row: dict[str, Any]
  is_chat: bool = False


def load_prompts(
  path,
  tok,
  *,
  max_length: int,
  check: Callable[[dict[str, Any]], None] = lambda row: None,
  options: RowOptions = RowOptions(),
  field: str = 'data.path',
  on_bytes: Callable[[int, int], None] | None = None,
) -> tuple[list[Prompt], dict[str, Any]]:
  """Reads and tokenizes rows of prompts, see `shapes.PROMPTS`.

  A string is encoded as it is, with BOS where the tokenizer puts one; messages
  go through the chat template, up to where the assistant begins. A prompt above
  `max_length` is left out and counted: a truncated prompt would ask something
  else. Columns besides the prompt are kept for reward functions.

  Args:
    path: see `records.read_records`.
    tok: a `Tokenizer`.
    max_length: tokens of a prompt.
    check: raises a UserError for a row that cannot be used.
    options: how rows are read.
    field: the config field of `path`, for messages.
    on_bytes: progress, called with (bytes done, bytes in all).

  Returns:
    the prompts, and what became of the rows: 'rows', 'prompts' and 'overlong'.

  Raises:
    UserError: a bad file or row, by name and row number, or no prompt is left.
  """
  counts = {'rows': 0, 'overlong': 0}

  def encode(row):
    prompts = encode_prompt(tok, row, options, max_length, counts)
    check(row)
    return prompts, ()

  rows = records.read_records(path, field=field, on_bytes=on_bytes)
  prompts = []
  for kept in reading.encode_records(rows, encode, counts):
    prompts += kept
  if not prompts:
    raise UserError(
      f'{field}: all {counts["overlong"]} prompts are longer than '
      f'data.max_length={max_length} tokens; raise it'
    )
  counts['prompts'] = len(prompts)
  return prompts, counts


def encode_prompt(
  tok,
  value: dict[str, Any],
  options: RowOptions,
  max_length: int,
  counts: dict[str, int],
) -> list[Prompt]:
  """The prompt of a row; none where it is too long.

  Args:
    tok: a `Tokenizer`.
    value: of one of `shapes.PROMPTS`.
    options: how rows are read.
    max_length: tokens of a prompt.
    counts: 'overlong' is counted up where it is too long.

  Raises:
    UserError: the row is refused.
  """
  row = shapes.canonical_prompt(value, bool(tok.chat_templates), options)
  token_ids = encode_prompt_row(tok, row)
  if len(token_ids) > max_length:
    counts['overlong'] += 1
    return []
  return [Prompt(tuple(token_ids), value, row.messages is not None)]


def turn_ends(prompts: list[Prompt], tok) -> tuple[int, ...]:
  """What ends a reply besides EOS: the mark of the chat template, if any.

  Args:
    prompts: of a run; plain texts have no such end.
    tok: a `Tokenizer`.
  """
  end = turn_end(tok) if any(prompt.is_chat for prompt in prompts) else None
  return () if end is None else (end,)


def digest(prompts: list[Prompt]) -> str:
  """A digest of the prompts; a resumed run compares it."""
  rows = [[p.token_ids, p.row] for p in prompts]
  text = json.dumps(rows, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def as_examples(prompts: list[Prompt]) -> Examples:
  """The prompts as examples without a completion."""
  rows = (np.array(prompt.token_ids, np.int32) for prompt in prompts)
  return from_list(Example(row, np.zeros(len(row), np.float32)) for row in rows)


def prompt_lengths(examples: Examples) -> np.ndarray:
  """int64[N]: tokens of each example before its last completion.

    loss_mask  0 0 1 1 0 0 1 1 1    6, of 9 tokens

  An example without a completion is a prompt as a whole.
  """
  mask, starts = examples.loss_mask, examples.offsets[:-1]
  # The first token of an example is never under the mask.
  begins = np.flatnonzero(mask[1:] & ~mask[:-1]) + 1
  begins = np.concatenate([[-1], begins])
  last = begins[np.searchsorted(begins, examples.offsets[1:]) - 1]
  return np.where(last >= starts, last - starts, examples.lengths)


def prompt_order(
  count: int, shuffle: bool, seed: int, start: int
) -> Iterator[int]:
  """Yields indices of prompts without end, from place `start` on.

  Each epoch has every prompt once. With `shuffle` each epoch has an order of
  its own, a function of (seed, epoch).
  """
  place = start
  while True:
    epoch, at = divmod(place, count)
    order = np.arange(count)
    if shuffle:
      order = np.random.default_rng((seed, epoch)).permutation(count)
    for index in order[at:]:
      yield int(index)
    place += count - at
