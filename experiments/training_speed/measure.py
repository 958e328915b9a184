"""The run: all systems take turns, from the same weights on the same rows."""

import importlib.metadata
import importlib.util
import statistics
import tempfile

import jax
import ml_collections

from experiments import machine
from experiments.training_speed.worker import SYSTEMS, Worker
from llm.checkpoints.hf_save import save_hf
from llm.errors import UserError
from llm.models.config import ModelConfig
from llm.models.transformer import init_params
from llm.tasks import run as run_lib

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
    'versions': {name: _version(name) for name in _PACKAGES},
  }
  machine.use_cores(config.threads)
  systems = check_systems(config)
  shape = ModelConfig(
    **config.model.to_dict(),
    num_kv_heads=config.model.num_heads,
    max_length=config.tokens,
    norm_eps=1e-5,
    tie_embeddings=False,
  )
  with tempfile.TemporaryDirectory(dir=workdir) as folder:
    save_hf(folder, shape, init_params(shape, jax.random.key(config.seed)))
    losses, turns, split = _take_turns(config, systems, folder)
  tokens = config.batch_size * config.tokens
  for system, seconds in turns.items():
    rates = [config.steps * tokens / s for s in seconds]
    result[system] = {
      'tokens_per_s': statistics.median(rates),
      'least': min(rates),
      'most': max(rates),
    }
  result['ratio'] = ratios(turns)
  result['split'] = {f'{k[:-2]}_ms': 1e3 * v for k, v in split.items()}
  result['losses'] = compare(losses)
  run_lib.write_result(workdir, result)
  _print(result, systems)


def check_systems(config: ml_collections.ConfigDict) -> list[str]:
  """Returns the systems that take part.

  Raises:
    UserError: an unknown one, one that cannot run here, or ours is missing.
  """
  systems = list(config.systems)
  for name in systems:
    if name not in SYSTEMS:
      raise UserError(f'systems has {name!r}: use some of {", ".join(SYSTEMS)}')
    if name != 'ours' and importlib.util.find_spec('torch') is None:
      raise UserError(
        f'systems has {name!r}, and torch is not installed: install the extra '
        "'parity', or leave it out"
      )
  if 'ours' not in systems:
    raise UserError(f"systems={config.systems}: 'ours' must be one of them")
  return systems


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

  The first steps, which compile and allocate, are compared and not timed. The
  order is turned by one in each repetition, so that no system always runs
  after the same other one.
  """
  workers, losses, turns = [], {}, {name: [] for name in systems}
  try:
    for name in systems:
      workers.append(Worker(name, folder, settings(config)))
      losses[name] = workers[-1].ask(steps=config.compared_steps)['losses']
    for repetition in range(config.repetitions):
      shift = repetition % len(workers)
      for worker in workers[shift:] + workers[:shift]:
        seconds = worker.ask(steps=config.steps)['seconds']
        turns[worker.system].append(seconds)
        each = seconds / config.steps
        print(f'{repetition} {worker.system}: {each:.3f} s a step', flush=True)
    split = workers[systems.index('ours')].ask(split=2 * config.steps)
  finally:
    for worker in workers:
      worker.close()
  return losses, turns, split


def ratios(turns: dict[str, list[float]]) -> dict[str, float]:
  """Our speed over `transformers`: the median of paired ratios.

  In each repetition it is the faster of its two optimizers.
  """
  others = [turns[name] for name in turns if name != 'ours']
  if not others:
    return {}
  pairs = [
    min(seconds) / ours
    for ours, *seconds in zip(turns['ours'], *others, strict=True)
  ]
  return {
    'tokens_per_s': statistics.median(pairs),
    'least': min(pairs),
    'most': max(pairs),
  }


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


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _print(result: dict, systems: list[str]) -> None:
  for name in systems:
    print(f'{name}: {result[name]["tokens_per_s"]:,.0f} tokens/s')
  for group in ('ratio', 'split', 'losses'):
    for name, value in result[group].items():
      print(f'{group}.{name}: {value:.4g}')
