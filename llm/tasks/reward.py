"""The run `reward`: a model that scores answers, or the steps of answers."""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.align.reward_loss import LOSSES, PROCESS, make_reward_loss
from llm.data import pipeline
from llm.data.pairs import load_pairs
from llm.data.steps import load_steps
from llm.errors import UserError
from llm.evals.intervals import wilson_interval
from llm.parallel.mesh import check_batch, make_mesh, on_mesh
from llm.parallel.sharding import param_shardings, shard_batch
from llm.runs import checks as training_checks
from llm.runs import datasets, training
from llm.runs.train_model import (
  ModelSpec,
  TrainModel,
  build_train_model,
  read_spec,
  trained_shapes,
)
from llm.tasks.training_fields import training_fields
from llm.train.optim import make_optimizer
from llm.train.step import make_eval_step


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/reward.py` asks for.

  Returns:
    The row of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  workdir = training_checks.check_fields(
    config, workdir, training_fields(config.task)
  )
  _check_fields(config)
  mesh = make_mesh(config.mesh)
  train, data = config.train, config.data
  microbatches = check_batch(train.batch_size, train.microbatch_size, mesh)
  make_optimizer(config.optim, train.steps)
  spec = read_spec(config)
  completions, held_out = _load(config, spec)
  identity = {
    'examples': completions.examples.digest,
    'held_out': held_out and held_out.examples.digest,
  }
  source = pipeline.make_source(
    completions.examples,
    batch_size=train.batch_size,
    shuffle=data.shuffle,
    seed=data.seed,
    **_rows(config),
  )
  shapes = jax.eval_shape(
    functools.partial(_with_head, width=spec.config.embed_dim),
    trained_shapes(config, spec),
  )
  training.check_run(
    config, workdir, spec, identity, shapes=shapes, reward_head=True
  )
  train_model = _with_reward_head(build_train_model(config, spec, mesh))
  add = _columns(config, completions)

  def draw(state):
    del state
    batch, stats = next(source)
    return shard_batch(add(batch), mesh), stats

  recipe = training.Recipe(
    loss_fn=make_reward_loss(train_model, config.loss, training=True),
    draw=draw,
    data_state=source.get_state,
    seek=source.set_state,
    evaluate=held_out and _make_evaluate(config, train_model, held_out),
    identity=identity,
    language_model=lambda params: params['model'],
    reward_head=lambda params: params['reward_head'],
  )
  return training.train(config, workdir, train_model, recipe, microbatches)


def _check_fields(config) -> None:
  loss = config.loss
  if loss.name not in LOSSES:
    raise UserError(f'loss.name={loss.name!r}: use one of {", ".join(LOSSES)}')
  center = loss.center_coef
  if loss.name == PROCESS and center is not None:
    raise UserError(
      f'loss.center_coef={center}: {PROCESS} does not read it, for its scores '
      'have a scale; leave it unset'
    )
  if center is not None and not 0.0 <= center < math.inf:
    raise UserError(f'loss.center_coef={center}: use 0 (off) or more')
  if loss.name != PROCESS and config.data.step_separator is not None:
    raise UserError(
      f'data.step_separator={config.data.step_separator!r}: {loss.name} has no '
      f"steps; leave it unset, or use loss.name='{PROCESS}'"
    )
  if config.sample.prompts:
    raise UserError(
      'sample.prompts: a reward model writes no text; leave it unset'
    )
  if config.lora.export is not None:
    raise UserError(
      f'lora.export={config.lora.export!r}: adapters alone lack the head of a '
      'reward model; set export, which merges them'
    )
  if config.lora.rank and 'lm_head' in config.lora.targets:
    raise UserError(
      "lora.targets: 'lm_head' is not there in a reward model; leave it out"
    )


def _load(config, spec: ModelSpec):
  load = functools.partial(datasets.load_ratings, config, spec)
  if config.loss.name != PROCESS:
    return load(load_pairs, 'pairs')
  separator = config.data.step_separator
  return load(
    load_steps, 'answers', separator='\n' if separator is None else separator
  )


def _rows(config) -> dict[str, Any]:
  """How examples become rows, for `make_source` and `eval_batches`."""
  return {
    'max_length': config.data.max_length,
    'packing': config.data.packing,
    'group': 1 if config.loss.name == PROCESS else 2,
    'named': True,
  }


def _with_head(params: Any, width: int) -> dict[str, Any]:
  """What is trained: no output table, and a head that scores 0."""
  model = {k: v for k, v in params.items() if k != 'lm_head'}
  return {
    'model': model,
    'reward_head': {'kernel': jnp.zeros((1, width), jnp.float32)},
  }


def _with_reward_head(train_model: TrainModel) -> TrainModel:
  width = train_model.spec.config.embed_dim
  params = _with_head(train_model.params, width)
  head = params['reward_head']
  head = jax.device_put(head, param_shardings(head, train_model.mesh))
  frozen = train_model.frozen
  if 'base' in frozen:
    base = {k: v for k, v in frozen['base'].items() if k != 'lm_head'}
    frozen = {**frozen, 'base': base}
  return dataclasses.replace(
    train_model, params=params | {'reward_head': head}, frozen=frozen
  )


def _columns(config, completions: Any) -> Callable:
  """Returns `add(batch)`: what the loss reads besides the tokens.

  `margins` float32[B, S / 2], or, of steps, `labels` float32[B, T].
  """
  if config.loss.name != PROCESS:
    margins = np.append(completions.margins, np.float32(0))  # for index -1
    return lambda batch: (
      batch | {'margins': margins[batch['examples'][:, ::2] // 2]}
    )

  def add(batch):
    segments = batch['segment_ids']
    index = np.take_along_axis(
      batch['examples'], np.maximum(segments - 1, 0), axis=1
    )
    place = completions.examples.offsets[index] + batch['positions']
    place = np.where(segments > 0, place, 0)
    labels = np.where(segments > 0, completions.labels[place], 0)
    return batch | {'labels': labels.astype(np.float32)}

  return add


def _make_evaluate(config, train_model: TrainModel, held_out: Any):
  """Returns `evaluate(trained) -> {eval_loss, eval_reward_accuracy, …}`.

  The accuracy has an interval (95%, Wilson), to be held against `eval_chance`:
  0.5 for pairs, the share of the more frequent label for steps.
  """
  loss_fn = make_reward_loss(train_model, config.loss, training=False)
  eval_step = on_mesh(jax.jit(make_eval_step(loss_fn)), train_model.mesh)
  add = _columns(config, held_out)
  key = jax.random.key(0)  # nothing is drawn
  name = 'accuracy' if config.loss.name == PROCESS else 'reward_accuracy'

  def evaluate(params: Any) -> dict[str, float]:
    totals = {}
    for batch in pipeline.eval_batches(
      held_out.examples, batch_size=config.train.batch_size, **_rows(config)
    ):
      batch = shard_batch(add(batch), train_model.mesh)
      sums = eval_step(params, batch, key, train_model.frozen)
      totals = {k: totals.get(k, 0.0) + v for k, v in sums.items()}
    weight = float(totals.pop('weight'))
    scores = {f'eval_{k}': float(v) / weight for k, v in totals.items()}
    low, high = wilson_interval(scores[f'eval_{name}'], weight)
    right = scores.get('eval_label', 0.5)
    return scores | {
      'eval_chance': max(right, 1.0 - right),
      f'eval_{name}_low': low,
      f'eval_{name}_high': high,
      'eval_count': weight,
    }

  return evaluate
