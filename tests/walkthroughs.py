"""Runs the walk-throughs of docs/ on a quickstart's workdir, a few steps each.

  python -m tests.walkthroughs QUICKSTART OUT

`.ci/run` does so; `tests/test_docs.py` only reads the commands.
"""

import os
import re
import shlex
import subprocess
import sys

from tests.fixtures import ROOT
from tests.test_docs import FENCE, WALK_THROUGHS, walk_through

STEPS = (
  '--config.train.steps=2',
  '--config.train.eval_every=2',
  '--config.optim.warmup_steps=0',
)


def main(quickstart: str, out: str) -> None:
  os.makedirs(out, exist_ok=True)
  for name in WALK_THROUGHS:
    for kind, text in FENCE.findall(walk_through(name)):
      text = text.replace('runs/quickstart', quickstart)
      text = re.sub(r'(?<![\w/])runs/', f'{out}/', text)
      if kind == 'python':
        exec(text, {})
        continue
      for line in re.sub(r'\\\n\s*', ' ', text).splitlines():
        words = shlex.split(line)
        if 'configs/quickstart.py' in line or not line.strip():
          continue
        train = any(word.startswith('--config.train.') for word in words)
        print('+', line, flush=True)
        subprocess.run(
          [sys.executable, *words[1:], *(STEPS if train else ())],
          cwd=ROOT,
          check=True,
          stdin=subprocess.DEVNULL,
        )


if __name__ == '__main__':
  main(*sys.argv[1:])
