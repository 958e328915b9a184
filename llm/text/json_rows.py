"""JSON text to values, without losing any of it in silence.

Python's parser keeps the last one of doubled keys, reads 1e999 as infinity and
passes on half of a surrogate pair. Here such a value is `Bad`, with the place.
"""

from collections.abc import Iterator
import json
import math
import re
from typing import Any, NamedTuple

from llm.text.messages import show

# Deeper values are beyond what other parts of the program can walk.
MOST_NESTED = 100
_DEEP = f'more than {MOST_NESTED} deep; write it flatter'


class Bad(NamedTuple):
  """Stands for a row that cannot be used."""

  why: str


class _Doubled(dict):
  """An object with a key that was there twice: `doubled` has both values."""

  doubled: tuple[str, Any, Any]


class _Huge(float):
  """A number that Python does not hold: `digits` is how it was written."""

  digits: str


class Parser:
  """Reads JSON texts; one for all rows of a file."""

  def __init__(self):
    self._is_marked = False
    self._decoder = json.JSONDecoder(
      object_pairs_hook=self._object,
      parse_float=self._float,
      parse_int=self._int,
    )

  def row(self, text: str) -> Any:
    """The value of a text, or `Bad` where the text is no JSON."""
    try:
      value, is_clean = self._parse(text)
    except (ValueError, RecursionError) as error:
      return Bad(_reason(error))
    return value if is_clean else _checked(value)

  def rows(self, text: str) -> list[Any]:
    """The elements of a list, or the value itself as the only row.

    Raises:
      ValueError, RecursionError: the text is no JSON, or too deep.
    """
    value, is_clean = self._parse(text)
    values = value if isinstance(value, list) else [value]
    return values if is_clean else [_checked(value) for value in values]

  def _parse(self, text: str) -> tuple[Any, bool]:
    """The value, and whether nothing in it needs a look."""
    self._is_marked = False
    # The decoder's own method wants no space before a value.
    value = self._decoder.decode(text)
    # Escapes are the only way to write half of a surrogate pair.
    has_escapes = '\\ud' in text or '\\uD' in text
    brackets = text.count('{') + text.count('[')
    is_flat = brackets <= MOST_NESTED
    return value, not self._is_marked and not has_escapes and is_flat

  def _object(self, pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) == len(pairs):
      return found
    for key, value in pairs:
      if value != found[key]:
        self._is_marked = True
        found = _Doubled(found)
        found.doubled = (key, value, found[key])
        break
    return found

  def _float(self, text: str) -> float:
    value = float(text)
    return self._huge(text) if math.isinf(value) else value

  def _int(self, text: str) -> int | float:
    try:
      return int(text)
    except ValueError:  # more digits than Python converts
      return self._huge(text)

  def _huge(self, text: str) -> float:
    self._is_marked = True
    value = _Huge(text)
    value.digits = text
    return value


def _checked(value: Any) -> Any:
  """The value, or `Bad` for an object of which a part is lost or no text."""
  if not isinstance(value, dict):
    return value
  for path, part in _parts(value):
    where = path or 'the row'
    if isinstance(part, _Doubled):
      key, first, last = part.doubled
      return Bad(
        f'{where} has {key!r} twice, as {show(first)} and as {show(last)}; keep'
        ' one of them'
      )
    if isinstance(part, _Huge):
      return Bad(
        f'{where}={show(part.digits)[1:-1]} is beyond the largest number; give'
        ' a smaller one, or a string'
      )
    if isinstance(part, str) and not _is_text(part):
      return Bad(
        f'{where}={show(part)} has half of a surrogate pair, which no text can'
        ' have; remove it or write the whole pair'
      )
    if part is _TOO_DEEP:
      column = re.split(r'[.\[]', path)[0]
      return Bad(f'{column} is nested {_DEEP}')
  return value


_TOO_DEEP = object()


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
  """Every value in a value, keys included, each with its path."""
  rest = [('', value, 0)]
  while rest:
    path, part, depth = rest.pop()
    if depth >= MOST_NESTED and isinstance(part, (dict, list)):
      yield path, _TOO_DEEP
      return
    yield path, part
    if isinstance(part, dict):
      for key in part:
        yield f'a key of {path or "the row"}', key
      inner = [
        (f'{path}.{key}' if path else key, item) for key, item in part.items()
      ]
    elif isinstance(part, list):
      inner = [(f'{path}[{n}]', item) for n, item in enumerate(part)]
    else:
      continue
    rest += [(path, item, depth + 1) for path, item in reversed(inner)]


def _is_text(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _reason(error: Exception) -> str:
  if isinstance(error, RecursionError):
    return f'nested {_DEEP}'
  return f'not valid JSON ({error})'
