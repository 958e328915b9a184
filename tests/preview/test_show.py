"""Rows in the terminal: colours by weight, ends of lines, special tokens."""

import io

import numpy as np
from rich import console as rich_console

from llm.data.examples import Example
from llm.preview import show
from llm.text.tokenizer import load_tokenizer

TOK = load_tokenizer('bytes')
END = TOK.eos_ids[0]


def example(*parts):
  """Of (bytes or ids, weight) pairs."""
  ids, weights = [], []
  for tokens, weight in parts:
    tokens = list(tokens)
    ids += tokens
    weights += [weight] * len(tokens)
  return Example(np.array(ids, np.int32), np.array(weights, np.float32))


def test_weights_are_shades():
  assert show.style_of(0) == 'dim' and show.style_of(1) == 'green'
  half, low = show.style_of(0.5), show.style_of(0.1)
  assert half == 'rgb(0,110,0)' and low == 'rgb(0,78,0)'
  assert show.style_of(2) == 'bold rgb(128,255,0)'


def test_each_stretch_has_its_style():
  row = example((b'q\n', 0), (b'ab', 1), ([END], 1), (b'c', 0.5))
  text = show.coloured(TOK, row, colours=True)
  assert text.plain == f'q⏎\nab{TOK.token(END)}c'
  assert [
    (text.plain[span.start : span.end], span.style) for span in text.spans
  ] == [
    ('q⏎\n', 'dim'),
    ('ab', 'green'),
    (TOK.token(END), 'green underline'),
    ('c', 'rgb(0,110,0)'),
  ]


def test_without_colours_there_are_brackets():
  row = example((b'q', 0), (b'a', 1), ([END], 1), (b'b', 0.5), (b'c', 0))
  text = show.coloured(TOK, row, colours=False).plain
  assert text == f'q⟦a{TOK.token(END)}⟧⟦0.5: b⟧c'


def test_a_character_of_several_tokens_is_whole():
  smile = '☺'.encode()
  row = example((b'q', 0), (smile[:1], 0), (smile[1:], 1))
  assert show.coloured(TOK, row, colours=False).plain == 'q⟦☺⟧'
  broken = example((b'q', 0), (smile[:2], 1))
  assert show.coloured(TOK, broken, colours=False).plain == 'q⟦\ufffd⟧'


def test_long_stretches_lose_their_middle_and_controls_are_harmless():
  row = example((b'x' * 1000, 0), (b'\x1b[2Ja', 1))
  text = show.coloured(TOK, row, colours=False).plain
  assert text.endswith('x⟦\ufffd[2Ja⟧')
  assert '600 characters' in text and len(text) < 450


def test_what_looks_like_markup_is_text():
  console = rich_console.Console(width=80, record=True, file=io.StringIO())
  row = example((b'[bold]a[/]', 1))
  show.print_example(TOK, row, 'row 1 [red]', console)
  assert console.export_text() == 'row 1 [red]\n⟦[bold]a[/]⟧\n'
