"""Silences what Orbax and TensorStore print besides the error they raise."""

from collections.abc import Callable
import dataclasses
import logging
import sys


def silence_orbax() -> None:
  """Stops Orbax and its threads from printing a failed save.

  The caller gets the error anyway. Besides, Orbax logs tracebacks, and for each
  array that fails after the first one TensorStore's threads report to an event
  loop that is closed by then, or their futures complain that nobody retrieved
  their exceptions.
  """
  logging.getLogger('absl').addFilter(_is_news)
  logging.getLogger('asyncio').addFilter(_was_awaited)
  # Which of the two hooks such a thread calls differs from case to case.
  if not isinstance(sys.excepthook, _Excepthook):
    sys.excepthook = _Excepthook(sys.excepthook)
  if not isinstance(sys.unraisablehook, _Unraisablehook):
    sys.unraisablehook = _Unraisablehook(sys.unraisablehook)


@dataclasses.dataclass
class _Excepthook:
  before: Callable[..., None]

  def __call__(self, kind, error, traceback) -> None:
    if not _came_late(error):
      self.before(kind, error, traceback)


@dataclasses.dataclass
class _Unraisablehook:
  before: Callable[..., None]

  def __call__(self, unraisable) -> None:
    if not _came_late(unraisable.exc_value):
      self.before(unraisable)


def _came_late(error: BaseException | None) -> bool:
  return type(error) is RuntimeError and str(error) == 'Event loop is closed'


def _is_news(record: logging.LogRecord) -> bool:
  return not ('orbax' in record.pathname and record.exc_info)


def _was_awaited(record: logging.LogRecord) -> bool:
  return 'exception was never retrieved' not in record.getMessage()
