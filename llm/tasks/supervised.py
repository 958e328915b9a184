"""The runs `pretrain` and `sft`: text in, a model that predicts it out."""

from collections.abc import Callable
import math
from typing import Any

from llm.align.checks import check_supervised
from llm.align.supervised_loss import make_loss, make_training_loss
from llm.data.ends import ends_of
from llm.data.examples import Examples
from llm.parallel.sharding import shard_batch
from llm.runs import batches, datasets, training
from llm.runs.first_rows import show_first
from llm.runs.job import check_job, open_job, with_ends
from llm.runs.train_model import TrainModel, build_train_model
from llm.tasks.training_fields import training_fields


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/pretrain.py`, `sft.py` or `lora.py` ask for.

  Every field and every row is checked before the weights are read.

  Returns:
    The contents of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  check_supervised(config)
  job = open_job(config, workdir, training_fields(config.task))
  examples, held_out = datasets.load_texts(config, job.spec)
  job = with_ends(job, ends_of(examples, job.spec.tokenizer))
  contents = {
    'examples': examples.digest,
    'held_out': held_out and held_out.digest,
  }
  source = batches.make_source(config, examples)
  check_job(job, contents)
  show_first(job, examples)
  train_model = build_train_model(config, job.spec, job.mesh)
  recipe = training.Recipe(
    loss_fn=make_training_loss(train_model, config.loss.neftune_alpha),
    batches=batches.FileBatches(config, source, _make_complete(train_model)),
    evaluate=held_out and make_evaluate(config, train_model, held_out),
    contents=contents,
    counts=examples.counts,
  )
  return training.train(job, train_model, recipe)


def _make_complete(train_model: TrainModel) -> batches.Complete:
  return lambda params, batch: shard_batch(batch, train_model.mesh)


def make_evaluate(
  config, train_model: TrainModel, held_out: Examples
) -> Callable[[Any], dict[str, float]]:
  """Returns `evaluate(trained) -> {eval_loss, eval_accuracy, …}`.

  All held-out examples count, by token: `eval_loss` in nats, `eval_accuracy`
  the share where the most probable token is the right one,
  `eval_perplexity` = exp(eval_loss).
  """

  def perplexity(scores, weight):
    del weight
    return {'eval_perplexity': math.exp(min(scores['eval_loss'], 700.0))}

  return batches.make_evaluate(
    config,
    train_model,
    make_loss(train_model),
    held_out,
    _make_complete(train_model),
    summarise=perplexity,
  )
