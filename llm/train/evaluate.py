"""Means of a loss and its metrics over many batches."""

from collections.abc import Callable, Iterable
from typing import Any

import jax


def mean_metrics(
  eval_step: Callable[..., dict[str, jax.Array]],
  params: Any,
  batches: Iterable[Any],
  frozen: Any = None,
) -> tuple[dict[str, float], float]:
  """The exact mean of each metric over all batches together.

  Sums are added up over the batches and divided by the total weight once, so
  that it does not matter how the rows are divided into batches.

  Args:
    eval_step: of `make_eval_step`, jitted.
    params: what is evaluated.
    batches: at least one, on the devices.
    frozen: passed on to `eval_step`.

  Returns:
    The means, `loss` among them, and the total weight.
  """
  key = jax.random.key(0)  # losses that are evaluated use no random numbers
  totals = {}
  for batch in batches:
    sums = eval_step(params, batch, key, frozen)
    totals = {k: totals.get(k, 0.0) + v for k, v in sums.items()}
  weight = float(totals.pop('weight'))
  return {k: float(v) / weight for k, v in totals.items()}, weight
