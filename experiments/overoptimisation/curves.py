"""Curves of reward over √KL: best-of-n from samples, fits, peaks and falls."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NEAR = 0.1  # √KL below which a fit has no points


class Fit(NamedTuple):
  """Coefficients of one of the two forms, and its share of the variance."""

  alpha: float
  beta: float
  r2: float


class Fall(NamedTuple):
  """A gold curve's highest point and how it ends."""

  peak: float
  end: float
  place: int  # of the peak, a number of a point


def best_of_n(
  scores: np.ndarray, values: np.ndarray, n: int
) -> tuple[float, float]:
  """Mean score and value of the best, by score, of n of the samples.

  The unbiased estimator: the mean over all sets of n of the M samples, in
  which the one of rank i (from 0) is the best with C(i, n - 1) / C(M, n).

  Args:
    scores: float[M], without ties.
    values: float[M].
    n: at most M.
  """
  count = len(scores)
  rank = np.arange(count - 1, 0, -1)  # from the best down
  falls = np.maximum(rank - n + 1, 0) / rank  # to the next one's weight
  weights = n / count * np.cumprod(np.append(1.0, falls))
  order = np.argsort(scores)[::-1]
  return float(weights @ scores[order]), float(weights @ values[order])


def best_of_n_kl(n: int) -> float:
  """KL of best-of-n to the reference, where no string weighs anything."""
  return float(np.log(n) - (n - 1) / n)


def fit_rl(kl: Sequence[float], gold: Sequence[float]) -> Fit:
  """d (α - β ln d), d = √KL (Gao et al., 2210.10760)."""
  return _fit(kl, gold, lambda d: -d * np.log(d))


def fit_best_of_n(kl: Sequence[float], gold: Sequence[float]) -> Fit:
  """d (α - β d), d = √KL (Gao et al., 2210.10760)."""
  return _fit(kl, gold, lambda d: -(d**2))


def fall(gold: Sequence[float]) -> Fall:
  """The highest point and the last."""
  place = int(np.argmax(gold))
  return Fall(float(gold[place]), float(gold[-1]), place)


def _fit(kl, gold, second) -> Fit:
  """Least squares of gold on d and on another function of it."""
  d = np.sqrt(np.maximum(kl, 0.0))
  far = d > NEAR
  d, gold = d[far], np.asarray(gold)[far]
  columns = np.stack([d, second(d)], axis=1)
  found = np.linalg.lstsq(columns, gold, rcond=None)[0]
  rest = np.sum((gold - columns @ found) ** 2)
  spread = np.sum((gold - gold.mean()) ** 2)
  return Fit(float(found[0]), float(found[1]), float(1.0 - rest / spread))
