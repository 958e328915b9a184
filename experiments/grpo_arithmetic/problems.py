"""Sums of two numbers, as rows of SFT and of RL."""

from collections.abc import Iterable
import json
import pathlib

import numpy as np

END_OF_TAIL = 0.15  # chance that a tail ends before its next mark
LONGEST_TAIL = 20
RIGHT, WRONG = '.', '?'  # marks of a tail
WRONG_SHARE = 0.5  # of the demonstrations with tails
ERRORS = (-10, -2, -1, 1, 2, 10)  # of the wrong ones


def split(
  seed: int, operands: tuple[int, int], digits: int, held_out: int
) -> tuple[list[dict], list[dict]]:
  """All sums in a random order, as (rows to train on, held out).

  A row is {'prompt': '12+34=', 'answer': '46'}, '046' where answers have three
  digits. '34+12=' is on the same side.

  Args:
    seed: draws the order.
    operands: the smallest and the largest one.
    digits: of an answer at least; zeros come before what has fewer.
    held_out: how many rows at least; one more where only half of the last two
      would do.
  """
  first, last = operands
  pairs = [
    (a, b) for a in range(first, last + 1) for b in range(first, last + 1)
  ]
  order = np.random.default_rng((seed, 0)).permutation(len(pairs))
  pairs = [pairs[i] for i in order]
  out = set()
  for a, b in pairs:
    if len(out) < held_out:
      out |= {(a, b), (b, a)}
  sides = ([], [])  # trained on, held out
  for a, b in pairs:
    row = {'prompt': f'{a}+{b}=', 'answer': f'{a + b:0{digits}}'}
    sides[(a, b) in out].append(row)
  return sides


def demonstrations(rows: Iterable[dict]) -> list[dict]:
  """Rows of SFT: each prompt with its answer."""
  return [
    {'prompt': row['prompt'], 'completion': row['answer']} for row in rows
  ]


def with_tails(rows: Iterable[dict], seed: int) -> list[dict]:
  """Rows of SFT, half of them wrong, with marks that tell which.

  After the sum comes a random number of marks, whatever the sum is: '46....'
  or, where it is wrong, '47????'.

  Args:
    rows: from `split`, each as often as it shall be shown.
    seed: draws what follows.
  """
  rng = np.random.default_rng((seed, 1))
  out = []
  for row in rows:
    answer, mark = row['answer'], RIGHT
    if rng.random() < WRONG_SHARE:
      answer, mark = str(int(answer) + rng.choice(ERRORS)), WRONG
    length = min(rng.geometric(END_OF_TAIL) - 1, LONGEST_TAIL)
    out.append({'prompt': row['prompt'], 'completion': answer + mark * length})
  return out


def write(path: pathlib.Path, rows: Iterable[dict]) -> str:
  """Writes JSONL and returns the path, as configs have it."""
  with path.open('w', encoding='utf-8') as file:
    for row in rows:
      file.write(json.dumps(row) + '\n')
  return str(path)
