"""Numbers as models write them, each with its value."""

import math

import pytest

from llm.rewards.numbers import last_value, only_value

# The last number of a text. Marks that look alike are written as escapes.
LAST = [
  # Signs: the hyphen of keyboards and what editors and models put for it.
  ('it is -3', -3),
  ('x=-3', -3),
  ('so x = \u22125', -5),  # minus sign
  ('\u22125 is right', -5),
  ('(\u22125)', -5),
  ('\\boxed{\u22122.5}', -2.5),
  ('so x = \u20105', -5),  # hyphen
  ('so x = \u20115', -5),  # hyphen that does not break the line
  ('so x = \u20125', -5),  # figure dash
  ('so x = \u20135', -5),  # en dash
  ('so x = \ufe635', -5),  # small hyphen
  ('so x = \uff0d\uff15', -5),  # full width
  ('答案是\u22125', -5),  # no spaces in this script
  ('|\u22125| or "\u22127"', -7),
  ('= - 5', -5),
  ('= \u2212\\,5', -5),
  ('x = \u20145', -5),  # em dash
  ('\u20145', -5),
  ('\u2212$1,200.50', -1200.5),
  ('-\\$5', -5),
  ('-.5', -0.5),
  ('so x = \u22125.', -5),
  ('\uff0d\uff11,234.5', -1234.5),
  # Differences, ranges, words and lists.
  ('2-3', 3),
  ('7 \u2212 5', 5),
  ('7\u22125', 5),
  ('3\u20135', 5),
  ('3 \u2013 5', 5),
  ('pages 3\u20145', 5),
  ('pages 3--5', 5),
  ('(7)-2', 2),
  ('x\u22125', 5),
  ('x²\u22125', 5),
  ('é-5', 5),
  ('x_1-5', 5),
  ('\\frac{a}{b}-5', 5),
  ('50%-5', 5),
  ('COVID-19', 19),
  ('this one \u2014 5', 5),
  ('this one\u20145', 5),
  ('the answer \u20145', 5),
  ('seven - 5', 5),
  ('- 5', 5),
  ('on 2024-01-05', 5),
  # Thousands.
  ('12,345', 12345),
  ('1,234,567.25', 1234567.25),
  ('0,123', 123),
  ('12,3456', 3456),
  ('1,234,56', 56),
  ('1,2,6', 6),
  ('12 345.5 km', 12345.5),
  ('1\u00a0234\u202f567', 1234567),
  ('-1\u2009234', -1234),
  ('1_234', 1234),
  ("1'234 or 2\u2019345", 2345),
  ('12{,}345', 12345),
  ('12\\,345', 12345),
  ('in 2020 300', 300),
  ('100 200 30', 30),
  ('5 40 300', 300),
  # Decimals, powers of ten, other digits.
  ('.5', 0.5),
  ('so it is 8.', 8),
  ('v1.2.3', 3),
  ('1e3', 1000),
  ('2.5E-1', 0.25),
  ('2.5e\u22121', 0.25),
  ('2em', 2),
  ('\uff11\uff12\uff13', 123),
  ('\uff11\uff0c\uff12\uff13\uff14\uff0e\uff15', 1234.5),
  ('\u0663\u066b\u0665', 3.5),  # Arabic
  ('10³', 10),
  ('2^3', 3),
  # Fractions, dates, percents, currencies.
  ('1/2', 0.5),
  ('x = \u22123/4', -0.75),
  ('\uff11/\uff12', 0.5),
  ('1\u20442', 0.5),
  ('\\frac{1}{2}', 0.5),
  ('-\\dfrac{3}{4}', -0.75),
  ('\\frac{\u22123}{4}', -0.75),
  ('on 1/2/2024', 2024),
  ('48/2=24', 24),
  ('50%', 50),
  ('costs $5', 5),
  ('€1,200', 1200),
  ('#### 72', 72),
]


@pytest.mark.parametrize('text, value', LAST)
def test_the_last_number_of_a_text(text, value):
  assert last_value(text) == value


def test_texts_without_a_number():
  for text in ('', 'none', '-', '\u2212', '²', '\u2212∞', 'e', '½'):
    assert last_value(text) is None, text


def test_numbers_that_no_float_holds():
  for text in ('1e999', '9' * 5000):
    assert last_value(text) == only_value(text) == math.inf
    assert last_value(f'= \u2212{text}') == -math.inf
  assert math.isnan(last_value('5/0')) and math.isnan(only_value('5/0'))


def test_a_long_text_takes_no_time():
  for part in ('1,234,', '- ', '1 234 ', '9', '1/', '1e', '\\frac{1}{'):
    last_value(part * 50_000)


ONLY = [
  ('7', 7),
  (' +7.0 ', 7),
  ('-7', -7),
  ('\u22127', -7),
  ('- 7', -7),
  ('1,234.5', 1234.5),
  ('1 234', 1234),
  ('$1,234', 1234),
  ('-$5', -5),
  ('50%', 50),
  ('50\\%', 50),
  ('7.', 7),
  ('1e+22', 1e22),
  ('1/4', 0.25),
  ('\uff17', 7),
]


@pytest.mark.parametrize('text, value', ONLY)
def test_a_text_that_is_a_number(text, value):
  assert only_value(text) == value


def test_texts_that_are_more_or_less_than_a_number():
  for text in (
    '', 'seven', '7 apples', 'x=7', '3-5', '1,2,6', '7 8', '--7', 'nan', 'inf',
    '1/2/3', '0x1F', '%',
  ):  # fmt: skip
    assert only_value(text) is None, text
