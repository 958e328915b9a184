"""The run: all systems take turns, from the same weights on the same rows."""

import contextlib
import json
import statistics
import tempfile

import ml_collections

from experiments import machine, turns
from experiments.alignment_speed.rows import write_model
from llm.errors import UserError
from llm.runs import outputs

KINDS = ('dpo', 'dpo_precomputed', 'grpo')
_NEEDS = {'ours': None, 'trl': 'trl', 'trl_fused': 'trl'}
_WORKER = 'experiments.alignment_speed.worker'
_PACKAGES = ('jax', 'torch', 'transformers', 'trl')


def run(config: ml_collections.ConfigDict, workdir: str | None) -> None:
  """Measures, and writes `result.json`.

  Raises:
    UserError: no workdir, an unknown kind or system, or a missing package.
  """
  if not workdir:
    raise UserError('no --workdir: name a folder for result.json')
  check_fields(config)
  result = {
    'machine': machine.describe(),
    'versions': machine.versions(_PACKAGES),
  }
  first = {}
  with contextlib.ExitStack() as stack:
    workers = {}
    for name in config.systems:
      # Each has its own model folder, in which it may write.
      folder = stack.enter_context(tempfile.TemporaryDirectory(dir=workdir))
      write_model(folder, config.model.to_dict(), settings(config))
      arguments = [name, folder, json.dumps(settings(config))]
      worker = turns.Worker(_WORKER, arguments, config.threads)
      workers[name] = stack.enter_context(contextlib.closing(worker))
      # The first steps compile and allocate: they are compared, not timed.
      first[name] = worker.ask(steps=config.compared_steps)
    answers = turns.take_turns(workers, config.repetitions, steps=config.steps)
  seconds = {
    name: [a['seconds'] for a in each] for name, each in answers.items()
  }
  for name in config.systems:
    each = [s / config.steps for s in seconds[name]]
    result[name] = {
      'step_s': statistics.median(each),
      'least_s': min(each),
      'most_s': max(each),
    }
  result['ratio'] = turns.ratios(seconds)
  result['control'] = compare(config.kind, first)
  outputs.write_result(workdir, result)
  print(json.dumps({k: result[k] for k in ('ratio', 'control')}, indent=2))


def check_fields(config) -> None:
  """Refuses what cannot be measured.

  Raises:
    UserError: an unknown kind or system, or a package that is missing.
  """
  if config.kind not in KINDS:
    raise UserError(f'kind={config.kind!r}: use one of {", ".join(KINDS)}')
  turns.check_systems(config.systems, _NEEDS)


def settings(config) -> dict:
  """What the workers have to know, as JSON."""
  steps = config.compared_steps + config.repetitions * config.steps
  is_rl = config.kind == 'grpo'
  answer = config.new_tokens if is_rl else config.most_tokens + 1
  row_tokens = config.prompt_tokens + answer
  return {
    'seed': config.seed,
    'kind': config.kind,
    'threads': config.threads,
    'all_steps': steps,
    'rows': steps * (config.prompts if is_rl else config.batch_size),
    'batch_size': config.batch_size,
    'prompts': config.prompts,
    'group_size': config.group_size,
    'prompt_tokens': config.prompt_tokens,
    'least_tokens': config.least_tokens,
    'most_tokens': config.most_tokens,
    'new_tokens': config.new_tokens,
    'max_length': row_tokens,
    'row_tokens': config.prompt_tokens if is_rl else row_tokens,
    'vocab_size': config.model.vocab_size,
    'optim': {
      'lr': config.lr,
      'schedule': 'constant',
      'warmup_steps': 0,
      'weight_decay': 0.0,
      'b1': 0.9,
      'b2': 0.95,
      'clip_norm': 1.0,
    },
  }


def compare(kind: str, first: dict[str, dict]) -> dict[str, float]:
  """Numbers that show whether all systems did the same in their first steps.

  Args:
    kind: one of `KINDS`.
    first: what each system measured.

  Returns:
    The largest difference of any two losses of a step (`loss_apart`), or for
    rollouts, which differ, how far the mean rewards of the last half of the
    steps are (`reward_apart`); and 'ours' at the first step and the last.
  """
  name = 'rewards' if kind == 'grpo' else 'losses'
  ours = first['ours'][name]
  if kind == 'grpo':
    half = len(ours) // 2
    means = [statistics.mean(one[name][half:]) for one in first.values()]
    apart = {'reward_apart': max(means) - min(means)}
  else:
    others = [one[name] for one in first.values()]
    steps = zip(*others, strict=True)
    apart = {'loss_apart': max(max(s) - min(s) for s in steps)}
  return {'steps': len(ours), 'first': ours[0], 'last': ours[-1], **apart}
