"""What a failed save prints beside its one error."""

import sys
import types

import pytest

from llm.checkpoints import silence


@pytest.mark.parametrize('hook', ['excepthook', 'unraisablehook'])
def test_only_what_came_too_late_is_left_out(monkeypatch, hook):
  seen = []
  monkeypatch.setattr(sys, hook, lambda *args: seen.append(args))
  silence.silence_orbax()
  silence.silence_orbax()  # twice is once

  def call(error):
    if hook == 'excepthook':
      sys.excepthook(type(error), error, None)
    else:
      sys.unraisablehook(types.SimpleNamespace(exc_value=error))

  call(RuntimeError('Event loop is closed'))
  assert not seen
  call(RuntimeError('something else'))
  call(OSError('Event loop is closed'))
  assert len(seen) == 2
