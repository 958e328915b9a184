"""A curriculum of sequence lengths: short rows first, no token is dropped."""

from collections.abc import Sequence

import numpy as np

from llm.errors import UserError

Schedule = Sequence[tuple[int | float, int]]


def shorten(batch: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
  """Cuts the rows of a batch into pieces of `length` tokens.

  [B, T] becomes [B · ceil(T / length), length]: the pieces of a row follow each
  other, and the last one is padded. A document that is cut continues at
  position 0, and the first token of its new piece is not predicted any more:

    tokens       5 6 7 8 9 3   length 4: 5 6 7 8 | 9 3 . .
    segment_ids  1 1 1 1 1 2             1 1 1 1 | 1 2 0 0
    positions    0 1 2 3 4 0             0 1 2 3 | 0 0 0 0

  Args:
    batch: arrays [B, T]: `tokens`, `loss_mask`, `segment_ids`, `positions`.
    length: tokens of a piece; T or more returns the batch as it is.

  Raises:
    UserError: length < 2.
  """
  if length < 2:
    raise UserError(f'data.curriculum: a length of {length}; use 2 or more')
  rows, total = batch['tokens'].shape
  if length >= total:
    return batch
  pieces = -(-total // length)
  pad = ((0, 0), (0, pieces * length - total))
  shape = (rows * pieces, length)
  out = {k: np.pad(v, pad).reshape(shape) for k, v in batch.items()}
  segments = out['segment_ids']
  # Segments count from 1 in each piece, positions from a segment's begin in it.
  begins = np.diff(segments, axis=1, prepend=0) != 0
  out['segment_ids'] = np.where(
    segments, np.cumsum(begins & (segments != 0), axis=1), 0
  ).astype(np.int32)
  at = np.arange(length)
  first = np.maximum.accumulate(np.where(begins, at, 0), axis=1)
  out['positions'] = np.where(segments, at - first, 0).astype(np.int32)
  out['loss_mask'] = out['loss_mask'] * (out['positions'] > 0)
  return out


def length_at(
  step: int, total_steps: int, schedule: Schedule, max_length: int
) -> int:
  """The length of rows at a step.

    ((0.25, 64), (0.5, 128)), 1000 steps -> 64 before step 250, 128 before
    step 500, then max_length

  Args:
    step: from 0.
    total_steps: of the run.
    schedule: (until, length) in order of time; `until` is a share of the run
      as a float, or a step as an int.
    max_length: the length after the last stage.
  """
  for until, length in schedule:
    if step < _until_step(until, total_steps):
      return min(length, max_length)
  return max_length


def check_schedule(
  schedule: Schedule, total_steps: int, max_length: int
) -> None:
  """Refuses a malformed schedule.

  Raises:
    UserError: `data.curriculum` has a stage that is malformed, out of order or
      longer than max_length.
  """
  before = 0
  for stage in schedule:
    name = f'data.curriculum: stage {stage!r}'
    if (
      not isinstance(stage, (tuple, list))
      or len(stage) != 2
      or isinstance(stage[0], bool)
      or not isinstance(stage[0], (int, float))
      or type(stage[1]) is not int
    ):
      raise UserError(f'{name}: give (until, length), such as (0.25, 64)')
    if isinstance(stage[0], float) and not 0.0 < stage[0] <= 1.0:
      raise UserError(
        f'{name}: a share of the run is above 0.0 and at most 1.0; a step is'
        ' an integer'
      )
    until = _until_step(stage[0], total_steps)
    if until <= before:
      raise UserError(
        f'{name} ends at step {until}, but begins at step {before}; put the'
        ' stages in order'
      )
    if not 2 <= stage[1] <= max_length:
      raise UserError(
        f'{name}: use a length of 2 to data.max_length={max_length}'
      )
    before = until


def _until_step(until: int | float, total_steps: int) -> int:
  return round(until * total_steps) if isinstance(until, float) else until
