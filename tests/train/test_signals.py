import os
import signal
import threading

import pytest

from llm.train.signals import stop_on_signal


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_sets_the_flag_the_second_acts(number, capfd):
  seen = []
  before = signal.signal(number, lambda *_: seen.append('as before'))
  try:
    with stop_on_signal() as stop:
      assert not stop and stop.received is None
      os.kill(os.getpid(), number)
      assert stop and stop.received == signal.Signals(number).name
      assert seen == []
      os.kill(os.getpid(), number)
      assert seen == ['as before']
    os.kill(os.getpid(), number)
    assert seen == ['as before'] * 2
  finally:
    signal.signal(number, before)
  name = signal.Signals(number).name
  assert capfd.readouterr().err == f'{name}: saves and stops; again to kill\n'


def test_without_a_signal_the_handlers_come_back():
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(KeyError):
    with stop_on_signal():
      assert signal.getsignal(signal.SIGTERM) != before
      raise KeyError
  assert signal.getsignal(signal.SIGTERM) == before


def test_outside_of_the_main_thread_it_does_nothing():
  flags = []

  def work():
    with stop_on_signal() as stop:
      flags.append(bool(stop))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert flags == [False]
