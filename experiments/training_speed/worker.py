"""One measured system in a process of its own.

  python -m experiments.training_speed.worker SYSTEM FOLDER SETTINGS

A line of JSON on stdin is answered by one on stdout: `{"steps": n}` by
`{"losses", "seconds"}` of the next n steps, `{"split": n}` (ours only) by where
a step's time goes. Between them the process sleeps.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from typing import Any

from experiments import machine
from experiments.training_speed import opponents

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
SYSTEMS = ('ours', 'transformers', 'transformers_fused')


class Worker:
  """The other end of such a process, for the measuring one; close it."""

  def __init__(self, system: str, folder: str, settings: dict[str, Any]):
    self.system = system
    # torch makes one OpenMP thread per core unless told otherwise.
    env = os.environ | {'OMP_NUM_THREADS': str(settings['threads'])}
    arguments = [system, folder, json.dumps(settings)]
    self._process = subprocess.Popen(
      [sys.executable, '-m', __spec__.name, *arguments],
      cwd=ROOT,
      env=env,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def ask(self, **request: int) -> dict:
    """Has it work; returns its answer.

    Raises:
      RuntimeError: the process has ended; its stderr says why.
    """
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps(request) + '\n')
      self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      status = self._process.wait()
      raise RuntimeError(f'{self.system} ended with exit status {status}')
    return json.loads(line)

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()


def main(argv: list[str]) -> None:
  """Serves one system until stdin ends."""
  system, folder, settings = argv[1], argv[2], json.loads(argv[3])
  # Libraries print to stdout as they like: the answers have it for themselves.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  machine.use_cores(settings['threads'])
  split = None
  if system == 'ours':
    from experiments.training_speed.ours import Trainer

    trainer = Trainer(folder, settings)
    train, split = trainer.train, trainer.split
  else:
    train = getattr(opponents, system)(folder, settings)
  for line in sys.stdin:
    request = json.loads(line)
    if 'split' in request:
      answer = split(request['split'])
    else:
      began = time.perf_counter()
      losses = train(request['steps'])
      seconds = time.perf_counter() - began
      answer = {'losses': losses, 'seconds': seconds}
    answers.write(json.dumps(answer) + '\n')
    answers.flush()


if __name__ == '__main__':
  main(sys.argv)
