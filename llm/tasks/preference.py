"""The run `preference`: a model that prefers one completion to another.

It learns from pairs, or, with `loss.name='kto'`, from completions that are
rated one by one.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from llm.align import checks
from llm.align.kto import make_columns, make_kto_loss
from llm.align.pair_columns import make_pair_columns
from llm.align.preference_loss import make_preference_loss
from llm.align.reference import with_reference
from llm.data.ends import ends_of
from llm.data.pairs import load_pairs
from llm.data.rated import load_rated
from llm.parallel.sharding import shard_batch
from llm.runs import batches, datasets, training
from llm.runs.first_rows import show_first
from llm.runs.job import check_job, open_job, with_ends
from llm.runs.train_model import build_train_model
from llm.tasks.training_fields import training_fields


@dataclasses.dataclass(frozen=True)
class _Kind:
  """What differs between pairs and rated completions.

  Attributes:
    check_loss: `config.loss` -> the options of the loss.
    load: see `datasets.load_ratings`.
    noun: what it loads, for messages.
    rows: how examples become rows, keywords of `batches.make_source`.
    make_loss: (model, `config.loss`, options) -> the loss.
    make_complete: (config, model, what `load` gives) -> `batches.Complete`.
  """

  check_loss: Callable[..., dict[str, Any]]
  load: Callable
  noun: str
  rows: dict[str, Any]
  make_loss: Callable
  make_complete: Callable[..., batches.Complete]


def _complete_pairs(config, train_model, pairs) -> batches.Complete:
  add = make_pair_columns(config, train_model, pairs)
  return lambda params, batch: shard_batch(add(batch), train_model.mesh)


_PAIRS = _Kind(
  checks.check_pair_loss,
  load_pairs,
  'pairs',
  {'group': 2},
  make_preference_loss,
  _complete_pairs,
)
_RATED = _Kind(
  checks.check_rated_loss,
  load_rated,
  'completions',
  {'named': True},
  make_kto_loss,
  make_columns,
)


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/preference.py` asks for.

  Returns:
    The contents of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  kind = _RATED if config.loss.name == checks.KTO else _PAIRS
  options = kind.check_loss(config.loss)
  config = checks.resolve_reference(config)
  checks.check_reference(config)
  job = open_job(config, workdir, training_fields(config.task))
  data, held_out = datasets.load_ratings(config, job.spec, kind.load, kind.noun)
  job = with_ends(job, ends_of(data.examples, job.spec.tokenizer))
  contents = {
    'examples': data.examples.digest,
    'held_out': held_out and held_out.examples.digest,
  }
  source = batches.make_source(config, data.examples, **kind.rows)
  check_job(job, contents)
  show_first(job, data.examples, kind.rows.get('group', 1))
  train_model = build_train_model(config, job.spec, job.mesh)
  train_model = with_reference(config, train_model)
  loss_fn = kind.make_loss(train_model, config.loss, options)
  complete = kind.make_complete(config, train_model, data)
  recipe = training.Recipe(
    loss_fn=loss_fn,
    batches=batches.FileBatches(config, source, complete),
    evaluate=held_out
    and batches.make_evaluate(
      config,
      train_model,
      loss_fn,
      held_out.examples,
      kind.make_complete(config, train_model, held_out),
      **kind.rows,
    ),
    contents=contents,
    counts=data.counts,
  )
  return training.train(job, train_model, recipe)
