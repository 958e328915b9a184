import math
import os
import sys
import time

import pytest

from llm.errors import RunError, UserError
from llm.rewards.functions import (
  check_rewards,
  check_row,
  find_reward,
  rate,
  reward_names,
)
from llm.rewards.sandbox import passes


def value(name, text, row=None, finished=True, **options):
  return rate((name, 1.0, options), row or {}, text, finished)


def test_each_reward():
  four = {'answer': 4}
  assert value('exact_answer', ' 4\n', four) == 1.0
  assert value('exact_answer', '4.', four) == 0.0
  for text, right in [
    ('2 + 2 = 4', 1.0),
    ('4 or 5', 0.0),
    ('it is 4.0.', 1.0),
    ('-4', 0.0),
    ('none', 0.0),
  ]:
    assert value('last_number', text, four) == right, text
  assert value('last_number', 'so 1,234.5', {'answer': '1,234.50'}) == 1.0
  assert value('matches', ' <a>x\ny</a> ', pattern='<a>.*</a>') == 1.0
  assert value('matches', 'so <a></a>', pattern='<a>.*</a>') == 0.0
  assert value('ends', 'x', finished=True) == 1.0
  assert value('ends', 'x', finished=False) == 0.0
  lengths = [value('brevity', 'x' * n, characters=10) for n in (5, 10, 15, 90)]
  assert lengths == [0.0, 0.0, -0.5, -1.0]


def test_the_last_number_is_compared_with_the_answer():
  # U+2212, the minus sign that models write.
  for answer, right in (('-5', 1.0), ('\u22125', 1.0), (-5, 1.0), ('5', 0.0)):
    assert value('last_number', 'so x = \u22125', {'answer': answer}) == right
  gsm8k = {'answer': '48 / 2 = 24, and 48 + 24 = 72.\n#### 1,072'}
  assert value('last_number', '1072', gsm8k) == 1.0
  assert value('last_number', '72', gsm8k) == 0.0
  # Beyond the range of floats, and nothing that could be compared.
  for text in ('1e999', '9' * 400, '1/0', 'none', ''):
    assert value('last_number', text, gsm8k) == 0.0, text


def test_programs_pass_or_fail():
  row = {'tests': 'assert add(2, 3) == 5'}
  assert value('passes_tests', 'def add(a, b): return a + b', row) == 1.0
  assert value('passes_tests', 'def add(a, b): return a - b', row) == 0.0
  assert value('passes_tests', 'def add(a, b) return', row) == 0.0
  tests = 'import unittest\nclass T(unittest.TestCase):\n'
  tests += '  def test(self): self.assertEqual(x, 1)\nunittest.main()'
  assert passes('x = 1', tests) and not passes('x = 2', tests)
  assert not passes('x = 1', 'sys.exit(0)')  # nothing is imported already


def test_an_answer_that_ends_the_process_has_not_passed():
  for answer in ('import sys; sys.exit(0)', 'import os; os._exit(0)', '1/0'):
    assert not passes(answer, 'assert False')
    assert not passes(answer, '')
  # Nor by what the tests call.
  tests = 'assert f(1) == 2'
  for answer in (
    'import sys\ndef f(x): sys.exit(0)',
    'def f(x): raise SystemExit',
    'import sys\nf = sys.exit',
    'import os\ndef f(x): os._exit(0)',
    'import unittest\ndef f(x): unittest.main()',
  ):
    assert not passes(answer, tests, seconds=20), answer
  assert passes('def f(x): return x + 1', tests)


def test_programs_are_cut(tmp_path):
  began = time.perf_counter()
  assert not passes('while True: pass', '', seconds=0.5)
  assert not passes('import time; time.sleep(60)', '', seconds=0.5)
  assert time.perf_counter() - began < 20
  big = 'x = bytearray(400 << 20)'
  assert not passes(big, '', seconds=20, megabytes=128)
  assert passes('x = bytearray(1 << 20)', '', seconds=20, megabytes=128)
  write = "with open('f', 'wb') as f: f.write(bytes({} << 10))"
  assert passes(write.format(4), '', seconds=20)
  assert not passes(write.format(4 << 10), '', seconds=20)
  empty = 'import os; assert os.listdir() == []; assert len(os.environ) < 4'
  assert passes(empty, '', seconds=20)
  assert not os.path.exists('f')


def test_processes_of_a_program_end_with_it(tmp_path):
  # A user other than root may not start them at all.
  path = tmp_path / 'late'
  answer = 'import os, time\nif os.fork() == 0:\n  time.sleep(1.5)\n'
  answer += f'  open({str(path)!r}, "w").close()\n  os._exit(0)'
  passes(answer, '', seconds=20)
  time.sleep(1.6)
  assert not path.exists()


