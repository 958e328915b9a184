"""Runs of launch.py in processes of their own that share their imports.

Imports take longer than all else that a small run does. So one process imports
what runs need, before JAX starts a thread, and each run is a fork of it: a
process to kill, in which nothing has happened yet.
"""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).parents[1]


class Forks:
  """Starts runs, one at a time."""

  def __init__(self, folder):
    self._log = folder / 'log.txt'
    self._parent = subprocess.Popen(
      [sys.executable, '-c', 'from tests import forks\nforks.serve()'],
      cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def run(self, args, event='none', at=0, delay=0.0):
    """Runs to its end, whatever that is; returns (status, output)."""
    request = [[event, at, delay], ['launch.py', *args], str(self._log)]
    print(json.dumps(request), file=self._parent.stdin, flush=True)
    answer = self._parent.stdout.readline()
    return int(answer), self._log.read_text()

  def close(self):
    self._parent.stdin.close()
    assert self._parent.wait() == 0
    self._parent.stdout.close()


def serve():
  """The process that is forked: a run per line of its input."""
  from llm import command
  from llm.runs import outputs, report

  for name in ('distill', 'online_preference', 'preference', 'rl'):
    importlib.import_module(f'llm.tasks.{name}')
  report.plot_loss = lambda rows, path: None  # slow
  for line in sys.stdin:
    event, args, log = json.loads(line)
    process = os.fork()
    if not process:
      file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
      os.dup2(file, sys.stdout.fileno())
      os.dup2(file, sys.stderr.fileno())
      _befall(outputs, *event)
      sys.exit(command.main(args))
    _, status = os.waitpid(process, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


def _befall(outputs, event, at, delay):
  """What befalls the run `delay` seconds after row `at` of its metrics."""
  append = outputs.append_metrics

  def happen():
    if event == 'full':
      import resource

      resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    else:
      os.kill(os.getpid(), getattr(signal, event))

  def counted(workdir, row):
    append(workdir, row)
    if row['step'] == at:
      threading.Timer(delay, happen).start()

  outputs.append_metrics = counted
