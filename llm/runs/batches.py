"""Batches of the rows of a file: those to train on and those held out."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from llm.data import curriculum, pipeline
from llm.data.examples import Examples
from llm.parallel.mesh import on_mesh
from llm.runs.train_model import TrainModel
from llm.train.evaluate import mean_metrics
from llm.train.state import TrainState
from llm.train.step import LossFn, make_eval_step

# (trained tree, batch of `pipeline`) -> the batch on the devices, with what
# else its loss reads.
Complete = Callable[[Any, dict[str, np.ndarray]], Any]


class Batches(Protocol):
  """Where a run takes its batches from."""

  def next_batch(self, state: TrainState) -> tuple[Any, Mapping[str, float]]:
    """The next batch on the devices, and numbers about it for the metrics."""

  def get_state(self) -> dict[str, Any]:
    """JSON-able position in the data, after the last `next_batch`."""

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to the position of a `get_state`."""


class FileBatches:
  """`Batches` of the rows of a file.

  Where `data.curriculum` is set, the rows of a step are cut to its length.
  """

  def __init__(self, config, source: pipeline.Source, complete: Complete):
    self._config, self._source, self._complete = config, source, complete

  def next_batch(self, state: TrainState) -> tuple[Any, dict[str, float]]:
    """See `Batches`."""
    batch, stats = next(self._source)
    data = self._config.data
    if data.curriculum:
      steps = self._config.train.steps
      length = curriculum.length_at(
        int(state.step), steps, data.curriculum, data.max_length
      )
      batch = curriculum.shorten(batch, length)
      stats = stats | pipeline.fill_stats(batch)
    return self._complete(state.params, batch), stats

  def get_state(self) -> dict[str, Any]:
    """See `Batches`."""
    return self._source.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    """See `Batches`."""
    self._source.set_state(state)


def make_source(config, examples: Examples, **rows: Any) -> pipeline.Source:
  """`pipeline.make_source` with the fields of `data`; `rows`: `group`, `named`.

  Raises:
    UserError: a field is invalid.
  """
  data = config.data
  return pipeline.make_source(
    examples,
    batch_size=config.train.batch_size,
    max_length=data.max_length,
    packing=data.packing,
    shuffle=data.shuffle,
    seed=data.seed,
    **rows,
  )


def eval_batches(
  config, examples: Examples, **rows: Any
) -> Iterator[dict[str, np.ndarray]]:
  """`pipeline.eval_batches` with the fields of `data`."""
  return pipeline.eval_batches(
    examples,
    batch_size=config.train.batch_size,
    max_length=config.data.max_length,
    packing=config.data.packing,
    **rows,
  )


def make_evaluate(
  config,
  train_model: TrainModel,
  loss_fn: LossFn,
  examples: Examples,
  complete: Complete,
  *,
  summarise: Callable[[dict, float], dict] = lambda scores, weight: {},
  **rows: Any,
) -> Callable[[Any], dict[str, float]]:
  """Returns `evaluate(trained) -> {'eval_loss': …}`, means over all examples.

  Args:
    config: of the run.
    train_model: the model.
    loss_fn: as it is evaluated: without random numbers.
    examples: those held out.
    complete: see `Complete`.
    summarise: (means, weight of them all) -> further scores.
    **rows: see `make_source`.
  """
  eval_step = on_mesh(jax.jit(make_eval_step(loss_fn)), train_model.mesh)

  def evaluate(params):
    batches = (
      complete(params, batch)
      for batch in eval_batches(config, examples, **rows)
    )
    means, weight = mean_metrics(eval_step, params, batches, train_model.frozen)
    scores = {f'eval_{name}': value for name, value in means.items()}
    return scores | summarise(scores, weight)

  return evaluate
