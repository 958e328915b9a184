"""Packing keeps every document whole and counts its positions from 0."""

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
  began = time.perf_counter()
  rows = packing.best_fit(lengths, 2048)
  assert time.perf_counter() - began < 2.0  # 0.03 s on an idle machine
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


def test_golden():
  rows = packing.pack_documents([[5, 6, 7], [8, 9], [3, 4], [2]], 5, pad_id=1)
  np.testing.assert_array_equal(
    rows['tokens'], [[5, 6, 7, 8, 9], [3, 4, 2, 1, 1]]
  )
  np.testing.assert_array_equal(
    rows['segment_ids'], [[1, 1, 1, 2, 2], [1, 1, 2, 0, 0]]
  )
  np.testing.assert_array_equal(
    rows['positions'], [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
  )
  np.testing.assert_array_equal(rows['loss_mask'], rows['segment_ids'] > 0)


def test_a_later_document_fills_an_earlier_gap():
  rows = packing.pack_documents([[1] * 3, [2] * 4, [3] * 2], 5)
  np.testing.assert_array_equal(
    rows['tokens'], [[1, 1, 1, 3, 3], [2, 2, 2, 2, 0]]
  )


def test_every_token_is_there_once():
  rng = np.random.default_rng(0)
  documents = [
    rng.integers(1, 100, rng.integers(1, 17)).tolist() for _ in range(200)
  ]
  rows = packing.pack_documents(documents, 16)
  unpacked = [
    tuple(tokens[segments == s])
    for tokens, segments in zip(rows['tokens'], rows['segment_ids'])
    for s in range(1, segments.max() + 1)
  ]
  assert sorted(unpacked) == sorted(map(tuple, documents))
  assert (rows['segment_ids'] == 0).mean() < 0.1  # little is padding


@pytest.mark.parametrize('document', ([], [1] * 6))
def test_a_document_that_cannot_fit_is_refused(document):
  with pytest.raises(UserError, match=f'document 1 has {len(document)} tokens'):
    packing.pack_documents([[1, 2], document], 5)


def test_batches_cover_each_epoch_in_a_new_order():
  documents = [[i] * 4 for i in range(1, 13)]  # three fill a row of 12
  batches = packing.packed_batches(documents, 12, 2, seed=5)
  epochs = [[next(batches)['tokens'] for _ in range(2)] for _ in range(3)]
  for epoch in epochs:
    np.testing.assert_array_equal(
      np.sort(np.concatenate(epoch), axis=None), np.sort(documents, axis=None)
    )
  assert not np.array_equal(epochs[0], epochs[1])
  again = packing.packed_batches(documents, 12, 2, seed=5)
  np.testing.assert_array_equal(next(again)['tokens'], epochs[0][0])


def test_too_few_documents_for_a_batch_are_refused():
  with pytest.raises(UserError, match='train.batch_size=3: .* only 2 rows'):
    next(packing.packed_batches([[1] * 8] * 2, 8, 3, seed=0))
