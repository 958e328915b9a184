"""One measured system in a process of its own.

  python -m experiments.training_speed.worker SYSTEM FOLDER SETTINGS

`{"steps": n}` is answered by `losses` of the next n steps and their `seconds`,
`{"split": n}` (ours only) by where a step's time goes.
"""

import json
import sys
import time

from experiments import machine
from experiments.training_speed import opponents
from experiments.turns import Requests


def main(argv: list[str]) -> None:
  """Serves one system until stdin ends."""
  system, folder, settings = argv[1], argv[2], json.loads(argv[3])
  requests = Requests()
  machine.use_cores(settings['threads'])
  split = None
  if system == 'ours':
    from experiments.training_speed.ours import Trainer

    trainer = Trainer(folder, settings)
    train, split = trainer.train, trainer.split
  else:
    train = getattr(opponents, system)(folder, settings)
  for request in requests:
    if 'split' in request:
      requests.answer(**split(request['split']))
      continue
    began = time.perf_counter()
    losses = train(request['steps'])
    seconds = time.perf_counter() - began
    requests.answer(losses=losses, seconds=seconds)


if __name__ == '__main__':
  main(sys.argv)
