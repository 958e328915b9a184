"""Batches: every row once an epoch, and resumed bit for bit anywhere."""

import itertools
import json

import numpy as np
import pytest

from llm.data.pipeline import eval_batches, make_source
from llm.errors import UserError
from tests.data.conftest import numbered

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, 33, 37).tolist()
MODES = list(itertools.product((False, True), repeat=2))  # packing, shuffle


def source(lengths=LENGTHS, **options):
  defaults = dict(
    batch_size=4, max_length=32, packing=True, shuffle=True, seed=3
  )
  return make_source(numbered(lengths), **(defaults | options))


def take(source, count):
  return [next(source) for _ in range(count)]


def members(batch):
  """Which examples are in each row, checked to be whole."""
  out = []
  for tokens, segments in zip(batch['tokens'], batch['segment_ids']):
    row = []
    for segment in range(1, segments.max() + 1):
      part = tokens[segments == segment]
      index, start = divmod(int(part[0]), 1000)
      assert start == 0 and len(part) == LENGTHS[index]
      np.testing.assert_array_equal(np.diff(part), 1)
      row.append(index)
    out.append(row)
  return out


def assert_same(a, b):
  assert len(a) == len(b)
  for (batch, stats), (other, other_stats) in zip(a, b):
    assert stats == other_stats
    assert batch.keys() == other.keys()
    for name in batch:
      assert batch[name].dtype == other[name].dtype
      np.testing.assert_array_equal(batch[name], other[name])


def test_golden_unpacked_in_order():
  feed = make_source(
    numbered([3, 20, 2]),
    batch_size=2,
    max_length=24,
    packing=False,
    shuffle=False,
    seed=0,
    pad_id=9,
  )
  (first, stats), (second, _) = take(feed, 2)
  assert first['tokens'].shape == (2, 24)  # 20 is above 16, 32 above 24
  assert stats == {
    'epoch': 2 / 3,
    'examples': 2,
    'tokens': 23,
    'loss_tokens': 21,
    'efficiency': 23 / 48,
  }
  # Rows flow on into the next epoch, and the ladder begins at 16.
  want = np.full((2, 16), 9)
  want[0, :2], want[1, :3] = [2000, 2001], [0, 1, 2]
  np.testing.assert_array_equal(second['tokens'], want)
  np.testing.assert_array_equal(second['segment_ids'], want != 9)
  np.testing.assert_array_equal(second['positions'][1, :4], [0, 1, 2, 0])
  np.testing.assert_array_equal(second['loss_mask'][1, :4], [0, 1, 1, 0])
  assert {k: v.dtype for k, v in second.items()} == {
    'tokens': np.int32,
    'loss_mask': np.float32,
    'segment_ids': np.int32,
    'positions': np.int32,
  }


@pytest.mark.parametrize('packing, shuffle', MODES)
def test_every_example_once_an_epoch(packing, shuffle):
  feed = source(packing=packing, shuffle=shuffle, batch_size=5)
  epochs = 5  # so many that whole batches make up whole epochs
  batches = take(feed, feed.rows_per_epoch)
  rows = [row for batch, _ in batches for row in members(batch)]
  assert len(rows) == epochs * feed.rows_per_epoch
  orders = []
  for epoch in range(epochs):
    part = rows[epoch * feed.rows_per_epoch :][: feed.rows_per_epoch]
    orders.append([i for row in part for i in row])
    assert sorted(orders[-1]) == list(range(len(LENGTHS)))
  in_order = [order == list(range(len(LENGTHS))) for order in orders]
  assert in_order == [not shuffle] * epochs
  if shuffle:
    assert len(set(map(tuple, orders))) == epochs
  assert batches[-1][1]['epoch'] == epochs
  assert sum(stats['examples'] for _, stats in batches) == epochs * 37
  tokens = sum(stats['tokens'] for _, stats in batches)
  assert tokens == epochs * sum(LENGTHS)
  assert sum(s['loss_tokens'] for _, s in batches) == tokens - epochs * 37


