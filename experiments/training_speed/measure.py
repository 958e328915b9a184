"""The run: all systems take turns, from the same weights on the same rows."""

import contextlib
import json
import statistics
import tempfile

import jax
import ml_collections

from experiments import machine, turns
from llm.checkpoints.hf.save import save_hf
from llm.errors import UserError
from llm.models.config import ModelConfig
from llm.models.transformer import init_params
from llm.runs import outputs

_NEEDS = {'ours': None, 'transformers': 'torch', 'transformers_fused': 'torch'}
_WORKER = 'experiments.training_speed.worker'
_PACKAGES = ('jax', 'torch', 'transformers')


def run(config: ml_collections.ConfigDict, workdir: str | None) -> None:
  """Measures, and writes `result.json`.

  Raises:
    UserError: no workdir, an unknown system, or a missing package.
  """
  if not workdir:
    raise UserError('no --workdir: name a folder for result.json')
  result = {
    'machine': machine.describe(),
    'versions': machine.versions(_PACKAGES),
  }
  machine.use_cores(config.threads)
  turns.check_systems(config.systems, _NEEDS)
  systems = list(config.systems)
  shape = ModelConfig(
    **config.model.to_dict(),
    num_kv_heads=config.model.num_heads,
    max_length=config.tokens,
    norm_eps=1e-5,
    tie_embeddings=False,
  )
  with tempfile.TemporaryDirectory(dir=workdir) as folder:
    save_hf(folder, shape, init_params(shape, jax.random.key(config.seed)))
    losses, seconds, split = _take_turns(config, systems, folder)
  tokens = config.batch_size * config.tokens
  for system, each in seconds.items():
    rates = [config.steps * tokens / s for s in each]
    result[system] = {
      'tokens_per_s': statistics.median(rates),
      'least': min(rates),
      'most': max(rates),
    }
  result['ratio'] = turns.ratios(seconds)
  result['split'] = {f'{k[:-2]}_ms': 1e3 * v for k, v in split.items()}
  result['losses'] = compare(losses)
  outputs.write_result(workdir, result)
  _print(result, systems)


def settings(config) -> dict:
  """What the workers have to know, as JSON."""
  steps = config.compared_steps + config.repetitions * config.steps
  return {
    'seed': config.seed,
    'threads': config.threads,
    'batch_size': config.batch_size,
    'rows': config.batch_size * steps,
    'all_steps': steps,
    'tokens': config.tokens,
    'prompt_tokens': config.prompt_tokens,
    'vocab_size': config.model.vocab_size,
    'optim': config.optim.to_dict(),
  }


def _take_turns(config, systems, folder):
  """(losses of the first steps, seconds of each turn, our split).

  The first steps, which compile and allocate, are compared and not timed.
  """
  workers, losses = {}, {}
  with contextlib.ExitStack() as stack:
    for name in systems:
      arguments = [name, folder, json.dumps(settings(config))]
      worker = turns.Worker(_WORKER, arguments, config.threads)
      workers[name] = stack.enter_context(contextlib.closing(worker))
      losses[name] = worker.ask(steps=config.compared_steps)['losses']
    answers = turns.take_turns(workers, config.repetitions, steps=config.steps)
    split = workers['ours'].ask(split=2 * config.steps)
  seconds = {
    name: [a['seconds'] for a in each] for name, each in answers.items()
  }
  return losses, seconds, split


def compare(losses: dict[str, list[float]]) -> dict[str, float]:
  """How far the losses of all systems are apart, and how far they fell."""
  ours = losses['ours']
  apart = max(
    abs(a - b) for other in losses.values() for a, b in zip(ours, other)
  )
  return {
    'steps': len(ours),
    'apart': apart,
    'first': ours[0],
    'last': ours[-1],
  }


def _print(result: dict, systems: list[str]) -> None:
  for name in systems:
    print(f'{name}: {result[name]["tokens_per_s"]:,.0f} tokens/s')
  for group in ('ratio', 'split', 'losses'):
    for name, value in result[group].items():
      print(f'{group}.{name}: {value:.4g}')
