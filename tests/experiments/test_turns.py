"""Systems that take turns: their order, and ratios of paired turns."""

from experiments import turns


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