def test_packed_rows_change_their_company():
  feed = source([4, 4, 4, 4, 12, 12, 12, 12], max_length=16, batch_size=4)
  epochs = [
    tuple(sorted(tuple(b['tokens'][:, 12] // 1000) for b, _ in [batch]))
    for batch in take(feed, 6)
  ]
  assert len(set(epochs)) > 1
  assert next(feed)[1]['efficiency'] == 1.0


def test_the_seed_decides():
  first = take(source(), 3)
  assert_same(first, take(source(), 3))
  other = take(source(seed=4), 3)
  assert members(first[0][0]) != members(other[0][0])
  # Epoch 1 of a seed is not epoch 0 of the next.
  feed = source(packing=False, batch_size=37)
  later, other = (
    take(feed, 2)[1][0],
    next(source(packing=False, batch_size=37, seed=4))[0],
  )
  assert not np.array_equal(later['tokens'], other['tokens'])


@pytest.mark.parametrize('packing, shuffle', MODES)
def test_resume_anywhere(packing, shuffle):
  options = dict(packing=packing, shuffle=shuffle, batch_size=3)
  feed = source(**options)
  states, batches = [feed.get_state()], []
  for _ in range(40):  # over three epochs and more
    batches.append(next(feed))
    states.append(json.loads(json.dumps(feed.get_state())))
  rng = np.random.default_rng(1)
  again = source(**options, prefetch=0)
  for at in [0, 1, 39, *rng.integers(0, 38, 6)]:
    # In the middle of things, or in a fresh process.
    for target in (feed, again, source(**options, prefetch=3)):
      target.set_state(states[at])
      assert target.get_state() == states[at]
      assert_same(take(target, min(3, 40 - at)), batches[at : at + 3])


def test_prefetched_batches_are_not_in_the_state():
  eager, lazy = source(prefetch=4), source(prefetch=0)
  for _ in range(5):
    assert_same(take(eager, 1), take(lazy, 1))
    assert eager.get_state() == lazy.get_state()
  eager.close()


@pytest.mark.parametrize(
  'options, match',
  [
    (dict(lengths=LENGTHS[:-1]), 'data.path: the checkpoint'),
    (dict(batch_size=5), 'train.batch_size: .* with 4 and this run has 5'),
    (dict(max_length=48), 'data.max_length: .* with 32 and this run has 48'),
    (dict(packing=False), 'data.packing'),
    (dict(shuffle=False), 'data.shuffle'),
    (dict(seed=4), 'data.seed'),
  ],
)
def test_a_state_of_other_data_is_refused(options, match):
  with pytest.raises(UserError, match=match):
    source(**options).set_state(source().get_state())


@pytest.mark.parametrize(
  'options, match',
  [
    (dict(batch_size=0), 'train.batch_size=0'),
    (dict(max_length=0), 'data.max_length=0'),
    (dict(max_length=16), 'data.max_length=16: example'),
    (dict(seed=-1), 'data.seed=-1'),
    (dict(lengths=[]), 'no examples'),
  ],
)
def test_bad_settings(options, match):
  with pytest.raises(UserError, match=match):
    source(**options)


def test_a_batch_larger_than_the_data():
  batch, stats = next(source([5], batch_size=3, packing=False))
  assert batch['tokens'].shape == (3, 16) and stats['epoch'] == 3.0


@pytest.mark.parametrize('packing', (False, True))
@pytest.mark.parametrize('batch_size', (1, 5, 37, 50))
def test_evaluation_sees_every_row_once(packing, batch_size):
  batches = list(
    eval_batches(
      numbered(LENGTHS), batch_size=batch_size, max_length=32, packing=packing
    )
  )
  assert {len(batch['tokens']) for batch in batches} == {batch_size}
  rows = [row for batch in batches for row in members(batch)]
  assert sorted(i for row in rows for i in row) == list(range(37))
  for batch in batches:
    assert not batch['loss_mask'][batch['segment_ids'] == 0].any()
  if not packing:
    assert [i for row in rows for i in row] == list(range(37))
    assert len(rows) - 37 == -37 % batch_size  # rows of padding


def test_evaluation_refuses_what_does_not_fit():
  with pytest.raises(UserError, match='data.max_length=8'):
    next(eval_batches(numbered([9]), batch_size=1, max_length=8))
  with pytest.raises(UserError, match='train.batch_size=0'):
    next(eval_batches(numbered([9]), batch_size=0, max_length=9))
