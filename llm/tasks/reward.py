"""The run `reward`: a model that scores completions, or their steps."""

from collections.abc import Callable
import functools
from typing import Any

from llm.align import reward_data
from llm.align.checks import PROCESS, check_reward
from llm.align.reward_head import with_head, with_reward_head
from llm.align.reward_loss import make_reward_loss
from llm.evals.intervals import wilson_interval
from llm.parallel.sharding import shard_batch
from llm.runs import batches, training
from llm.runs.first_rows import show_first
from llm.runs.job import check_job, open_job
from llm.runs.train_model import TrainModel, build_train_model
from llm.tasks.training_fields import training_fields


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/reward.py` asks for.

  Returns:
    The contents of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  check_reward(config)
  job = open_job(config, workdir, training_fields(config.task))
  completions, held_out = reward_data.load(config, job.spec)
  contents = {
    'examples': completions.examples.digest,
    'held_out': held_out and held_out.examples.digest,
  }
  source = batches.make_source(
    config, completions.examples, **reward_data.row_options(config)
  )
  check_job(
    job,
    contents,
    with_head=functools.partial(with_head, width=job.spec.config.embed_dim),
    reward_head=True,
  )
  group = reward_data.row_options(config)['group']
  show_first(job, completions.examples, group)
  train_model = build_train_model(config, job.spec, job.mesh)
  train_model = with_reward_head(train_model)
  complete = _make_complete(config, train_model, completions)
  recipe = training.Recipe(
    loss_fn=make_reward_loss(train_model, config.loss, training=True),
    batches=batches.FileBatches(config, source, complete),
    evaluate=held_out and _make_evaluate(config, train_model, held_out),
    contents=contents,
    counts=completions.counts,
    language_model=lambda params: params['model'],
    reward_head=lambda params: params['reward_head'],
  )
  return training.train(job, train_model, recipe)


def _make_complete(config, train_model: TrainModel, completions: Any):
  add = reward_data.make_columns(config, completions)
  return lambda params, batch: shard_batch(add(batch), train_model.mesh)


def _make_evaluate(
  config, train_model: TrainModel, held_out: Any
) -> Callable[[Any], dict[str, float]]:
  """Returns `evaluate(trained) -> {eval_loss, eval_reward_accuracy, …}`.

  The accuracy has an interval (95%, Wilson), to be held against `eval_chance`:
  0.5 for pairs, the share of the more frequent label for steps.
  """
  name = 'accuracy' if config.loss.name == PROCESS else 'reward_accuracy'

  def interval(scores, weight):
    low, high = wilson_interval(scores[f'eval_{name}'], weight)
    right = scores.get('eval_label', 0.5)
    return {
      'eval_chance': max(right, 1.0 - right),
      f'eval_{name}_low': low,
      f'eval_{name}_high': high,
      'eval_count': weight,
    }

  return batches.make_evaluate(
    config,
    train_model,
    make_reward_loss(train_model, config.loss, training=False),
    held_out.examples,
    _make_complete(config, train_model, held_out),
    summarise=interval,
    **reward_data.row_options(config),
  )
