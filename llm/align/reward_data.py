"""The rows of a reward model's run: pairs, or labelled steps."""

from collections.abc import Callable
import functools
from typing import Any

import numpy as np

from llm.align.checks import PROCESS
from llm.data.pairs import load_pairs
from llm.data.steps import load_steps
from llm.runs import datasets
from llm.runs.train_model import ModelSpec


def load(config, spec: ModelSpec) -> tuple[Any, Any]:
  """The pairs, or the steps, to train on and those held out, or None."""
  load = functools.partial(datasets.load_ratings, config, spec)
  if config.loss.name != PROCESS:
    return load(load_pairs, 'pairs')
  separator = config.data.step_separator
  return load(
    load_steps,
    'completions',
    separator='\n' if separator is None else separator,
  )


def row_options(config) -> dict[str, Any]:
  """How examples become rows: keywords of `batches.make_source`."""
  return {'group': 1 if config.loss.name == PROCESS else 2, 'named': True}


def make_columns(config, completions: Any) -> Callable:
  """Returns `add(batch)`, which adds the columns that the loss reads.

  `margins` float32[B, S / 2], or, of steps, `labels` float32[B, T].

  Args:
    config: of the run.
    completions: of `load`.
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
