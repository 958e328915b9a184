"""Packing keeps every document whole and counts its positions from 0."""

import numpy as np
import pytest

from llm.data import packing
from llm.errors import UserError


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
