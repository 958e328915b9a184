"""Fetches the metrics of steps from the device, each one step late."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import time

import jax

# The numbers of one step by name, as one object of `metrics.jsonl` has them.
Metrics = dict[str, float]


class MetricsLog:
  """Holds the metrics of at most one step until they are handed over.

  Each step's metrics are fetched one step late, while the next step runs. They
  are fetched whether they are logged or not, so that a streak of bad steps is
  seen however seldom metrics are logged.

  Attributes:
    bad_streak: how many of the last fetched steps had no finite gradient, in
      a row.
  """

  def __init__(self, on_metrics: Callable[[Metrics], None], bad_streak: int):
    self.bad_streak = bad_streak
    self._on_metrics = on_metrics
    self._held = None  # (step, metrics on the device, batch's numbers, logged)
    self._metrics = None  # fetched, not handed over yet
    self._tokens = 0  # since the metrics that were logged last
    self._seconds = {}  # likewise
    self._apart = 0.0  # those of them that are no part of a step
    self._last = time.perf_counter()  # when the last metrics were complete

  @contextlib.contextmanager
  def timing(self, name: str, apart: bool = False) -> Iterator[None]:
    """Adds the seconds of its block to the metric `name`.

    With `apart` they do not count in `tokens_per_s`.
    """
    began = time.perf_counter()
    yield
    spent = time.perf_counter() - began
    self._seconds[name] = self._seconds.get(name, 0.0) + spent
    self._apart += spent if apart else 0.0

  def begin(self, scores: Mapping[str, float]) -> None:
    """Hands over the evaluation before the first step."""
    self._on_metrics({'step': 0, **scores, **self._take_seconds()})

  def hold(
    self, step: int, metrics: Mapping, about: Mapping, *, logged: bool
  ) -> None:
    """Keeps a step's metrics until they are fetched.

    Args:
      step: its number.
      metrics: scalars on the device.
      about: numbers of its batch; `tokens` is one of them.
      logged: the metrics will be handed over.
    """
    seconds = self._take_seconds() if logged else {}
    self._held = (step, metrics, {**about, **seconds}, logged)

  def fetch(self) -> None:
    """Waits for the step that is held and makes its metrics, if logged."""
    if self._held is None:
      return
    step, metrics, about, logged = self._held
    self._held = None
    self._tokens += about.pop('tokens')
    if not logged:
      self.bad_streak = int(metrics['bad_streak'])
      return
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    self.bad_streak = int(metrics.pop('bad_streak'))
    now = time.perf_counter()
    elapsed = now - self._last - self._apart
    self._last, self._apart = now, 0.0
    self._metrics = {
      'step': step,
      'loss': metrics.pop('loss'),
      'tokens': self._tokens,
      'tokens_per_s': self._tokens / elapsed,
      **metrics,
      **about,
    }
    self._tokens = 0

  def add(self, scores: Mapping[str, float]) -> None:
    """Joins `scores` to the metrics that were fetched last."""
    self._metrics |= {**scores, **self._take_seconds()}

  def flush(self) -> None:
    """Hands the metrics over."""
    self.fetch()
    if self._metrics is not None:
      self._on_metrics(self._metrics)
      self._metrics = None

  def _take_seconds(self) -> dict[str, float]:
    seconds, self._seconds = self._seconds, {}
    return seconds
