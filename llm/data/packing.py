"""Documents of token ids packed into rows of one length."""

from collections.abc import Iterator, Sequence

import numpy as np

from llm.errors import UserError


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
