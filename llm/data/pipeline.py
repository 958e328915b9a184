"""Examples to batches: shuffled, packed, prefetched, resumed bit for bit.

Which rows batch n holds is a function of (examples, settings, n). So the state
of a source is a number, and no prefetched batch is lost on a restart.
"""

from collections.abc import Iterator
import functools

import grain
import numpy as np

from llm.buckets import bucket
from llm.data import packing as packing_lib
from llm.data.examples import Examples
from llm.errors import UserError


class Source:
  """An endless iterator over (batch, stats) with a place to save and restore.

  Made by `make_source`. Each epoch has every example once, and each batch is
  full: it may end one epoch and begin the next.
  """

  def __init__(self, rows: '_Rows', batch_size: int, prefetch: int):
    self._identity = rows.identity | {'batch_size': batch_size}
    self.rows_per_epoch = rows.per_epoch
    dataset = grain.MapDataset.source(rows).batch(
      batch_size, batch_fn=functools.partial(_make_batch, rows)
    )
    options = grain.ReadOptions(
      num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch
    )
    self._iterator = iter(dataset.to_iter_dataset(options))

  def __iter__(self) -> 'Source':
    return self

  def __next__(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    return next(self._iterator)

  def get_state(self) -> dict:
    """The place after the last batch that was handed out; can go into JSON."""
    return {'source': self._identity, 'iterator': self._iterator.get_state()}

  def set_state(self, state: dict) -> None:
    """Restores a place from `get_state`; the next batch is the one after it.

    Raises:
      UserError: the state is of other data or of other settings.
    """
    for name, now in self._identity.items():
      then = state['source'].get(name)
      if then != now:
        raise UserError(
          f'{_FIELDS[name]}: the checkpoint was made with {then!r} and this run'
          f' has {now!r}; resume with the same data and settings, or begin in'
          ' another workdir'
        )
    self._iterator.set_state(state['iterator'])

  def close(self) -> None:
    """Stops reading ahead."""
    self._iterator.close()


def make_source(
  examples: Examples,
  *,
  batch_size: int,
  max_length: int,
  packing: bool,
  shuffle: bool,
  seed: int,
  prefetch: int = 2,
  pad_id: int = 0,
  group: int = 1,
  named: bool = False,
) -> Source:
  """Makes a source of batches without end.

  Packed rows have `max_length` tokens. With `shuffle` the examples of an epoch
  are packed by best fit; equally long ones change places from epoch to epoch,
  and the rows come in a new order each epoch. Without it the examples follow
  each other as in the file, and a row ends where the next one would not fit.
  Rows that are not packed are padded to the first length of the ladder
  16, 32, 64, … max_length that holds the longest of the batch.

  Args:
    examples: none longer than max_length.
    batch_size: B, rows of a batch.
    max_length: the longest row, in tokens.
    packing: several examples in a row.
    shuffle: a new order each epoch, drawn from `seed`; else the file's order.
    seed: of the order.
    prefetch: how many batches a thread makes ahead; 0 makes each on demand.
    pad_id: token of the padding.
    group: so many consecutive examples share a row, such as 2 for pairs. A row
      then has up to group · max_length tokens.
    named: add the array `examples`; a group of 2 or more always has it.

  Returns:
    a `Source`. A batch has the arrays of `fill_rows` and, if `named`,
    `examples`: int32[B, S], the index of the example in each segment, -1 for
    none, where S is the most examples that any row has. Its stats are
    'epoch' (epochs done after the batch, a float), 'examples', 'tokens'
    (without padding), 'loss_tokens' and 'efficiency' (tokens / (B · T)).

  Raises:
    UserError: a value is out of range, there are no examples, or one is longer
      than max_length.
  """
  for name, value in (
    ('train.batch_size', batch_size),
    ('data.max_length', max_length),
  ):
    if value < 1:
      raise UserError(f'{name}={value}: use 1 or more')
  if seed < 0:
    raise UserError(f'data.seed={seed}: use 0 or more')
  rows = _Rows(
    examples, max_length, packing, shuffle, seed, pad_id, group, named
  )
  return Source(rows, batch_size, prefetch)


def eval_batches(
  examples: Examples,
  *,
  batch_size: int,
  max_length: int,
  packing: bool = False,
  pad_id: int = 0,
  group: int = 1,
  named: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields every example once, in batches like those of `make_source`.

  The last batch is filled up with rows of padding, which have no loss.

  Args and errors are those of `make_source`.
  """
  if batch_size < 1:
    raise UserError(f'train.batch_size={batch_size}: use 1 or more')
  _check_lengths(examples.lengths, max_length)
  lengths = _group_lengths(examples, group)
  units = [[i] for i in range(len(lengths))]
  if packing:
    units = packing_lib.best_fit(lengths, group * max_length)
  segments = group * max(map(len, units))
  for start in range(0, len(units), batch_size):
    members = [_expand(row, group) for row in units[start : start + batch_size]]
    members += [[]] * (batch_size - len(members))
    batch = fill_rows(examples, members, group * max_length, packing, pad_id)
    yield batch | _example_ids(members, segments, named or group > 1)


def fill_rows(
  examples: Examples,
  members: list[list[int]],
  max_length: int,
  packing: bool,
  pad_id: int = 0,
) -> dict[str, np.ndarray]:
  """The arrays of a batch, given which examples each row has.

  Args:
    examples: where they come from.
    members: for each row the indices of its examples; an empty row is padding.
    max_length: T of packed rows, and the largest T of others.
    packing: False takes the first T of the ladder that holds every row.
    pad_id: token of the padding.

  Returns:
    `tokens`, `segment_ids` (1, 2, … in a row, 0 for padding), `positions` (from
    0 in each segment): int32[B, T]; `loss_mask`: float32[B, T], the weight of
    each token, 0 for those that are not to be predicted.
  """
  length = max_length
  if not packing:
    longest = max(sum(len(examples[i].tokens) for i in row) for row in members)
    length = bucket(longest, maximum=max_length)
  shape = (len(members), length)
  batch = {
    'tokens': np.full(shape, pad_id, np.int32),
    'loss_mask': np.zeros(shape, np.float32),
    'segment_ids': np.zeros(shape, np.int32),
    'positions': np.zeros(shape, np.int32),
  }
  for row, indices in enumerate(members):
    start = 0
    for segment, index in enumerate(indices, 1):
      example = examples[index]
      part = (row, slice(start, start + len(example.tokens)))
      batch['tokens'][part] = example.tokens
      batch['loss_mask'][part] = example.loss_weights
      batch['segment_ids'][part] = segment
      batch['positions'][part] = np.arange(len(example.tokens))
      start += len(example.tokens)
  return batch


def fill_stats(batch: dict[str, np.ndarray]) -> dict[str, float]:
  """`tokens` (no padding), `loss_tokens` and `efficiency` of a batch.

  Args:
    batch: `segment_ids` and `loss_mask` [B, T].
  """
  tokens = int(np.count_nonzero(batch['segment_ids']))
  return {
    'tokens': tokens,
    'loss_tokens': int(np.count_nonzero(batch['loss_mask'])),
    'efficiency': tokens / batch['segment_ids'].size,
  }


# The config field behind each part of a source's identity.
_FIELDS = {
  'digest': 'data.path',
  'max_length': 'data.max_length',
  'packing': 'data.packing',
  'shuffle': 'data.shuffle',
  'seed': 'data.seed',
  'batch_size': 'train.batch_size',
}


class _Rows:
  """All rows of all epochs as one long list, for Grain to read from.

  Row i is row i % per_epoch of epoch i // per_epoch, as (i, its examples).
  """

  def __init__(
    self, examples, max_length, packing, shuffle, seed, pad_id, group, named
  ):
    if not len(examples):
      raise UserError('data.path: there are no examples')
    _check_lengths(examples.lengths, max_length)
    max_length *= group
    self.examples, self.max_length, self.packing = examples, max_length, packing
    self.pad_id, self.group, self.named = pad_id, group, named or group > 1
    self._shuffle, self._seed = shuffle, seed
    lengths = _group_lengths(examples, group)
    self._packs, self._decreasing = None, -lengths
    if packing and shuffle:
      # Rows of ranks in the order of length. Which of equally long examples
      # has which rank is drawn anew each epoch.
      self._packs = packing_lib.best_fit(np.sort(lengths)[::-1], max_length)
    elif packing:
      self._packs = packing_lib.next_fit(lengths.tolist(), max_length)
    self.per_epoch = len(self._packs) if packing else len(lengths)
    self.segments = group * (max(map(len, self._packs)) if packing else 1)
    self.identity = {
      'digest': examples.digest,
      'max_length': max_length,
      'packing': packing,
      'shuffle': shuffle,
      'seed': seed,
    }
    self._order = functools.lru_cache(maxsize=2)(self._make_order)

  def __len__(self) -> int:
    return 2**48 // self.per_epoch * self.per_epoch

  def __getitem__(self, index: int) -> tuple[int, list[int]]:
    epoch, at = divmod(index, self.per_epoch)
    order, rows = self._order(epoch)
    row = rows[at] if rows is not None else at
    members = self._packs[row] if self.packing else [row]
    if order is not None:
      members = order[members].tolist()
    return index, members

  def _make_order(self, epoch: int):
    """(example of each rank, order of the rows); None for no change."""
    if not self._shuffle:
      return None, None
    rng = np.random.default_rng((self._seed, epoch))
    if not self.packing:
      return None, rng.permutation(self.per_epoch).tolist()
    order = rng.permutation(len(self._decreasing))
    order = order[np.argsort(self._decreasing[order], kind='stable')]
    return order, rng.permutation(self.per_epoch).tolist()


def _make_batch(rows: _Rows, drawn: list[tuple[int, list[int]]]):
  members = [_expand(units, rows.group) for _, units in drawn]
  batch = fill_rows(
    rows.examples, members, rows.max_length, rows.packing, rows.pad_id
  )
  batch |= _example_ids(members, rows.segments, rows.named)
  stats = {
    'epoch': (drawn[-1][0] + 1) / rows.per_epoch,
    'examples': sum(map(len, members)),
  }
  return batch, stats | fill_stats(batch)


def _group_lengths(examples: Examples, group: int) -> np.ndarray:
  """Tokens of each group of consecutive examples."""
  if len(examples) % group:
    raise ValueError(
      f'{len(examples)} examples do not divide into groups of {group}'
    )
  return examples.lengths.reshape(-1, group).sum(axis=1)


def _expand(units: list[int], group: int) -> list[int]:
  """The examples of groups: [3] -> [6, 7] for pairs."""
  return [unit * group + i for unit in units for i in range(group)]


def _example_ids(members, segments: int, named: bool) -> dict[str, np.ndarray]:
  """The array `examples` of a named batch, see `make_source`."""
  if not named:
    return {}
  ids = np.full((len(members), segments), -1, np.int32)
  for row, indices in enumerate(members):
    ids[row, : len(indices)] = indices
  return {'examples': ids}


def _check_lengths(lengths: np.ndarray, max_length: int) -> None:
  longest = int(lengths.max(initial=0))
  if longest > max_length:
    raise UserError(
      f'data.max_length={max_length}: example {int(lengths.argmax())} has'
      f' {longest} tokens; tokenize with the same data.max_length'
    )
