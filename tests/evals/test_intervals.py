"""Intervals, by hand and against tables."""

import math

import numpy as np
import pytest

from llm.evals import intervals


def test_t_quantile_against_tables():
  # Student's t, two-sided 95%, to the digits that tables print.
  table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042}
  for degrees, t in table.items():
    assert intervals.t_quantile(degrees) == pytest.approx(t, abs=5e-4)
  assert intervals.t_quantile(10_000) == pytest.approx(1.960, abs=5e-4)


def test_mean_interval_by_hand():
  mean, half = intervals.mean_interval([1.0, 2.0, 3.0])
  assert mean == 2.0
  assert half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
  assert math.isnan(intervals.mean_interval([5.0])[1])


def test_wilson_interval():
  # Newcombe (1998), table I: 81 of 263 and 15 of 148, 0 of 20.
  for hits, trials, low, high in [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
  ]:
    found = intervals.wilson_interval(hits / trials, trials)
    np.testing.assert_allclose(found, (low, high), atol=5e-5)
