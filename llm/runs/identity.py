"""What decides a run's result: with it a workdir refuses another run."""

import dataclasses
import os
from typing import Any

from llm.checkpoints.train_state import Checkpoints
from llm.runs.checks import BEST
from llm.runs.train_model import ModelSpec

# Fields that may differ when a run resumes: they change no parameter (or, as
# train.steps, only those of steps that are still to come).
_FREE = {
  'train': (
    'steps',
    'log_every',
    'eval_every',
    'eval_first',
    'checkpoint_every',
    'keep',
    'best',
    'export',
    'max_bad_steps',
    'microbatch_size',
    'remat',
  ),
  # The contents count: Recipe.identity.
  'data': ('path', 'eval_path', 'tools'),
  'lora': ('export', 'path'),  # the contents count: ModelSpec.weights
  'teacher': ('path',),  # the weights count: Recipe.identity
}
_FREE_GROUPS = ('mesh', 'sample', 'log', 'export', 'model', 'tokenizer')


def run_identity(
  config, spec: ModelSpec, contents: dict[str, Any]
) -> dict[str, Any]:
  """All that decides the result of a run, as JSON can hold it.

  Args:
    config: of the run.
    spec: the model.
    contents: fingerprints of what the run reads, by name.
  """
  fields = config.to_dict()
  kept = {}
  for name, value in fields.items():
    if name in _FREE_GROUPS:
      continue
    if isinstance(value, dict):
      free = _FREE.get(name, ())
      value = {k: v for k, v in value.items() if k not in free}
    kept[name] = value
  model = dataclasses.asdict(spec.config)
  model['weights'] = spec.weights
  model['scan_layers'] = config.model.scan_layers
  return {'model': model, 'config': kept, **contents}


def open_checkpoints(
  config, workdir: str, spec: ModelSpec, contents: dict[str, Any]
) -> Checkpoints:
  """The checkpoints of a run, which refuse those of another one."""
  best = config.train.best
  return Checkpoints(
    os.path.join(workdir, 'checkpoints'),
    keep=config.train.keep,
    best=(best, BEST[best]) if best else None,
    identity=run_identity(config, spec, contents),
  )
