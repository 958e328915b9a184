"""The runs `pretrain` and `sft`: text in, a model that predicts it out."""

from collections.abc import Callable
import math
from typing import Any

import jax

from llm.align.supervised_loss import make_loss, make_training_loss
from llm.data import curriculum, pipeline
from llm.data.examples import Examples
from llm.errors import UserError
from llm.parallel.mesh import check_batch, make_mesh, on_mesh
from llm.parallel.sharding import shard_batch
from llm.runs import checks as training_checks
from llm.runs import datasets, training
from llm.runs.train_model import (
  TrainModel,
  build_train_model,
  read_spec,
)
from llm.tasks.training_fields import training_fields
from llm.train.optim import make_optimizer
from llm.train.step import make_eval_step

LOSSES = ('cross_entropy',)


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/pretrain.py`, `sft.py` or `lora.py` ask for.

  Every field and every row is checked before the weights are read.

  Returns:
    The row of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  workdir = training_checks.check_fields(
    config, workdir, training_fields(config.task)
  )
  if config.loss.name not in LOSSES:
    raise UserError(
      f'loss.name={config.loss.name!r}: use one of {", ".join(LOSSES)}'
    )
  if not 0.0 <= config.loss.neftune_alpha < math.inf:
    raise UserError(
      f'loss.neftune_alpha={config.loss.neftune_alpha}: use 0 (none) or more'
    )
  mesh = make_mesh(config.mesh)
  microbatches = check_batch(
    config.train.batch_size, config.train.microbatch_size, mesh
  )
  make_optimizer(config.optim, config.train.steps)
  data = config.data
  curriculum.check_schedule(
    data.curriculum, config.train.steps, data.max_length
  )
  spec = read_spec(config)
  examples, held_out = datasets.load_texts(config, spec)
  identity = {
    'examples': examples.digest,
    'held_out': held_out and held_out.digest,
  }
  source = pipeline.make_source(
    examples,
    batch_size=config.train.batch_size,
    max_length=data.max_length,
    packing=data.packing,
    shuffle=data.shuffle,
    seed=data.seed,
  )
  training.check_run(config, workdir, spec, identity)
  train_model = build_train_model(config, spec, mesh)
  recipe = _make_recipe(config, train_model, source, held_out, identity)
  return training.train(config, workdir, train_model, recipe, microbatches)


def _make_recipe(
  config,
  train_model: TrainModel,
  source: pipeline.Source,
  held_out: Examples | None,
  identity: dict[str, Any],
) -> training.Recipe:
  data, train = config.data, config.train

  def draw(state):
    batch, stats = next(source)
    length = curriculum.length_at(
      int(state.step), train.steps, data.curriculum, data.max_length
    )
    batch = curriculum.shorten(batch, length)
    stats |= pipeline.fill_stats(batch)
    return shard_batch(batch, train_model.mesh), stats

  return training.Recipe(
    loss_fn=make_training_loss(train_model, config.loss.neftune_alpha),
    draw=draw,
    data_state=source.get_state,
    seek=source.set_state,
    evaluate=held_out and make_evaluate(config, train_model, held_out),
    identity=identity,
  )


def make_evaluate(
  config, train_model: TrainModel, held_out: Examples
) -> Callable[[Any], dict[str, float]]:
  """Returns `evaluate(trained) -> {eval_loss, eval_accuracy, …}`.

  All held-out examples count, by token: `eval_loss` in nats, `eval_accuracy`
  the share where the most probable token is the right one,
  `eval_perplexity` = exp(eval_loss).
  """
  eval_step = on_mesh(
    jax.jit(make_eval_step(make_loss(train_model))), train_model.mesh
  )
  key = jax.random.key(0)  # nothing is drawn

  def evaluate(params):
    totals = {}
    for batch in pipeline.eval_batches(
      held_out,
      batch_size=config.train.batch_size,
      max_length=config.data.max_length,
      packing=config.data.packing,
    ):
      batch = shard_batch(batch, train_model.mesh)
      sums = eval_step(params, batch, key, train_model.frozen)
      totals = {k: totals.get(k, 0.0) + v for k, v in sums.items()}
    totals = {k: float(v) for k, v in totals.items()}
    weight = totals.pop('weight')
    scores = {f'eval_{k}': v / weight for k, v in totals.items()}
    scores['eval_perplexity'] = math.exp(min(scores['eval_loss'], 700.0))
    return scores

  return evaluate
