"""One measured system in a process of its own.

  python -m experiments.inference_speed.worker SYSTEM FOLDER THREADS

`{"prompts": [[id, ...], ...], "new_tokens": n}` is answered by `tokens`,
`prefill_s` and `decode_s`.
"""

import sys

from experiments import machine
from experiments.inference_speed import opponents
from experiments.turns import Requests


def ours(folder: str, threads: int) -> opponents.Generator:
  """llm-jax: `generate`, as its users call it, with greedy sampling."""
  del threads  # as many as the process has cores
  import jax.numpy as jnp

  from llm.checkpoints.source import open_checkpoint
  from llm.decode.generate import generate
  from llm.decode.sampling_params import SamplingParams
  from llm.host.memory import keep_freed_memory
  from llm.models.transformer import Transformer
  from llm.runs.outputs import enable_compilation_cache

  keep_freed_memory()  # as every run of launch.py does
  enable_compilation_cache()
  source = open_checkpoint(folder)
  params = source.load(jnp.float32)
  model = Transformer(source.config)

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


def main(argv: list[str]) -> None:
  """Serves one system until stdin ends."""
  system, folder, threads = argv[1], argv[2], int(argv[3])
  requests = Requests()
  machine.use_cores(threads)
  generate = SYSTEMS[system](folder, threads)
  for request in requests:
    tokens, prefill_s, decode_s = generate(
      request['prompts'], request['new_tokens']
    )
    requests.answer(tokens=tokens, prefill_s=prefill_s, decode_s=decode_s)


if __name__ == '__main__':
  main(sys.argv)
