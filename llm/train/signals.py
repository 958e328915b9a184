"""A run that is asked to stop ends its step and saves first."""

import contextlib
import os
import signal
import threading
from typing import Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopFlag:
  """Set by the first signal.

  Attributes:
    received: the signal's name, such as 'SIGTERM', or None.
  """

  def __init__(self):
    self.received = None

  def __bool__(self) -> bool:
    return self.received is not None


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
  """Within it the first SIGTERM or Ctrl-C only sets the flag.

  The loop reads the flag after each step, saves and returns. From then on a
  signal acts as it did before, so that a second one ends the run at once.
  Outside of the main thread Python takes no handlers: the flag stays unset.

    with stop_on_signal() as stop:
      while not stop and step < steps: …
  """
  flag = StopFlag()
  if threading.current_thread() is not threading.main_thread():
    yield flag
    return

  def handle(number, frame):
    flag.received = signal.Signals(number).name
    restore()
    # Not print: the signal may have come in the middle of one.
    os.write(2, f'{flag.received}: saves and stops; again to kill\n'.encode())

  def restore():
    for number, handler in before.items():
      signal.signal(number, handler)

  # None is a handler that Python did not set and cannot set again.
  before = {n: signal.getsignal(n) or signal.SIG_DFL for n in _SIGNALS}
  try:
    for number in _SIGNALS:
      signal.signal(number, handle)
    yield flag
  finally:
    restore()
