"""The run: all systems take turns on the same weights and prompts."""

import contextlib
import importlib.util
import statistics
import tempfile

import jax
import ml_collections
import numpy as np

from experiments import machine, turns
from llm.checkpoints.hf.save import save_hf
from llm.errors import UserError
from llm.host import bandwidth
from llm.models.config import ModelConfig
from llm.models.transformer import init_params
from llm.runs import outputs

_WORKER = 'experiments.inference_speed.worker'
# Where llama.cpp is not installed, the comparison leaves it out.
_NEEDS = {
  'ours': None,
  'transformers_dynamic': 'torch',
  'transformers_static': 'torch',
  'llama_cpp': None,
}
_PACKAGES = ('jax', 'torch', 'transformers', 'llama_cpp_python')


def run(config: ml_collections.ConfigDict, workdir: str | None) -> None:
  """Measures one batch size and writes `result.json`.

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
  systems = _systems(config)
  shape = _model_config(config)
  with tempfile.TemporaryDirectory(dir=workdir) as folder:
    params = init_params(shape, jax.random.key(config.seed))
    save_hf(folder, shape, params)
    lengths = _lengths(config)
    step_bytes = bandwidth.step_bytes(shape, params, lengths)
    del params
    before = bandwidth.measure_bandwidth(1.0)
    answers = _take_turns(config, systems, folder)
  moved = {}
  for system in systems:
    result[system] = _summary(config, answers[system])
    steps = result[system]['decode_tokens_per_s'] / config.batch_size
    moved[system] = steps * step_bytes
  after = bandwidth.measure_bandwidth(1.0, at_least=max(moved.values()))
  measured = max(before, after)
  result['bandwidth_gb_s'] = measured / 1e9
  for system in systems:
    # More than all of it says that other work disturbed the measurement.
    share = moved[system] / measured
    result[system]['bandwidth_share'] = share if share <= 1.0 else None
  result['ratio'] = _ratios(answers)
  result['tokens'] = _compare(answers, config.new_tokens)
  outputs.write_result(workdir, result)
  _print(result, systems)


def _systems(config) -> list[str]:
  """Those that take part: llama.cpp where it is installed, with one row."""
  turns.check_systems(config.systems, _NEEDS)
  alone = config.batch_size == 1
  if alone and importlib.util.find_spec('llama_cpp') is not None:
    return list(config.systems)
  return [name for name in config.systems if name != 'llama_cpp']


def _model_config(config) -> ModelConfig:
  return ModelConfig(
    **config.model.to_dict(),
    num_kv_heads=config.model.num_heads,
    max_length=_tokens(config),
    norm_eps=1e-5,
  )


def _tokens(config) -> int:
  return config.prompt_tokens + config.new_tokens


def _lengths(config) -> list[int]:
  """Tokens in the cache at a decode step, on average."""
  mean = config.prompt_tokens + config.new_tokens // 2
  return [mean] * config.batch_size


def _take_turns(config, systems, folder) -> dict[str, list[dict]]:
  """Each system's completions, in the order of the repetitions.

  A turn is one whole completion. The first one of each system, which compiles
  and allocates, is not counted.
  """
  rng = np.random.default_rng(config.seed)
  shape = (config.batch_size, config.prompt_tokens)
  prompts = rng.integers(0, config.model.vocab_size, shape).tolist()
  request = {'prompts': prompts, 'new_tokens': config.new_tokens}
  workers = {}
  with contextlib.ExitStack() as stack:
    for name in systems:
      arguments = [name, folder, str(config.threads)]
      worker = turns.Worker(_WORKER, arguments, config.threads)
      workers[name] = stack.enter_context(contextlib.closing(worker))
      worker.ask(**request)
    return turns.take_turns(workers, config.repetitions, **request)


def _summary(config, answers: list[dict]) -> dict[str, float]:
  """Tokens per second of one system: median, least and most."""
  prompt = config.batch_size * config.prompt_tokens
  steps = config.batch_size * (config.new_tokens - 1)
  prefill = [prompt / answer['prefill_s'] for answer in answers]
  decode = [steps / answer['decode_s'] for answer in answers]
  return {
    'prefill_tokens_per_s': statistics.median(prefill),
    'prefill_least': min(prefill),
    'prefill_most': max(prefill),
    'decode_tokens_per_s': statistics.median(decode),
    'decode_least': min(decode),
    'decode_most': max(decode),
  }


def _ratios(seen: dict[str, list[dict]]) -> dict[str, float]:
  """Our speed over another's: medians over repetitions of paired ratios.

  `transformers` is the faster of its two caches in each repetition.
  """
  others = {
    'transformers': [
      seen[name] for name in seen if name.startswith('transformers')
    ],
    'llama_cpp': [seen[name] for name in seen if name == 'llama_cpp'],
    'small_pages': [seen[name] for name in seen if name == 'ours_small_pages'],
  }
  ratios = {}
  for phase in ('prefill', 'decode'):
    for name, systems in others.items():
      if not systems:
        continue
      pairs = [
        min(answer[f'{phase}_s'] for answer in answers) / ours[f'{phase}_s']
        for ours, *answers in zip(seen['ours'], *systems, strict=True)
      ]
      key = f'{phase}_vs_{name}'
      ratios[key] = statistics.median(pairs)
      ratios[f'{key}_least'] = min(pairs)
      ratios[f'{key}_most'] = max(pairs)
  return ratios


def _compare(seen: dict[str, list[dict]], new_tokens: int) -> dict:
  """Whether all systems compute the same model.

  `equal` is the least number of leading tokens in which any completion of any
  system agrees with our first one; `distinct` counts different tokens in our
  rows, because equal tokens would mean little if all were the same one.
  """
  ours = np.array(seen['ours'][0]['tokens'])
  equal = new_tokens
  for answers in seen.values():
    for answer in answers:
      same = np.array(answer['tokens']) == ours
      equal = min(equal, int(np.cumprod(same, axis=1).sum(axis=1).min()))
  distinct = min(len(set(row)) for row in ours.tolist())
  return {'equal': equal, 'of': new_tokens, 'distinct': distinct}


def _print(result: dict, systems: list[str]) -> None:
  for name in systems:
    row = result[name]
    share = row['bandwidth_share']
    known = 'unknown share' if share is None else f'{share:.0%}'
    print(
      f'{name}: prefill {row["prefill_tokens_per_s"]:.1f} tokens/s, decode '
      f'{row["decode_tokens_per_s"]:.1f} tokens/s, {known} of the bandwidth'
    )
  for name, value in result['ratio'].items():
    print(f'{name}: {value:.2f}')
  tokens = result['tokens']
  print(
    f'equal tokens: {tokens["equal"]} of {tokens["of"]}, '
    f'{tokens["distinct"]} distinct in a row'
  )
