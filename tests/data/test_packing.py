"""Which documents share a row: best fit and next fit."""

import time

import numpy as np
import pytest

from llm.data import packing
from llm.errors import UserError


def test_best_fit_by_hand():
  # The lengths that trl's documentation packs: [[4], [3, 1], [2]].
  assert packing.best_fit([4, 2, 3, 1], 4) == [[0], [2, 3], [1]]
  # 3 goes where 4 remain, not to the first row, which has 5 left.
  assert packing.best_fit([5, 6, 3], 10) == [[1, 2], [0]]
  assert packing.best_fit([2, 2, 2, 2, 2], 5) == [[0, 1], [2, 3], [4]]
  assert packing.best_fit([], 5) == []


def plain_best_fit(lengths, capacity):
  """The rule as it is told, by looking at every row."""
  rows = []  # [room, when it got it, members]
  for clock, i in enumerate(sorted(range(len(lengths)),
                                   key=lambda i: -lengths[i])):  # fmt: skip
    fitting = [row for row in rows if row[0] >= lengths[i]]
    row = min(fitting, key=lambda row: row[:2], default=None)
    if row is None:
      row = [capacity, clock, []]
      rows.append(row)
    row[0], row[1] = row[0] - lengths[i], clock
    row[2].append(i)
  return [row[2] for row in rows]


@pytest.mark.parametrize('capacity', (1, 7, 16, 100))
def test_best_fit_is_the_rule(capacity):
  rng = np.random.default_rng(capacity)
  for count in (1, 2, 10, 150):
    lengths = rng.integers(1, capacity + 1, count).tolist()
    rows = packing.best_fit(lengths, capacity)
    assert rows == plain_best_fit(lengths, capacity)
    mixed = packing.best_fit(rng.permutation(lengths), capacity)
    assert len(mixed) == len(rows)


def test_best_fit_wastes_little_and_is_quick():
  rng = np.random.default_rng(0)
  lengths = np.clip(rng.lognormal(5.5, 1.0, 50_000), 1, 2048).astype(int)
  began = time.process_time()  # whatever else the machine does
  rows = packing.best_fit(lengths, 2048)
  assert time.process_time() - began < 2.0  # 0.03 s
  assert lengths.sum() / (2048 * len(rows)) > 0.999
  assert sorted(i for row in rows for i in row) == list(range(50_000))
  in_order = packing.next_fit(lengths.tolist(), 2048)
  assert len(rows) < 0.95 * len(in_order)


def test_next_fit_keeps_the_order():
  assert packing.next_fit([3, 2, 1, 5, 4], 5) == [[0, 1], [2], [3], [4]]
  assert packing.next_fit([], 5) == []


@pytest.mark.parametrize('pack', (packing.best_fit, packing.next_fit))
@pytest.mark.parametrize('length', (0, 6))
def test_a_length_that_cannot_fit_is_refused(pack, length):
  with pytest.raises(UserError, match=f'document 1 has {length} tokens'):
    pack([2, length], 5)
