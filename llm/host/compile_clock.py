"""Seconds that this process has spent on tracing and compiling programs."""

import functools
import time

import jax

_EVENTS = (
  '/jax/core/compile/jaxpr_trace_duration',
  '/jax/core/compile/jaxpr_to_mlir_module_duration',
  '/jax/core/compile/backend_compile_duration',
)


class CompileClock:
  """Adds up the times at which anything was compiled, each counted once.

  JAX reports a duration when it ends; those of nested programs lie inside
  those of the outer ones, so intervals are merged before they are added.
  """

  def __init__(self):
    self._intervals: list[tuple[float, float]] = []

  def add(self, start: float, end: float) -> None:
    """Takes one interval; calls come in the order of `end`."""
    while self._intervals and self._intervals[-1][1] > start:
      start = min(start, self._intervals.pop()[0])
    self._intervals.append((start, end))

  def seconds(self) -> float:
    """The total so far."""
    return sum(end - start for start, end in self._intervals)


@functools.cache
def compile_clock() -> CompileClock:
  """The process's clock; it runs from the first call on."""
  clock = CompileClock()

  def listen(event: str, duration: float, **_) -> None:
    if event in _EVENTS:
      now = time.perf_counter()
      clock.add(now - duration, now)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return clock
