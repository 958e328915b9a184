"""Systems that take turns: their order, and ratios of paired turns."""

import pytest

from experiments import turns
from llm.errors import UserError


def test_ratios_are_paired_and_to_the_fastest_other():
  seconds = {
    'ours': [1.0, 2.0, 1.0],
    'a': [3.0, 3.0, 9.0],
    'b': [2.0, 8.0, 4.0],
  }
  # 2 / 1, 3 / 2, 4 / 1
  assert turns.ratios(seconds) == {'median': 2.0, 'least': 1.5, 'most': 4.0}
  assert turns.ratios({'ours': [1.0]}) == {}


def test_turns_change_their_order():
  order = []

  class Fake:
    def __init__(self, name):
      self.name = name

    def ask(self, steps):
      order.append(self.name)
      return {'seconds': float(steps)}

  workers = {name: Fake(name) for name in 'ab'}
  three = [{'seconds': 3.0}] * 2
  assert turns.take_turns(workers, 2, steps=3) == {'a': three, 'b': three}
  assert order == ['a', 'b', 'b', 'a']


def test_a_system_has_its_users_memory_unless_its_name_says_otherwise():
  assert turns.pages('ours') == ('ours', True)
  assert turns.pages('ours_small_pages') == ('ours', False)
  assert turns.pages('trl') == ('trl', False)
  assert turns.pages('trl_huge_pages') == ('trl', True)


def test_a_worker_is_started_with_that_memory(monkeypatch):
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')
  started = []

  def start(command, env, **_):
    started.append((command[1:], env.get('GLIBC_TUNABLES')))

  monkeypatch.setattr(turns.subprocess, 'Popen', start)
  for name in ('ours', 'ours_small_pages', 'other', 'other_huge_pages'):
    turns.Worker('module', [name, 'folder'], 2)
  asked = 'glibc.malloc.hugetlb=1'
  assert started == [
    (['-m', 'module', 'ours', 'folder'], asked),
    (['-m', 'module', 'ours', 'folder'], None),
    (['-m', 'module', 'other', 'folder'], None),
    (['-m', 'module', 'other', 'folder'], asked),
  ]


@pytest.mark.parametrize(
  ('systems', 'message'),
  [
    (('ours', 'jax'), "systems has 'jax': use some of ours, a, b, with _huge"),
    (('ours', 'a_pages'), "systems has 'a_pages': use some of"),
    (
      ('ours', 'b_huge_pages'),
      "systems has 'b_huge_pages', and no_such is not",
    ),
    (('ours_small_pages', 'a'), "'ours' must be one of them"),
    ((), "'ours' must be one of them"),
  ],
)
def test_systems_that_cannot_be_measured_are_refused(systems, message):
  needs = {'ours': None, 'a': None, 'b': 'no_such'}
  turns.check_systems(('ours', 'ours_small_pages', 'a_huge_pages'), needs)
  with pytest.raises(UserError, match=message):
    turns.check_systems(systems, needs)
