"""Rows whose tokens are scored: token ids, or a prompt with its completion."""

from llm.engine.requests import (
  Limits,
  check_keys,
  check_tokens,
  read_jsonl,
  token_list,
)
from llm.errors import UserError

ROW_KEYS = ('token_ids', 'prompt', 'completion')
TEXT_KEYS = ('prompt', 'completion')


def read_rows(
  path: str, tokenizer, limits: Limits
) -> list[tuple[tuple[int, ...], int]]:
  """Reads and checks the whole input: (token ids, prompt tokens) per row.

  Raises:
    UserError: the first bad row, by its line, field and value.
  """
  rows = []
  for where, row in read_jsonl(path, 'input'):
    tokens = parse_row(row, where)
    prompt_tokens = 0
    if tokens is None:
      tokens, prompt_tokens = _encode(row, tokenizer, where)
    if not tokens:
      raise UserError(f'{where}: there is no token to score: give at least one')
    check_tokens(tokens, limits, where)
    rows.append((tokens, prompt_tokens))
  return rows


def parse_row(row: dict, where: str) -> tuple[int, ...] | None:
  """The token ids of a row; None for one of `TEXT_KEYS`, two strings."""
  check_keys(row, ROW_KEYS, where)
  if set(row) == {'token_ids'}:
    return token_list(row['token_ids'], 'token_ids', where)
  if set(row) != set(TEXT_KEYS):
    raise UserError(
      f'{where}: has {" and ".join(row) or "no key"}: give either token_ids '
      'or prompt and completion'
    )
  for key in TEXT_KEYS:
    if not isinstance(row[key], str):
      raise UserError(f'{where}: {key}={row[key]!r}: give a string')
  return None


def _encode(row, tokenizer, where: str) -> tuple[tuple[int, ...], int]:
  """Tokens of the joined text, and how many of them end inside the prompt.

  The text is encoded as one, because tokenizers that mark the start of a text
  would put a space between two parts.
  """
  if tokenizer is None:
    raise UserError(
      f'{where}: text needs a tokenizer and none lies beside the model: set '
      'tokenizer.path, or give token_ids'
    )
  prompt = row['prompt']
  try:
    tokens, offsets = tokenizer.encode_with_offsets(prompt + row['completion'])
  except UserError as error:
    raise UserError(f'{where}: {error}') from None
  in_prompt = sum(end <= len(prompt) for _, end in offsets)
  return tuple(tokens), in_prompt
