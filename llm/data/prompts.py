"""Rows that a model is to answer: a prompt, and what its rewards need."""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from llm.data import records
from llm.data.examples import Example, Examples, from_list
from llm.errors import UserError
from llm.text import chat


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One prompt.

  Attributes:
    token_ids: what the model reads.
    row: the row as it was written, for reward functions ('answer' and others).
  """

  token_ids: tuple[int, ...]
  row: dict[str, Any]


def load_prompts(
  path,
  tok,
  *,
  max_length: int,
  check: Callable[[dict[str, Any]], None] = lambda row: None,
  field: str = 'data.path',
  on_bytes: Callable[[int, int], None] | None = None,
) -> tuple[list[Prompt], int]:
  """Reads and tokenizes rows `{"prompt": …}`, a string or a message list.

  A string is encoded as it is, with BOS where the tokenizer puts one; messages
  (in `prompt` or `messages`) go through the chat template, up to where the
  assistant begins. A prompt above `max_length` is left out and counted: without
  its beginning or its end it would ask for something else.

  Args:
    path: see `records.read_records`.
    tok: a `Tokenizer`.
    max_length: tokens of a prompt.
    check: raises a UserError for a row that cannot be used.
    field: the config field of `path`, for messages.
    on_bytes: progress, called with (bytes done, bytes in all).

  Returns:
    the prompts, and how many were too long.

  Raises:
    UserError: a bad file or row, by name and row number, or no prompt is left.
  """
  prompts, overlong = [], 0
  for record in records.read_records(path, field=field, on_bytes=on_bytes):
    try:
      token_ids = _encode(tok, record.value)
      check(record.value)
    except UserError as error:
      raise UserError(f'{record.where}: {error}') from None
    if len(token_ids) > max_length:
      overlong += 1
    else:
      prompts.append(Prompt(tuple(token_ids), record.value))
  if not prompts:
    raise UserError(
      f'{field}: all {overlong} prompts are longer than data.max_length='
      f'{max_length} tokens; raise it'
    )
  return prompts, overlong


def digest(prompts: list[Prompt]) -> str:
  """Names the content; a resumed run compares it."""
  rows = [[p.token_ids, p.row] for p in prompts]
  text = json.dumps(rows, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def as_examples(prompts: list[Prompt]) -> Examples:
  """The prompts as examples without an answer."""
  rows = (np.array(prompt.token_ids, np.int32) for prompt in prompts)
  return from_list(Example(row, np.zeros(len(row), bool)) for row in rows)


def prompt_lengths(examples: Examples) -> np.ndarray:
  """int64[N]: tokens of each example before its last answer.

    loss_mask  0 0 1 1 0 0 1 1 1    6, of 9 tokens

  An example without an answer is a prompt as a whole.
  """
  mask, starts = examples.loss_mask, examples.offsets[:-1]
  # The first token of an example is never under the mask.
  answers = np.flatnonzero(mask[1:] & ~mask[:-1]) + 1
  answers = np.concatenate([[-1], answers])
  last = answers[np.searchsorted(answers, examples.offsets[1:]) - 1]
  return np.where(last >= starts, last - starts, examples.lengths)


def prompt_order(
  count: int, shuffle: bool, seed: int, start: int
) -> Iterator[int]:
  """Indices of prompts without end, from place `start` on.

  Each epoch has every prompt once; with `shuffle` in an order of its own that
  follows from (seed, epoch).
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


def _encode(tok, row: dict[str, Any]) -> list[int]:
  prompt = row.get('prompt', row.get('messages'))
  if isinstance(prompt, str):
    token_ids = _encode_text(tok, prompt)
  elif isinstance(prompt, list):
    _check_turns(prompt)
    token_ids = chat.encode(tok, prompt, add_generation_prompt=True)
  else:
    keys = ', '.join(map(repr, row)) or 'none'
    raise UserError(
      f'has no prompt (its keys: {keys}); give {{"prompt": …, "answer": …}}, '
      'the prompt being a string or a list of messages'
    )
  if not token_ids:
    raise UserError('the prompt has no token; give it a text')
  return token_ids


def _encode_text(tok, text: str) -> list[int]:
  """The text as the beginning of an answer's: without the EOS of some."""
  ids, offsets = tok.encode_with_offsets(text)
  if len(ids) > 1 and ids[-1] in tok.eos_ids and offsets[-1][0] == len(text):
    ids.pop()
  return ids


def _check_turns(messages: list) -> None:
  last = messages[-1] if messages else None
  if isinstance(last, dict) and last.get('role') == 'assistant':
    raise UserError(
      "the prompt ends with the assistant's answer; leave that message out"
    )