def test_a_function_of_ones_own(tmp_path, monkeypatch):
  (tmp_path / 'own_rewards.py').write_text(
    'def vowels(row, text, finished, *, of="aeiou"):\n'
    '  return sum(c in of for c in text)\n'
    'def fails(row, text, finished): raise KeyError("x")\n'
    'def ends(row, text, finished): raise SystemExit(0)\n'
    'def mean(row, text, finished): return 0.0\n'
    'number = 3\n'
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  assert value('own_rewards:vowels', 'banana') == 3.0
  assert value('own_rewards:vowels', 'banana', of='n') == 2.0
  check_rewards((('own_rewards:vowels', 1.0, {'of': 'a'}),))
  with pytest.raises(
    RunError, match="fails failed on the completion 'abc'.*Key"
  ):
    value('own_rewards:fails', 'abc')
  with pytest.raises(
    RunError, match="ends failed on the completion 'abc'.*Sys"
  ):
    value('own_rewards:ends', 'abc')
  with pytest.raises(UserError, match='reward_mean is that of all rewards'):
    check_rewards((('own_rewards:mean', 1.0),))
  for name, wanted in [
    ('own_rewards:number', 'is no function'),
    ('own_rewards:none', "has no attribute 'none'"),
    ('no_such_module:f', 'No module named'),
  ]:
    with pytest.raises(UserError, match=wanted):
      find_reward(name)
  sys.modules.pop('own_rewards')


def _odd(row):
  return 1.0


def test_entries_are_refused_by_name():
  for entry, wanted in [
    ('exact_answer', 'give (name, weight) or'),
    (('exact_answer',), 'give (name, weight) or'),
    (('exact', 1.0), 'no such reward; use one of brevity, ends'),
    (('ends', '1'), 'the weight is a number'),
    (('ends', True), 'the weight is a number'),
    (('ends', math.nan), 'the weight is a finite number'),
    (('ends', -1e39), 'the weight is a finite number of at most 3e+38'),
    (('ends', 1.0, 'x'), 'the options are a dict'),
    (('ends', 1.0, {'x': 1}), "no option 'x'; it has none"),
    # Some releases of Python say "keyword-only argument".
    (('matches', 1.0), "argument: 'pattern'; a reward is called as"),
    (('matches', 1.0, {'patern': 'x'}), "no option 'patern'; it has pattern"),
    ((f'{__name__}:_odd', 1.0), 'too many positional arguments; a reward is'),
    (('matches', 1.0, {'pattern': '('}), 'missing ), unterminated'),
    (('brevity', 1.0, {'characters': 0}), 'characters=0: use 1 or more'),
    (('passes_tests', 1.0, {'seconds': 0}), 'seconds=0, megabytes=512: use'),
    (('model', 1.0), 'give the folder of the reward model'),
  ]:
    with pytest.raises(UserError) as caught:
      check_rewards((('ends', 1.0), entry))
    message = str(caught.value)
    assert repr(entry) in message and wanted in message, message
  for none in ((), 'ends', None):
    with pytest.raises(UserError, match='rewards='):
      check_rewards(none)


def test_rows_that_lack_what_is_read():
  check_row((('ends', 1.0),), {})
  for name, key in (('exact_answer', 'answer'), ('passes_tests', 'tests')):
    with pytest.raises(UserError, match=f"has no '{key}'"):
      check_row(((name, 1.0),), {'prompt': 'x'})
    with pytest.raises(UserError, match=f"has no '{key}'"):
      check_row(((name, 1.0),), {key: None})


def test_rows_that_have_another_kind():
  for name, key, wrong, wanted in [
    ('exact_answer', 'answer', {'x': 1}, 'a text or a number'),
    ('exact_answer', 'answer', True, 'a text or a number'),
    ('last_number', 'answer', 'seven', "a number, or one after '####'"),
    ('last_number', 'answer', '1/0', "a number, or one after '####'"),
    ('last_number', 'answer', '1,2,6', "a number, or one after '####'"),
    ('last_number', 'answer', '3-5', "a number, or one after '####'"),
    ('last_number', 'answer', '1e999', "a number, or one after '####'"),
    ('last_number', 'answer', 10**400, "a number, or one after '####'"),
    ('last_number', 'answer', '#### ', "a number, or one after '####'"),
    ('last_number', 'answer', True, "a number, or one after '####'"),
    ('last_number', 'answer', 'nan', "a number, or one after '####'"),
    ('passes_tests', 'tests', ['assert f'], 'a text'),
  ]:
    with pytest.raises(UserError) as caught:
      check_row(((name, 1.0),), {key: wrong})
    message = str(caught.value)
    assert (
      message
      == f'{key!r} is {str(wrong)[:100]!r}, and the reward {name} '
      + (f'reads {wanted}')
    )
  for answer in (
    7,
    -7.5,
    '1,234.5',
    'x #### -3',
    'x #### \u22123',
    '$5',
    '1/2',
  ):
    row = {'answer': answer}
    check_row((('last_number', 1.0), ('exact_answer', 1.0)), row)


def test_names_of_several_of_one_kind():
  entries = (('matches', 1.0), ('ends', 1.0), ('matches', 1.0), ('a.b:f', 1.0))
  assert reward_names(entries) == ['matches', 'ends', 'matches_2', 'f']
