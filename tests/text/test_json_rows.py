"""JSON rows: nothing of them is lost or changed in silence."""

import json
import math

import pytest

from llm.text.json_rows import MOST_NESTED, Bad, Parser

NESTED = MOST_NESTED - 1


@pytest.mark.parametrize(
  'value',
  [
    {},
    {'a': 1, 'b': [1.5, None, True, 'x\ty'], 'c': {'a': {}}},
    {'a': '\u2028\u2029\x85\ufeff\x00', '\u2028': '😀'},
    {'int': 10**400, 'long': '9' * 5000, 'small': 5e-324, 'big': 1.7e308},
    {'text': 'x' * (1 << 20)},
    {'many': [{'a': [{}]}] * 300},
  ],
)
@pytest.mark.parametrize('ascii', [True, False])
def test_values_are_kept(value, ascii):
  text = json.dumps(value, ensure_ascii=ascii)
  assert Parser().row(text) == value
  assert Parser().rows(f'[{text}, {text}]') == [value, value]
  assert Parser().rows(text) == [value]


def test_what_python_writes_beside_json_is_read_as_python_reads_it():
  row = Parser().row('{"a": NaN, "b": Infinity, "c": -Infinity, "d": 1e-400}')
  assert math.isnan(row.pop('a'))
  assert row == {'b': math.inf, 'c': -math.inf, 'd': 0.0}


def test_doubled_keys_that_agree():
  assert Parser().row('{"a": 1, "a": 1, "b": {"c": [], "c": []}}') == {
    'a': 1,
    'b': {'c': []},
  }


BAD = [
  ('{"a": 1, "a": 2}', "the row has 'a' twice, as 1 and as 2; keep one"),
  (
    '{"messages": [{"role": "user", "role": "tool", "content": "x"}]}',
    "messages[0] has 'role' twice, as 'user' and as 'tool'",
  ),
  ('{"a": {"b": 1, "b": null, "b": 2}}', "a has 'b' twice, as 1 and as 2"),
  ('{"margin": 1e999}', 'margin=1e999 is beyond the largest number'),
  ('{"a": [1, {"b": -1E+400}]}', 'a[1].b=-1E+400 is beyond the largest'),
  (f'{{"a": {"9" * 5000}}}', 'a=99999'),
  ('{"a": "\\ud800"}', "a='\\ud800' has half of a surrogate pair"),
  ('{"a": ["x", "y \\uDe00\\ud83d"]}', "a[1]='y \\ude00\\ud83d' has half"),
  ('{"a": {"\\ud800": 1}}', "a key of a='\\ud800' has half of a surrogate"),
  ('{"a": 1', 'not valid JSON (Expecting'),
  ('{"a": 1},', 'not valid JSON (Extra data'),
  ("{'a': 1}", 'not valid JSON (Expecting property name'),
  ('{"a": "x\ty"}', 'not valid JSON (Invalid control character'),
  ('{"a": ' + '[' * NESTED + ']' * NESTED + '}', None),
  (
    '{"a": ' + '[' * (NESTED + 1) + ']' * (NESTED + 1) + '}',
    'a is nested more than 100 deep; write it flatter',
  ),
  ('{"a":' * 900 + '1' + '}' * 900, 'a is nested more than 100 deep'),
  ('{"a":' * 100_000 + '1' + '}' * 100_000, 'nested more than 100 deep'),
  ('[' * 100_000, 'nested more than 100 deep; write it flatter'),
]


@pytest.mark.parametrize('text, why', BAD, ids=range(len(BAD)))
def test_what_would_be_lost_is_named(text, why):
  found = Parser().row(text)
  if why is None:
    assert isinstance(found, dict)
  else:
    assert isinstance(found, Bad) and why in found.why
    assert len(found.why) < 200


def test_a_bad_row_says_nothing_of_the_others():
  parser = Parser()
  assert isinstance(parser.row('{"a": "\\ud83d"}'), Bad)
  assert parser.row('{"a": "\\ud83d\\ude00"}') == {'a': '😀'}
  rows = parser.rows('[{"a": 1}, {"a": 1, "a": 2}, 3, {"a": 1e999}, {"b": 1}]')
  assert [isinstance(row, Bad) for row in rows] == [
    False, True, False, True, False
  ]  # fmt: skip
  assert rows[::2] == [{'a': 1}, 3, {'b': 1}]


def test_texts_that_are_no_json_raise():
  for text in ('', '{', '[1, 2', '[' * 100_000):
    with pytest.raises((ValueError, RecursionError)):
      Parser().rows(text)
