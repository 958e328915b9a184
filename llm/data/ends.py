"""What training teaches as the end of a completion."""

from collections.abc import Collection

import numpy as np

from llm.data.examples import Examples


def ends_of(examples: Examples, tok) -> tuple[int, ...]:
  """`taught_ends` with the special tokens of a tokenizer."""
  return taught_ends(examples, tok.special_ids | set(tok.eos_ids))


def taught_ends(
  examples: Examples, special_ids: Collection[int]
) -> tuple[int, ...]:
  """The special tokens that end what is learned, most frequent first.

    tokens  5 6 9 3 4 9    loss_mask  0 1 1 0 1 1    special {9} -> (9,)

  A token that also occurs inside of learned turns, more than once for ten ends,
  ends no completion: GPT-OSS has `<|end|>` between thoughts and reply.

  Args:
    examples: of rows that were learned from.
    special_ids: of the tokenizer.
  """
  learned = np.append(examples.loss_mask, False)
  goes_on = learned[1:].copy()
  goes_on[examples.offsets[1:-1] - 1] = False  # another example begins
  special = np.isin(examples.tokens, list(special_ids))
  counts = [
    dict(zip(*np.unique(examples.tokens[where], return_counts=True)))
    for where in (
      special & learned[:-1] & ~goes_on,
      special & learned[:-1] & goes_on,
    )
  ]
  ends, inside = counts
  kept = [id for id, n in ends.items() if 10 * inside.get(id, 0) <= n] or ends
  return tuple(int(id) for id in sorted(kept, key=lambda id: (-ends[id], id)))
