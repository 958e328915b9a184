"""Rows of a prompt alone, with what reward functions need to know."""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from llm.data import reading, records
from llm.data.examples import Example, Examples, from_list
from llm.errors import UserError
from llm.text import chat_options
from llm.text.chat_options import ChatOptions


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One prompt.

  Attributes:
    token_ids: the prompt, up to where the completion begins.
    row: the row as it was written, for reward functions ('answer' and others).
  """

  token_ids: tuple[int, ...]
  row: dict[str, Any]


def load_prompts(
  path,
  tok,
  *,
  max_length: int,
  options: ChatOptions = ChatOptions(),
  check: Callable[[dict[str, Any]], None] = lambda row: None,
  field: str = 'data.path',
  on_bytes: Callable[[int, int], None] | None = None,
) -> tuple[list[Prompt], int]:
  """Reads and tokenizes rows `{"prompt": …}`, a string or a message list.

  A string is encoded as it is, with BOS where the tokenizer puts one; messages
  (in `prompt` or `messages`) go through the chat template, up to where the
  assistant begins. A prompt above `max_length` is left out and counted:
  a truncated prompt would ask something else.

  Args:
    path: see `records.read_records`.
    tok: a `Tokenizer`.
    max_length: tokens of a prompt.
    options: how messages are rendered; a row's own columns win.
    check: raises a UserError for a row that cannot be used.
    field: the config field of `path`, for messages.
    on_bytes: progress, called with (bytes done, bytes in all).

  Returns:
    the prompts, and how many were too long.

  Raises:
    UserError: a bad file or row, by name and row number, or no prompt is left.
  """
  counts = {'rows': 0, 'overlong': 0}

  def encode(row):
    token_ids = _encode(tok, row, options)
    check(row)
    if len(token_ids) > max_length:
      counts['overlong'] += 1
      return []
    return [Prompt(tuple(token_ids), row)]

  rows = records.read_records(path, field=field, on_bytes=on_bytes)
  prompts = []
  for kept in reading.encode_records(rows, encode, counts):
    prompts += kept
  if not prompts:
    raise UserError(
      f'{field}: all {counts["overlong"]} prompts are longer than '
      f'data.max_length={max_length} tokens; raise it'
    )
  return prompts, counts['overlong']


def digest(prompts: list[Prompt]) -> str:
  """A digest of the prompts; a resumed run compares it."""
  rows = [[p.token_ids, p.row] for p in prompts]
  text = json.dumps(rows, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def as_examples(prompts: list[Prompt]) -> Examples:
  """The prompts as examples without a completion."""
  rows = (np.array(prompt.token_ids, np.int32) for prompt in prompts)
  return from_list(Example(row, np.zeros(len(row), bool)) for row in rows)


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


def is_prompt(row: dict[str, Any]) -> bool:
  """True for a row of a prompt without a completion."""
  row = {k: v for k, v in row.items() if v is not None}
  if 'prompt' in row:
    return not {'completion', 'response'} & set(row)
  turns = row.get('messages')
  last = turns[-1] if isinstance(turns, list) and turns else None
  return isinstance(last, dict) and last.get('role') != 'assistant'


def parse_row(row: dict[str, Any]) -> str | list[dict]:
  """The prompt of a row, a text or messages.

  Raises:
    UserError: there is none, or it ends with a message of the assistant.
  """
  prompt = row.get('prompt', row.get('messages'))
  if isinstance(prompt, list):
    _check_turns(prompt)
  elif not isinstance(prompt, str):
    keys = ', '.join(map(repr, row)) or 'none'
    raise UserError(
      f'has no prompt (its keys: {keys}); give {{"prompt": …, "answer": …}}, '
      'the prompt being a string or a list of messages'
    )
  return prompt


def _encode(tok, row: dict[str, Any], options: ChatOptions) -> list[int]:
  prompt = parse_row(row)
  is_text = isinstance(prompt, str)
  options = chat_options.row_options(row, None if is_text else prompt, options)
  if is_text:
    token_ids = _encode_text(tok, prompt)
  else:
    token_ids = chat_options.encode(tok, prompt, options)
  if not token_ids:
    raise UserError('the prompt has no token; give it a text')
  return token_ids


def _encode_text(tok, text: str) -> list[int]:
  """The ids of a text, without the EOS that some tokenizers put after it."""
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
