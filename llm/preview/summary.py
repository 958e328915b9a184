"""The numbers of a file of rows: kept, left out, long, packed, learned."""

import collections
import dataclasses
import heapq
from typing import Any

import numpy as np
from rich.markup import escape

from llm.buckets import bucket
from llm.data import packing
from llm.data.examples import Example
from llm.host import terminal
from llm.preview.rows import Seen

_LONGEST = 3  # rows that are named
_REASONS = 3  # refusals that are quoted


@dataclasses.dataclass
class Summary:
  """Numbers that grow with each row.

  Attributes:
    max_length: tokens of an example at most.
    has_loss: False where prompts are shown, of which nothing is learned yet.
  """

  max_length: int
  has_loss: bool = True
  rows: int = 0
  tokens: int = 0
  learned: int = 0
  cut: int = 0
  left_out: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  unread: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  ends: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  group: int = 1
  lengths: list[int] = dataclasses.field(default_factory=list)
  longest: list[tuple[int, str]] = dataclasses.field(default_factory=list)
  refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)

  def add(self, seen: Seen, name: str) -> None:
    """Counts a row, which is called `name` where it is named."""
    self.rows += 1
    self.unread.update(seen.unread)
    self.cut += seen.cut
    if seen.length:
      self.longest.append((seen.length, name))
      self.longest = heapq.nlargest(_LONGEST, self.longest, lambda row: row[0])
    if seen.left_out is not None:
      self.left_out[seen.counted] += 1
      if seen.counted == 'refused' and len(self.refused) < _REASONS:
        self.refused.append((name, seen.left_out))
      return
    self.lengths += seen.lengths
    self.group = max(self.group, seen.group)
    for example in seen.parts.values():
      self.tokens += len(example.tokens)
      self.learned += int(np.count_nonzero(example.loss_weights))
      self.ends.update(turn_ends(example))

  def record(self) -> dict[str, Any]:
    """The numbers as JSON can hold them, for `result.json`."""
    return {
      'rows': self.rows,
      'kept': self.rows - self.left_out.total(),
      'left_out': dict(self.left_out),
      'truncated': self.cut,
      'unread': dict(self.unread),
      'tokens': self.tokens,
      'learned_tokens': self.learned,
      'longest': [{'row': name, 'tokens': n} for n, name in self.longest],
      'packed_efficiency': self.packed(),
      'padded_efficiency': self.padded(),
      'turn_ends': {str(token): n for token, n in self.ends.most_common()},
    }

  def packed(self) -> float | None:
    """Real tokens of all, where rows are packed by best fit."""
    if not self.lengths:
      return None
    capacity = self.max_length * self.group
    packs = packing.best_fit(self.lengths, capacity)
    return sum(self.lengths) / (len(packs) * capacity)

  def padded(self) -> float | None:
    """The same where each row is padded by itself, to 16, 32, 64, …."""
    if not self.lengths:
      return None
    most = self.max_length * self.group
    sizes = [bucket(length, maximum=most) for length in self.lengths]
    return sum(self.lengths) / sum(sizes)

  def table(self, tok) -> list[tuple[str, str]]:
    """(name, value) lines for the terminal."""
    kept = self.rows - self.left_out.total()
    lines = [('rows', f'{self.rows:,}, of which {kept:,} are kept')]
    for name, count in self.left_out.most_common():
      note = ' (training stops at such a row)' if name == 'refused' else ''
      lines.append((f'left out, {name}', f'{count:,}{note}'))
    for name, why in self.refused:
      lines.append((f'  row {name}', escape(terminal.printable(why))))
    if self.cut:
      at = f'{self.cut:,} at data.max_length={self.max_length}'
      lines.append(('truncated', at))
    for name, count in self.unread.most_common():
      name = escape(terminal.printable(name))
      lines.append((f'not read: {name}', f'in {count:,} rows'))
    if self.longest:
      rows = (f'{n:,} tokens (row {name})' for n, name in self.longest)
      lines.append(('longest', ', '.join(rows)))
    if not self.lengths:
      return lines
    if self.has_loss:
      share = self.learned / self.tokens
      of = f'{self.learned:,} of {self.tokens:,} ({share:.1%})'
      lines.append(('tokens learned', of))
      lines.append(('ends of turns', _ends(self.ends, tok)))
      full = f'{self.packed():.1%}, without packing {self.padded():.1%}'
      lines.append(('packing efficiency', full))
    else:
      lines.append(('tokens', f'{self.tokens:,}'))
    return lines


def turn_ends(example: Example) -> list[int]:
  """The last token of each stretch that is learned."""
  mask = np.append(example.loss_weights > 0, False)
  return example.tokens[np.flatnonzero(mask[:-1] & ~mask[1:])].tolist()


def _ends(ends: collections.Counter, tok) -> str:
  """Which tokens end what is learned, and how often."""
  special = tok.special_ids | set(tok.eos_ids)
  named = [
    f'{tok.token(token)} (id {token}) {count:,}×'
    for token, count in ends.most_common()
    if token in special
  ]
  others = sum(count for token, count in ends.items() if token not in special)
  if others:
    named.append(f'no special token {others:,}×')
  return ', '.join(named)
