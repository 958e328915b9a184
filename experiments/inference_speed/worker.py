"""One measured system in a process of its own.

  python -m experiments.inference_speed.worker SYSTEM FOLDER THREADS

A line of JSON on stdin, `{"prompts": [[id, ...], ...], "new_tokens": n}`, is
answered by one on stdout, `{"tokens", "prefill_s", "decode_s"}`. Between them
the process sleeps, so that systems which take turns do not disturb each other.
"""

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

from experiments import machine
from experiments.inference_speed import opponents

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def ours(folder: str, threads: int) -> opponents.Generator:
  """llm-jax: `generate`, as its users call it, with greedy sampling."""
  del threads  # as many as the process has cores
  from llm.checkpoints import hf
  from llm.decode.generate import generate
  from llm.decode.sampling_params import SamplingParams
  from llm.models.transformer import Transformer
  from llm.tasks.run import enable_compilation_cache

  enable_compilation_cache()
  config = hf.read_config(folder)
  params = hf.load_params(folder, config)
  model = Transformer(config)

  def run(prompts, new_tokens):
    sampling = SamplingParams(
      max_new_tokens=new_tokens, temperature=0.0, ignore_eos=True
    )
    rows = generate(model, params, prompts, [sampling] * len(prompts))
    tokens = [row.token_ids for row in rows]
    timing = rows[0].timing  # of the batch: all rows end together
    return tokens, timing['prefill_s'], timing['decode_s']

  return run


SYSTEMS = {
  'ours': ours,
  'transformers_dynamic': opponents.transformers_dynamic,
  'transformers_static': opponents.transformers_static,
  'llama_cpp': opponents.llama_cpp,
}


class Worker:
  """The other end of such a process, for the measuring one; close it."""

  def __init__(self, system: str, folder: str, threads: int):
    self.system = system
    # torch and llama.cpp make one OpenMP thread per core unless told otherwise.
    env = os.environ | {'OMP_NUM_THREADS': str(threads)}
    self._process = subprocess.Popen(
      [sys.executable, '-m', __spec__.name, system, folder, str(threads)],
      cwd=ROOT,
      env=env,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def generate(self, prompts: list[list[int]], new_tokens: int) -> dict:
    """Has it generate; returns its answer.

    Raises:
      RuntimeError: the process has ended; its stderr says why.
    """
    request = {'prompts': prompts, 'new_tokens': new_tokens}
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
  system, folder, threads = argv[1], argv[2], int(argv[3])
  # Libraries print to stdout as they like: the answers have it for themselves.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  machine.use_cores(threads)
  generate = SYSTEMS[system](folder, threads)
  for line in sys.stdin:
    request: dict[str, Any] = json.loads(line)
    tokens, prefill_s, decode_s = generate(
      request['prompts'], request['new_tokens']
    )
    answer = {'tokens': tokens, 'prefill_s': prefill_s, 'decode_s': decode_s}
    answers.write(json.dumps(answer) + '\n')
    answers.flush()


if __name__ == '__main__':
  main(sys.argv)
