"""Shorter rows hold the same tokens; stages begin and end where they say."""

import numpy as np
import pytest

from llm.data import pipeline
from llm.data.curriculum import check_schedule, length_at, shorten
from llm.errors import UserError
from tests.data.conftest import numbered


def test_golden():
  examples = numbered([5, 1])
  batch = pipeline.fill_rows(examples, [[0, 1]], 6, packing=True)
  short = shorten(batch, 4)
  want = {
    'tokens': [[0, 1, 2, 3], [4, 1000, 0, 0]],
    'segment_ids': [[1, 1, 1, 1], [1, 2, 0, 0]],
    'positions': [[0, 1, 2, 3], [0, 0, 0, 0]],
    'loss_mask': [[0, 1, 1, 1], [0, 0, 0, 0]],
  }
  for name, values in want.items():
    np.testing.assert_array_equal(short[name], values, err_msg=name)
    assert short[name].dtype == batch[name].dtype
  for length in (6, 7):
    assert shorten(batch, length) is batch


@pytest.mark.parametrize('length', (2, 3, 8, 13, 16))
def test_every_token_stays_with_its_neighbours(length):
  rng = np.random.default_rng(length)
  examples = numbered(rng.integers(1, 17, 40))
  (batch,) = pipeline.eval_batches(
    examples, batch_size=40, max_length=16, packing=True
  )
  short = shorten(batch, length)
  assert short['tokens'].shape[1] == length
  real, was = short['segment_ids'] > 0, batch['segment_ids'] > 0
  np.testing.assert_array_equal(short['tokens'][real], batch['tokens'][was])
  for row in range(len(short['tokens'])):
    tokens, segments, positions = (
      short[k][row] for k in ('tokens', 'segment_ids', 'positions')
    )
    filled = segments[segments > 0]
    assert list(np.unique(filled)) == list(range(1, filled.max(initial=0) + 1))
    for segment in np.unique(filled):
      part = tokens[segments == segment]
      assert len(np.unique(part // 1000)) == 1  # of one document
      np.testing.assert_array_equal(np.diff(part), 1)
      np.testing.assert_array_equal(
        positions[segments == segment], np.arange(len(part))
      )
  np.testing.assert_array_equal(
    short['loss_mask'], real & (short['positions'] > 0)
  )


def test_lengths_by_step():
  schedule = ((0.25, 8), (50, 16))
  lengths = [length_at(step, 100, schedule, 64) for step in (0, 24, 25, 49, 50)]
  assert lengths == [8, 8, 16, 16, 64]
  assert length_at(0, 100, schedule, 4) == 4
  assert length_at(0, 100, (), 64) == 64
  check_schedule(schedule, 100, 64)
  check_schedule((), 100, 64)


@pytest.mark.parametrize(
  'schedule, match',
  [
    (((0.5, 8), (0.25, 16)), r'\(0.25, 16\) ends at step 25, but begins at 50|'
     r'begins at step 50'),
    (((0.5, 8), (50, 16)), 'in order'),
    (((0.5, 128),), 'use a length of 2 to data.max_length=64'),
    (((0.5, 1),), 'use a length of 2'),
    (((1.5, 8),), 'a share of the run'),
    (((0.0, 8),), 'a share of the run'),
    (((0, 8),), 'in order'),
    (((0.5,),), 'give .until, length'),
    ((('a', 8),), 'give .until, length'),
    (((0.5, 8.0),), 'give .until, length'),
    ((5,), 'stage 5'),
  ],
)  # fmt: skip
def test_bad_schedules(schedule, match):
  with pytest.raises(UserError, match=match):
    check_schedule(schedule, 100, 64)


def test_bad_length():
  batch = pipeline.fill_rows(numbered([4]), [[0]], 8, packing=True)
  with pytest.raises(UserError, match='a length of 1'):
    shorten(batch, 1)
