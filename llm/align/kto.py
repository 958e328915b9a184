"""KTO: the loss of completions that are rated one by one, and its batches."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.align.reference import reference_logprobs
from llm.align.scores import score_completions
from llm.data import pipeline
from llm.data.examples import from_list
from llm.data.rated import Rated, mismatched
from llm.losses.kto import kto_kl, kto_loss
from llm.parallel.mesh import on_mesh
from llm.parallel.sharding import batch_sharding, shard_batch
from llm.runs.batches import Complete
from llm.runs.train_model import TrainModel
from llm.train.step import LossFn


def make_kto_loss(
  train_model: TrainModel, loss: Any, options: dict[str, float]
) -> LossFn:
  """The loss of batches that `make_columns` has completed.

  Args:
    train_model: the model.
    loss: `config.loss`.
    options: of `checks.check_rated_loss`.
  """

  def loss_fn(params, frozen, batch, keys):
    del keys  # no random numbers
    variables = train_model.variables(params, frozen)
    logprobs = score_completions(train_model.model, variables, batch).logprobs
    reference = reference_logprobs(train_model, frozen, batch, loss)
    kl = jnp.broadcast_to(batch['kl'][:, None], logprobs.shape)
    return kto_loss(
      logprobs,
      reference,
      batch['desirable'],
      kl,
      batch['examples'] >= 0,
      **options,
    )

  return loss_fn


def make_columns(config, train_model: TrainModel, rated: Rated) -> Complete:
  """Returns `add(params, batch)`, which adds what the loss reads to a batch.

  `desirable` bool[B, S], the ratings, and `kl` float32[B], KTO's z of the whole
  batch under `params`, the same number in each row. A microbatch is not
  enough to compute it; as a column it gives the same gradient for any number of
  microbatches. It costs a forward pass of policy and reference on the prompts
  of the batch with each other's completions, in rows of their own.
  """
  mesh, rows = train_model.mesh, config.train.batch_size

  def ratio(params, frozen, batch):
    variables = train_model.variables(params, frozen)
    scores = score_completions(train_model.model, variables, batch)
    reference = reference_logprobs(train_model, frozen, batch, config.loss)
    return (scores.logprobs - reference)[:, 0], scores.tokens[:, 0] > 0

  def spread(parts):
    ratios, there = (jnp.concatenate(x) for x in zip(*parts, strict=True))
    return jnp.full(rows, kto_kl(ratios, jnp.zeros_like(ratios), there))

  ratio = on_mesh(jax.jit(ratio), mesh)
  spread = on_mesh(jax.jit(spread, out_shardings=batch_sharding(mesh)), mesh)

  def add(params, batch):
    ids = batch['examples']
    there = ids[ids >= 0]
    others = []
    if len(there) > 1:  # else z = 0
      others = mismatched(rated.examples, there, config.data.max_length)
    parts = [
      ratio(params, train_model.frozen, shard_batch(part, mesh))
      for part in _in_rows(others, rows, config.data.max_length)
    ]
    batch = batch | {'desirable': (ids >= 0) & rated.desirable[ids]}
    if not parts:
      return shard_batch(batch | {'kl': np.zeros(rows, np.float32)}, mesh)
    return shard_batch(batch, mesh) | {'kl': spread(parts)}

  return add


def _in_rows(
  others, rows: int, max_length: int
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of one example a row, `rows` of them, the last one filled up."""
  for first in range(0, len(others), rows):
    part = from_list(others[first : first + rows])
    members = [[i] for i in range(len(part))]
    members += [[]] * (rows - len(part))
    batch = pipeline.fill_rows(part, members, max_length, packing=False)
    ids = np.array([row[0] if row else -1 for row in members], np.int32)
    yield batch | {'examples': ids[:, None]}
