"""A row in words: coloured for the terminal, and as an object for scripts."""

from collections.abc import Iterator
import itertools
from typing import Any

import numpy as np
from rich import console as rich_console
from rich import text as rich_text

from llm.data.examples import Example
from llm.host import terminal
from llm.preview.rows import Seen
from llm.text import detokenize

# Where a stretch of equal weight is longer than both, its middle is left out.
_HEAD, _TAIL = 240, 160


def as_object(tok, example: Example, weights: bool = True) -> dict[str, Any]:
  """{'token_ids', 'loss_weights', 'text'} of an example.

  Args:
    tok: a `Tokenizer`.
    example: the tokens.
    weights: False leaves out the loss weights.
  """
  ids = example.tokens.tolist()
  row = {'token_ids': ids}
  if weights:
    row['loss_weights'] = [round(float(w), 6) for w in example.loss_weights]
  return row | {'text': tok.decode(ids, skip_special=False)}


def seen_object(tok, seen: Seen, weights: bool = True) -> dict[str, Any]:
  """What is written for a row: its parts, or {'left_out': why}."""
  if seen.left_out is not None:
    return {'left_out': seen.left_out}
  parts = {
    name: as_object(tok, example, weights)
    for name, example in seen.parts.items()
  }
  row = parts.pop('', {}) | parts | seen.extra
  return row | {name: {'left_out': why} for name, why in seen.missing.items()}


def print_example(
  tok, example: Example, caption: str, console: rich_console.Console
) -> None:
  """Prints a caption and the coloured tokens of an example."""
  console.print(
    rich_text.Text(caption, style='bold'),
    coloured(tok, example, console.color_system is not None),
    sep='\n',
    soft_wrap=True,
  )


def coloured(tok, example: Example, colours: bool) -> rich_text.Text:
  """The text of an example, by how much each token is learned.

  Context is dim, what is learned green: the darker, the less its weight is
  below 1, the brighter, the more it is above. Special tokens are underlined,
  and ⏎ stands at each line end. Without colours what is learned is between ⟦
  and ⟧, with its weight where that is not 1.

  Args:
    tok: a `Tokenizer`.
    example: the tokens with their weights.
    colours: whether the terminal has any.
  """
  out = rich_text.Text()
  groups = itertools.groupby(_stretches(tok, example), lambda s: s[0])
  for weight, stretches in groups:
    marks = ('', '')
    if weight and not colours:
      marks = ('⟦' if weight == 1 else f'⟦{weight:g}: ', '⟧')
    out.append(marks[0])
    for _, special, text in stretches:
      style = style_of(weight) + (' underline' if special else '')
      out.append(_shortened(terminal.printable(text)), style)
    out.append(marks[1])
  return out


def style_of(weight: float) -> str:
  """The style of a token with this loss weight."""
  if weight == 0:
    return 'dim'
  if weight == 1:
    return 'green'
  if weight < 1:
    return f'rgb(0,{int(70 + 80 * weight)},0)'
  return f'bold rgb({int(min(255, 64 * weight))},255,0)'


def _stretches(tok, example: Example) -> Iterator[tuple[float, bool, str]]:
  """(weight, whether it is a special token, text) of tokens that are alike."""
  special = tok.special_ids | set(tok.eos_ids)
  state = detokenize.start(skip_special=False)
  tokens = zip(example.tokens.tolist(), example.loss_weights.tolist())
  for (weight, is_special), group in itertools.groupby(
    tokens, lambda pair: (round(pair[1], 6), pair[0] in special)
  ):
    state, text = detokenize.push(tok, state, [id for id, _ in group])
    yield weight, is_special, text
  yield weight, False, detokenize.flush(tok, state)[1]


def _shortened(text: str) -> str:
  if len(text) > _HEAD + _TAIL:
    left_out = len(text) - _HEAD - _TAIL
    text = f'{text[:_HEAD]} … {left_out:,} characters … {text[-_TAIL:]}'
  return text.replace('\n', '⏎\n')


def learned(example: Example) -> int:
  """How many tokens have a loss weight above 0."""
  return int(np.count_nonzero(example.loss_weights))
