"""Schedules against numbers worked out by hand."""

import math
import types

import jax
import numpy as np
import pytest

from llm.errors import UserError
from llm.train.schedules import make_schedule


def _rates(steps, total=10, **changes):
  fields = dict(lr=2.0, schedule='constant', warmup_steps=0) | changes
  schedule = jax.jit(make_schedule(types.SimpleNamespace(**fields), total))
  return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize(
  ('changes', 'want'),
  (
    ({}, [2.0] * 6),
    ({'warmup_steps': 4}, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]),
    ({'schedule': 'linear', 'warmup_steps': 2}, [1.0, 2.0, 2.0, 1.0, 0.0, 0.0]),
    ({'schedule': 'cosine', 'warmup_steps': 2}, [1.0, 2.0, 2.0, 1.0, 0.0, 0.0]),
    (
      {'schedule': 'linear', 'warmup_steps': 2, 'min_lr_ratio': 0.1},
      [1.0, 2.0, 2.0, 1.1, 0.2, 0.2],
    ),
    (
      {'schedule': 'cosine', 'warmup_steps': 2, 'min_lr_ratio': 0.1},
      [1.0, 2.0, 2.0, 1.1, 0.2, 0.2],
    ),
  ),
)
def test_golden(changes, want):
  steps = (0, 1, 2, 3, 4, 5) if changes == {'warmup_steps': 4} else None
  steps = steps or (0, 1, 2, 6, 10, 11)
  np.testing.assert_allclose(_rates(steps, **changes), want, atol=1e-6)


def test_cosine_quarter():
  seen = _rates([2], 8, schedule='cosine')
  np.testing.assert_allclose(seen, [1.0 + math.cos(math.pi / 4)], rtol=1e-6)


@pytest.mark.parametrize(
  ('shape', 'want'),
  (
    # The decay covers steps 12 to 20; at 14 a quarter of it is done.
    ('sqrt', [0.5, 2.0, 2.0, 2.0, 1.0, 0.0]),
    ('linear', [0.5, 2.0, 2.0, 2.0, 1.5, 0.0]),
  ),
)
def test_wsd_golden(shape, want):
  changes = dict(schedule='wsd', warmup_steps=4, decay_fraction=0.4)
  seen = _rates((0, 3, 4, 12, 14, 20), 20, decay_shape=shape, **changes)
  np.testing.assert_allclose(seen, want, atol=1e-6)
  floor = _rates(
    (12, 14, 20), 20, decay_shape=shape, min_lr_ratio=0.5, **changes
  )
  np.testing.assert_allclose(floor, 1.0 + 0.5 * np.array(want[3:]), atol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  (
    ({'schedule': 'cos'}, "optim.schedule='cos': use one of constant"),
    ({'warmup_steps': 11}, 'optim.warmup_steps=11: use 0 to train.steps=10'),
    ({'warmup_steps': -1}, 'optim.warmup_steps=-1: use 0 to'),
    ({'min_lr_ratio': 1.5}, 'optim.min_lr_ratio=1.5: use a number from 0 to 1'),
    ({'decay_shape': 'exp'}, "optim.decay_shape='exp': use one of sqrt"),
    (
      {'schedule': 'wsd', 'decay_fraction': 0.0},
      'optim.decay_fraction=0.0: use a share',
    ),
    (
      {'schedule': 'wsd', 'decay_fraction': 0.6, 'warmup_steps': 5},
      'optim.decay_fraction=0.6: the decay would begin at step 4 of 10',
    ),
  ),
)
def test_bad_settings_are_refused_by_name(changes, message):
  with pytest.raises(UserError, match=message):
    _rates([0], **changes)
