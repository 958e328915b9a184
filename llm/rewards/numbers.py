"""Numbers as models and data sets write them in running text."""

import re
import unicodedata

# Hyphens, dashes and minus signs, as keyboards, editors and models write them.
_SHORT = '-\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d'
# Those that mostly stand between the parts of a sentence.
_LONG = '\u2014\u2015'
_DASHES = re.compile(f'[{_SHORT}{_LONG}]')
# Marks of decimals and thousands: full-width ones, Arabic ones, and spaces that
# are thin or do not break the line.
_MARKS = str.maketrans(
  {'．': '.', '，': ',', '\u066b': '.', '\u066c': ','}
  | dict.fromkeys('\u00a0\u2007\u2009', '\u202f')
)
# What separates groups of three digits: '1,234', '1 234', '1_234', "1'234", and
# LaTeX's '1{,}234' and r'1\,234'.
_GROUPED = (
  r"[1-9]\d{0,2}(?P<mark>[,_'\u2019\u202f]|\{,\}|\\[, ])"
  r'\d{3}(?:(?P=mark)\d{3})*(?!\d)'
  # Plain spaces, unless they separate the numbers of a list.
  r'|(?<!\d )[1-9]\d{0,2}(?: \d{3})+(?! ?\d)'
)
_UNSIGNED = (
  rf'(?:(?:{_GROUPED}|\d+)(?:\.\d+)?|(?<!\d)\.\d+)'
  rf'(?:[eE][+{_SHORT}]?\d+)?'
)
_SIMPLE = r'\d+(?:\.\d+)?'
_NUMBER = re.compile(
  rf'(?P<sign>[{_SHORT}{_LONG}](?P<space>(?:[\s\u202f]|\\[ ,;])*))?'
  r'(?:\\?[$€£¥₹₩])?'
  r'(?:'
  rf'\\[dt]?frac\{{(?P<minus>[{_SHORT}]?)(?P<over>{_SIMPLE})\}}'
  rf'\{{(?P<under>{_SIMPLE})\}}'
  # Not the parts of a date such as 1/2/2024.
  rf'|(?<!\d/)(?P<top>{_SIMPLE})[/\u2044\u2215](?P<bottom>{_SIMPLE})(?![/\d])'
  rf'|(?P<whole>{_UNSIGNED})'
  r')',
  re.ASCII,
)
# After these a dash is a sign even with a space behind it, or a long one.
_OPERATORS = '=≈≠<>≤≥≡(+*/×÷·∈'


def last_value(text: str) -> float | None:
  """The value of the last number in a text, None where there is none.

  Numbers are such as 7, .5, 1e3, 1,234.5, 1 234, ７ and 1/2. A hyphen, dash or
  minus sign of any kind right before a number makes it negative, except after
  a word, a number or a closing bracket, where it subtracts, joins or spans:

    so x = −5    -5        2-3, 3–5, x−5     3, 5, 5
    -$1,200      -1200     COVID-19          19
    = - 5        -5        seven - 5         5

  Signs of currencies and percents are no part of a number, and other arithmetic
  is not done: '50%' is 50, and '2^3' ends in 3.

  Returns:
    a float, infinite for a number beyond its range, NaN for a fraction of 0.
  """
  text = _plain(text)
  last = None
  for last in _NUMBER.finditer(text):
    pass
  if last is None:
    return None
  return _value(last, _is_negative(text[: last.start()], last))


def only_value(text: str) -> float | None:
  """The value of a text that is one number and nothing else, else None.

  '$' and the like may stand before it, '%' and a full stop after it; see
  `last_value` for what a number is.
  """
  text = re.sub(r'\\?%$|\.$', '', _plain(text).strip()).removeprefix('+')
  found = _NUMBER.fullmatch(text.strip())
  return None if found is None else _value(found, bool(found['sign']))


def _plain(text: str) -> str:
  """The text with the digits and marks of other scripts as those of ASCII."""
  text = re.sub(r'\d', lambda m: str(unicodedata.decimal(m[0])), text)
  return text.translate(_MARKS)


def _value(found: re.Match, negative: bool) -> float:
  over = found['over'] or found['top']
  if over is None:
    digits = _DASHES.sub('-', found['whole'])
    value = float(re.sub(r'[^\d.eE+-]', '', digits))
  else:
    under = float(found['under'] or found['bottom'])
    value = float(over) / under if under else float('nan')
    negative ^= bool(found['minus'])
  return -value if negative else value


def _is_negative(before: str, found: re.Match) -> bool:
  """Whether the dash before a number, if there is one, is its sign."""
  sign = found['sign']
  if not sign:
    return False
  stripped = before.rstrip()
  if found['space'] or sign[0] in _LONG:
    alone = not stripped and not found['space']
    return alone or stripped.endswith(tuple(_OPERATORS))
  if not before:
    return True
  last = before[-1]
  if last in ').]}%°!' or _DASHES.match(last):
    return False
  return not (last == '_' or last.isalnum()) or _is_unspaced(last)


def _is_unspaced(character: str) -> bool:
  """True for scripts without spaces, in which a dash follows a word directly.

  Chinese and Japanese: '答案是-5'.
  """
  name = unicodedata.name(character, '')
  return name.startswith(('CJK', 'HIRAGANA', 'KATAKANA'))
