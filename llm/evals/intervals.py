"""Intervals of what is measured on a sample."""

from collections.abc import Sequence
import math
import statistics

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


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
  """Returns the mean and the half-width of its 95% interval (Student's t).

  The half-width of a single value is NaN: one seed says nothing about spread.
  """
  mean = statistics.fmean(values)
  if len(values) < 2:
    return mean, math.nan
  error = statistics.stdev(values) / math.sqrt(len(values))
  return mean, t_quantile(len(values) - 1) * error


def t_quantile(degrees: int, level: float = 0.95) -> float:
  """Returns t with P(|T| < t) = level for Student's t, by bisection.

  The probability is the finite series in theta = atan(t / sqrt(degrees)) of
  Abramowitz and Stegun, 26.7.3 (odd) and 26.7.4 (even).
  """
  low, high = 0.0, math.pi / 2  # of theta
  for _ in range(60):
    theta = (low + high) / 2
    sin, cos = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term, total = cos if odd else 1.0, 0.0
    for k in range(1 + odd, degrees, 2):
      total += term
      term *= cos * cos * k / (k + 1)
    inside = (theta + sin * total) * 2 / math.pi if odd else sin * total
    low, high = (theta, high) if inside < level else (low, theta)
  return math.tan(low) * math.sqrt(degrees)
