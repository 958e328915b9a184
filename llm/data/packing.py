"""Which documents share a row, and documents packed into rows."""

import collections
from collections.abc import Iterator, Sequence
import itertools

import numpy as np

from llm.errors import UserError


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Packs by best fit decreasing: the longest first, each where it is tightest.

  A document goes into the row with the least room that still holds it; of rows
  with equal room into the one that has had it for longest. A new row is begun
  where none has room:

    lengths [4, 2, 3, 1], capacity 4 -> [[0], [2, 3], [1]]

  The number of rows depends on the lengths alone, not on their order. Takes
  about 1 µs a document and row, for rows of equal room are found by a bit mask
  and documents of equal length placed together.

  Args:
    lengths: tokens of each document, 1 to `capacity`.
    capacity: tokens of a row.

  Returns:
    For each row the indices of its documents; equally long ones in their order.

  Raises:
    UserError: a document is empty or longer than a row.

  Source: "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830).
  """
  lengths = np.asarray(lengths, np.int64)
  _check_lengths(lengths, capacity)
  order = np.argsort(-lengths, kind='stable')
  ordered = order.tolist()
  # [start, end) of the documents of one length, the longest first.
  bounds = np.flatnonzero(np.diff(lengths[order], prepend=-1, append=-1))
  rows: list[list[int]] = []
  # Rows that have room, by their room, and a bit for each room that occurs.
  having = collections.defaultdict(collections.deque)
  rooms = 0
  for at, end in itertools.pairwise(bounds.tolist()):
    length = int(lengths[ordered[at]])
    while at < end:
      fitting = rooms >> length
      if fitting:
        room = length + (fitting & -fitting).bit_length() - 1
        row = having[room].popleft()
        if not having[room]:
          rooms &= ~(1 << room)
      else:
        room, row = capacity, len(rows)
        rows.append([])
      # The row stays the tightest until the next one would not fit.
      count = min(room // length, end - at)
      rows[row] += ordered[at : at + count]
      at += count
      room -= count * length
      if room:
        having[room].append(row)
        rooms |= 1 << room
  return rows


def next_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Packs in the order given: a row ends where the next document is too long.

  Args, returns and errors are those of `best_fit`.
  """
  _check_lengths(np.asarray(lengths, np.int64), capacity)
  rows, room = [], 0
  for i, length in enumerate(lengths):
    if not rows or length > room:
      rows.append([])
      room = capacity
    rows[-1].append(i)
    room -= int(length)
  return rows


def _check_lengths(lengths: np.ndarray, capacity: int) -> None:
  bad = np.flatnonzero((lengths < 1) | (lengths > capacity))
  if bad.size:
    raise UserError(
      f'document {bad[0]} has {lengths[bad[0]]} tokens and data.max_length='
      f'{capacity}: documents need 1 to data.max_length tokens'
    )


def pack_documents(
  documents: Sequence[Sequence[int]], length: int, pad_id: int = 0
) -> dict[str, np.ndarray]:
  """Packs whole documents into rows, first fit in the order given.

  Documents of one row are told apart by `segment_ids` (1, 2, …; 0 is padding)
  and count `positions` from 0 each, so that attention and rotary embedding see
  them as they will be seen in generation. First fit looks at the last few open
  rows only, which keeps the order of the documents nearly as given.

  Args:
    documents: token ids, each of 1 to `length` tokens.
    length: T.
    pad_id: token of the padding.

  Returns:
    `tokens`, `segment_ids`, `positions`: int32[rows, T]; `loss_mask`:
    bool[rows, T], True on every token of a document.

  Raises:
    UserError: a document is empty or longer than a row.
  """
  rows, open_rows = [], []
  for i, document in enumerate(documents):
    if not 1 <= len(document) <= length:
      raise UserError(
        f'document {i} has {len(document)} tokens and data.max_length='
        f'{length}: documents need 1 to data.max_length tokens'
      )
    row = next((r for r in open_rows if r[1] + len(document) <= length), None)
    if row is None:
      row = [[], 0]
      rows.append(row)
      open_rows = open_rows[-7:] + [row]
    row[0].append(document)
    row[1] += len(document)
  shape = (len(rows), length)
  tokens = np.full(shape, pad_id, np.int32)
  segment_ids = np.zeros(shape, np.int32)
  positions = np.zeros(shape, np.int32)
  for i, (members, _) in enumerate(rows):
    start = 0
    for segment, document in enumerate(members, 1):
      end = start + len(document)
      tokens[i, start:end] = document
      segment_ids[i, start:end] = segment
      positions[i, start:end] = np.arange(len(document))
      start = end
  return {
    'tokens': tokens,
    'segment_ids': segment_ids,
    'positions': positions,
    'loss_mask': segment_ids != 0,
  }


def packed_batches(
  documents: Sequence[Sequence[int]],
  length: int,
  batch_size: int,
  seed: int,
  pad_id: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches without end, each epoch in a new order and packing.

  The rows that do not fill an epoch's last batch are left out of that epoch.

  Args:
    documents, length, pad_id: as in `pack_documents`.
    batch_size: B, rows of a batch.
    seed: with the epoch's number it decides the order.

  Yields:
    The arrays of `pack_documents`, [B, T].

  Raises:
    UserError: the documents fill fewer rows than one batch, or see above.
  """
  epoch = 0
  while True:
    order = np.random.default_rng((seed, epoch)).permutation(len(documents))
    rows = pack_documents([documents[i] for i in order], length, pad_id)
    count = len(rows['tokens'])
    if count < batch_size:
      raise UserError(
        f'train.batch_size={batch_size}: the documents fill only {count} rows '
        f'of data.max_length={length}: use a smaller batch or length'
      )
    for start in range(0, count - batch_size + 1, batch_size):
      yield {k: v[start : start + batch_size] for k, v in rows.items()}
    epoch += 1
