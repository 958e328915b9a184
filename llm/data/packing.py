"""Packing: which documents share a row."""

import collections
from collections.abc import Sequence
import itertools

import numpy as np

from llm.errors import UserError


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Packs by best fit decreasing: longest first, each into the fullest row.

  A document goes into the row with the least room that still holds it; among
  rows with equal room, into the one that has had that room for longest. A new
  row begins where none has room:

    lengths [4, 2, 3, 1], capacity 4 -> [[0], [2, 3], [1]]

  The number of rows depends on the lengths alone, not on their order. Takes
  about 1 µs a document and row: a bit mask finds rows by their room, and
  documents of equal length are placed together.

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
      # The row stays the fullest until the next document would not fit.
      count = min(room // length, end - at)
      rows[row] += ordered[at : at + count]
      at += count
      room -= count * length
      if room:
        having[room].append(row)
        rooms |= 1 << room
  return rows


def next_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Packs in the given order: a row ends where the next document does not fit.

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
