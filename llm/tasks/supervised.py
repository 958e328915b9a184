"""The runs `pretrain` and `sft`: text in, a model that predicts it out."""

from collections.abc import Callable
import math
from typing import Any

import jax

from llm.data import curriculum, dataset, pipeline
from llm.data.examples import Examples, check_vocabulary
from llm.errors import UserError
from llm.parallel.mesh import check_batch, make_mesh, on_mesh
from llm.parallel.sharding import shard_batch
from llm.tasks import report, training, training_checks
from llm.tasks import run as run_lib
from llm.tasks.supervised_loss import make_loss, make_training_loss
from llm.tasks.trainee import Blueprint, Trainee, build_trainee, draw_blueprint
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
  workdir = training_checks.check_fields(config, workdir)
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
  blueprint = draw_blueprint(config)
  examples, held_out = load(config, blueprint)
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
  training.check_run(config, workdir, blueprint, identity)
  trainee = build_trainee(config, blueprint, mesh)
  recipe = _make_recipe(config, trainee, source, held_out, identity)
  return training.train(config, workdir, trainee, recipe, microbatches)


def check_data(data, blueprint: Blueprint) -> None:
  """Refuses fields of `data` that do not fit each other or the model."""
  if data.path is None:
    raise UserError('data.path is not set: give a file (--config.data.path=…)')
  if data.eval_path is not None and data.eval_fraction:
    raise UserError(
      f'data.eval_path={data.eval_path!r} and data.eval_fraction='
      f'{data.eval_fraction}: set one of them'
    )
  limit = blueprint.config.max_length
  if data.max_length > limit and blueprint.config.rope.type != 'dynamic':
    raise UserError(
      f'data.max_length={data.max_length}: the model takes {limit} tokens '
      '(model.max_length)'
    )


def load(config, blueprint: Blueprint) -> tuple[Examples, Examples | None]:
  """The examples to train on and those held out, or None."""
  data, tok = config.data, blueprint.tokenizer
  check_data(data, blueprint)
  check_vocabulary(tok, blueprint.config.vocab_size)
  shared = {
    'max_length': data.max_length,
    'overlong': data.overlong,
    'separator': data.separator,
    'cache_dir': run_lib.cache_dir(),
  }
  with report.progress_bar() as bar:
    examples, held_out = dataset.load_examples(
      data.path,
      tok,
      eval_fraction=data.eval_fraction,
      on_bytes=on_bytes(bar, 'reading data.path'),
      **shared,
    )
    if data.eval_path is not None:
      held_out, _ = dataset.load_examples(
        data.eval_path,
        tok,
        field='data.eval_path',
        on_bytes=on_bytes(bar, 'reading data.eval_path'),
        **shared,
      )
  _tell(examples, held_out)
  others = sorted(set(examples.counts['shapes']) - {'text'})
  if data.curriculum and others:
    raise UserError(
      f'data.curriculum={data.curriculum}: {data.path} has rows of the shape '
      f'{others[0]}, whose answers it would cut from their questions; it is of '
      'texts'
    )
  return examples, held_out


def _make_recipe(
  config,
  trainee: Trainee,
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
    return shard_batch(batch, trainee.mesh), stats

  return training.Recipe(
    loss_fn=make_training_loss(trainee, config.loss.neftune_alpha),
    draw=draw,
    data_state=source.get_state,
    seek=source.set_state,
    evaluate=held_out and make_evaluate(config, trainee, held_out),
    identity=identity,
  )


def make_evaluate(
  config, trainee: Trainee, held_out: Examples
) -> Callable[[Any], dict[str, float]]:
  """Returns `evaluate(trained) -> {eval_loss, eval_accuracy, …}`.

  All held-out examples count, by token: `eval_loss` in nats, `eval_accuracy`
  the share where the most probable token is the right one,
  `eval_perplexity` = exp(eval_loss).
  """
  eval_step = on_mesh(jax.jit(make_eval_step(make_loss(trainee))), trainee.mesh)
  key = jax.random.key(0)  # nothing is drawn

  def evaluate(params):
    totals = {}
    for batch in pipeline.eval_batches(
      held_out,
      batch_size=config.train.batch_size,
      max_length=config.data.max_length,
      packing=config.data.packing,
    ):
      batch = shard_batch(batch, trainee.mesh)
      sums = eval_step(params, batch, key, trainee.frozen)
      totals = {k: totals.get(k, 0.0) + v for k, v in sums.items()}
    totals = {k: float(v) for k, v in totals.items()}
    weight = totals.pop('weight')
    scores = {f'eval_{k}': v / weight for k, v in totals.items()}
    scores['eval_perplexity'] = math.exp(min(scores['eval_loss'], 700.0))
    return scores

  return evaluate


def on_bytes(bar, text: str):
  """A callback (bytes done, bytes in all) that moves a bar."""
  task = bar.add_task(text, total=None)
  return lambda done, total: bar.update(task, completed=done, total=total)


def _tell(examples: Examples, held_out: Examples | None) -> None:
  """What became of the rows; nothing is dropped silently."""
  counts = examples.counts
  rows = f'{counts["rows"]:,} rows'
  if len(counts['shapes']) > 1:  # such as a licence among the data
    of = (f'{count:,} {name}' for name, count in counts['shapes'].items())
    rows += f' ({", ".join(of)})'
  parts = [
    rows,
    f'{len(examples):,} examples to train on',
  ]
  if held_out is not None:
    parts.append(f'{len(held_out):,} held out')
  for name in ('truncated', 'split', 'dropped', 'emptied'):
    if counts.get(name):
      parts.append(f'{counts[name]:,} {name}')
  report.tell('data: ' + ', '.join(parts))
