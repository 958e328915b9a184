import numpy as np
import pytest

from llm.errors import UserError
from llm.sweeps import grid


def test_product_is_the_worked_trace():
  assert list(grid.product({'a': (1, 2), 'b': (3, 4)})) == [
    {'a': 1, 'b': 3},
    {'a': 1, 'b': 4},
    {'a': 2, 'b': 3},
    {'a': 2, 'b': 4},
  ]


def test_zipped_pairs_the_axes_and_refuses_a_short_one():
  got = list(grid.zipped({'a': (1, 2), 'b': 'xy'}))
  assert got == [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'y'}]
  with pytest.raises(UserError, match="{'a': 2, 'b': 1}"):
    list(grid.zipped({'a': (1, 2), 'b': (3,)}))


def test_run_id_is_stable():
  # A change here makes every sweep that was ever run start over.
  got = grid.run_id('configs/x.py', {'optim.lr': 0.001, 'seed': 0})
  assert got == 'lr=0.001,seed=0,68e304dd'
  assert got == grid.run_id('configs/x.py', {'seed': 0, 'optim.lr': 0.001})


def test_run_id_tells_types_and_configs_apart():
  ids = {
    grid.run_id(config, {'x': value})
    for config in ('a.py', 'a.py:smoke')
    for value in (1, 1.0, True, '1', (1,))
  }
  assert len(ids) == 10


def test_run_id_is_a_short_folder_name():
  got = grid.run_id('a.py', {'prompt': 'a/b "c" ' * 30, 'seed': 1})
  assert '/' not in got and ' ' not in got and len(got) < 80


@pytest.mark.parametrize('value', [None, np.int64(3), object()])
def test_run_id_refuses_what_a_flag_cannot_say(value):
  with pytest.raises(UserError, match='sweep override x='):
    grid.run_id('a.py', {'x': value})
