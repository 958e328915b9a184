"""Intervals of what is measured on a sample."""

import math

_Z = 1.959964  # of an interval that holds 95%


def wilson_interval(share: float, count: float) -> tuple[float, float]:
  """Where the true share lies with 95% probability (Wilson, 1927).

  Args:
    share: of hits, from 0 to 1.
    count: of trials, above 0.
  """
  z2 = _Z * _Z / count
  middle = (share + z2 / 2) / (1 + z2)
  spread = math.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
  return max(middle - spread, 0.0), min(middle + spread, 1.0)
