"""One measured system in a process of its own.

  python -m experiments.alignment_speed.worker SYSTEM FOLDER SETTINGS

`{"steps": n}` is answered by `losses` and `rewards` of the next n steps and
their `seconds`.
"""

import json
import sys
import time

from experiments import machine
from experiments.alignment_speed import opponents
from experiments.turns import Requests


def main(argv: list[str]) -> None:
  """Serves one system until stdin ends."""
  system, folder, settings = argv[1], argv[2], json.loads(argv[3])
  requests = Requests()
  machine.use_cores(settings['threads'])
  if system != 'ours':
    settings['fused'] = system == 'trl_fused'
    opponents.serve(folder, settings, requests)
    return
  from experiments.alignment_speed import ours

  train = ours.make_train(folder, settings)
  for request in requests:
    began = time.perf_counter()
    found = train(request['steps'])
    requests.answer(
      losses=[row['loss'] for row in found],
      rewards=[row.get('reward_mean') for row in found],
      seconds=time.perf_counter() - began,
    )


if __name__ == '__main__':
  main(sys.argv)
