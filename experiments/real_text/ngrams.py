"""How well counting predicts bytes: what a trained model has to beat."""

import numpy as np


def held_out_losses(
  train: np.ndarray, held_out: np.ndarray, orders: int
) -> list[float]:
  """Mean loss of n-gram models, n = 1 … orders, counted on `train`.

  Interpolated with the shorter ones by Witten and Bell's weights
  (p_n(b | h) = (c(hb) + k(h) p_{n-1}(b | h')) / (c(h) + k(h)) with k the number
  of different bytes seen after h; Chen and Goodman 1998, 2.6), from the uniform
  distribution on.

  Args:
    train, held_out: uint8[n]; the held-out text follows the training text.
    orders: at most 8, so that an n-gram fits into 64 bits.

  Returns:
    nats per byte of `held_out`, by n.
  """
  before = np.concatenate([train[len(train) - orders :], held_out])
  prob = np.full(len(held_out), 1 / 256)
  losses = []
  for n in range(1, orders + 1):
    grams, counts = np.unique(_codes(train, n), return_counts=True)
    contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
    totals = np.add.reduceat(counts, first)
    kinds = np.diff(np.append(first, len(grams)))
    asked = _codes(before, n)[-len(held_out) :]
    seen = _look_up(grams, counts, asked)
    total = _look_up(contexts, totals, asked >> np.uint64(8))
    kind = _look_up(contexts, kinds, asked >> np.uint64(8))
    mixed = (seen + kind * prob) / np.maximum(total + kind, 1)
    prob = np.where(total > 0, mixed, prob)
    losses.append(float(-np.log(prob).mean()))
  return losses


def entropy(text: np.ndarray) -> float:
  """Nats per byte of the text's own byte frequencies."""
  shares = np.bincount(text) / len(text)
  shares = shares[shares > 0]
  return float(-(shares * np.log(shares)).sum())


def _codes(text, n: int):
  """uint64[len(text) - n + 1]: each n-gram as one number, last byte lowest."""
  length = len(text) - n + 1
  codes = np.zeros(length, np.uint64)
  for i in range(n):
    codes = (codes << np.uint64(8)) | text[i : i + length]
  return codes


def _look_up(keys, values, asked):
  """values where keys == asked, else 0; the keys are sorted."""
  at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
  return np.where(keys[at] == asked, values[at], 0)
