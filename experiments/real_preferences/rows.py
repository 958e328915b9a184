"""Real pairs split into thirds, their labels shuffled, and as dialogues."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from llm.data.pairs import parse_row

FOLDS = 3
Row = dict[str, Any]


def split(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
  """A third of the pairs is held out, by the prompt they begin with.

  Seeds 0, 1 and 2 hold out each pair once, as do 3, 4 and 5 in other thirds.
  Pairs with the same first prompt are on the same side, for real files have
  several completions of a prompt, and conversations that continue others.

  Args:
    rows: of a shape that `llm.data.pairs` knows.
    seed: chooses the thirds and the one that is held out.

  Returns:
    rows to train on and rows held out, each in the order of the file.
  """
  names = [first_prompt(row) for row in rows]
  prompts = sorted(set(names))
  order = np.random.default_rng(seed // FOLDS).permutation(len(prompts))
  fold = {prompts[n]: place % FOLDS for place, n in enumerate(order)}
  held_out = [fold[name] == seed % FOLDS for name in names]
  return (
    [row for row, out in zip(rows, held_out, strict=True) if not out],
    [row for row, out in zip(rows, held_out, strict=True) if out],
  )


def first_prompt(row: Row) -> str:
  """What the user says first."""
  if 'instruction' in row:
    return f'{row["instruction"]}\n{row.get("input", "")}'
  # Some rows have no question first: then the completion tells them apart.
  return parse_row(row)[0][0].messages[0]['content']


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
  """The rows with chosen and rejected swapped in a random half of them."""
  order = np.random.default_rng(seed).permutation(len(rows))
  swapped = set(order[: len(rows) // 2].tolist())
  return [
    row | {'chosen': row['rejected'], 'rejected': row['chosen']}
    if i in swapped
    else row
    for i, row in enumerate(rows)
  ]


def dialogues(rows: Sequence[Row]) -> Iterator[Row]:
  """The chosen completions as rows to fine-tune on; empty ones are left out."""
  for row in rows:
    if 'instruction' in row:
      if row['chosen'].strip():
        names = ('instruction', 'input', 'system')
        rest = {name: row[name] for name in names if name in row}
        yield rest | {'output': row['chosen']}
      continue
    chosen = parse_row(row)[0][0]
    prompt = chosen.messages[: chosen.learn_from]
    completion = chosen.messages[chosen.learn_from :]
    said = [m['content'] for m in completion if m['role'] == 'assistant']
    if ''.join(said).strip():
      yield {'prompt': prompt, 'completion': completion}


def lines(rows: Sequence[Row]) -> Iterator[str]:
  """The lines of prompts and of both completions, to train a tokenizer on."""
  for row in rows:
    for name in ('instruction', 'input', 'chosen', 'rejected'):
      yield from row.get(name, '').split('\n')
