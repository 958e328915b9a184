"""KTO (`loss.name='kto'` of the run `preference`): answers rated one by one."""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.align.preference_loss import (
  KTO,
  OPTIONS,
  PRECOMPUTED,
  reference_logprobs,
  score_completions,
)
from llm.align.reference import check_reference, with_reference
from llm.data import pipeline
from llm.data.examples import from_list
from llm.data.rated import Rated, load_rated, mismatched
from llm.errors import UserError
from llm.losses.kto import kto_kl, kto_loss
from llm.parallel.mesh import check_batch, make_mesh, on_mesh
from llm.parallel.sharding import batch_sharding, shard_batch
from llm.runs import checks as training_checks
from llm.runs import datasets, training
from llm.runs.train_model import TrainModel, build_train_model, read_spec
from llm.tasks.training_fields import training_fields
from llm.train.optim import make_optimizer
from llm.train.step import LossFn, make_eval_step

_OPTIONS = ('beta', 'desirable_weight', 'undesirable_weight')


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/preference.py` with `loss.name='kto'` asks for.

  Returns:
    The row of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  workdir = training_checks.check_fields(
    config, workdir, training_fields(config.task)
  )
  loss_options(config)
  mesh = make_mesh(config.mesh)
  train, data = config.train, config.data
  microbatches = check_batch(train.batch_size, train.microbatch_size, mesh)
  make_optimizer(config.optim, train.steps)
  spec = read_spec(config)
  rated, held_out = datasets.load_ratings(config, spec, load_rated, 'answers')
  identity = {
    'examples': rated.examples.digest,
    'held_out': held_out and held_out.examples.digest,
  }
  source = pipeline.make_source(
    rated.examples,
    batch_size=train.batch_size,
    max_length=data.max_length,
    packing=data.packing,
    shuffle=data.shuffle,
    seed=data.seed,
    named=True,
  )
  training.check_run(config, workdir, spec, identity)
  train_model = with_reference(config, build_train_model(config, spec, mesh))
  add = make_columns(config, train_model, rated)

  def draw(state):
    batch, stats = next(source)
    return add(state.params, batch), stats

  recipe = training.Recipe(
    loss_fn=make_kto_loss(train_model, config),
    draw=draw,
    data_state=source.get_state,
    seek=source.set_state,
    evaluate=held_out and _make_evaluate(config, train_model, held_out),
    identity=identity,
  )
  return training.train(config, workdir, train_model, recipe, microbatches)


def loss_options(config) -> dict[str, float]:
  """The keywords of `kto_loss` that the config sets.

  Raises:
    UserError: a field of `loss` that KTO does not read, or a wrong value.
  """
  loss = config.loss
  names = [*OPTIONS, 'ld_alpha'] + ['nll_prompt'] * bool(loss.nll_prompt)
  given = training_checks.given_options(loss, names, _OPTIONS)
  for name, value in given.items():
    if not 0.0 <= value < math.inf or (name == 'beta' and not value):
      least = 'a number above 0' if name == 'beta' else '0 or more'
      raise UserError(f'loss.{name}={value!r}: use {least}')
  check_reference(config)
  if loss.reference == PRECOMPUTED:
    raise UserError(
      f"loss.reference='{PRECOMPUTED}': {KTO} compares with the reference on "
      "rows that are new in each batch; leave it unset, or use 'frozen' (or, "
      "under LoRA, 'base')"
    )
  return given


def make_kto_loss(train_model: TrainModel, config) -> LossFn:
  """The loss of batches that `make_columns` has completed."""
  options = loss_options(config)

  def loss_fn(params, frozen, batch, keys):
    del keys  # nothing is drawn
    variables = train_model.variables(params, frozen)
    logprobs = score_completions(train_model.model, variables, batch).logprobs
    reference = reference_logprobs(train_model, frozen, batch, config.loss)
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


def make_columns(config, train_model: TrainModel, rated: Rated) -> Callable:
  """Returns `add(params, batch)`: what the loss reads besides, on the devices.

  `desirable` bool[B, S], the ratings, and `kl` float32[B], KTO's z of the whole
  batch under `params`, the same number in each row: a part of the batch could
  not know it, so that any number of microbatches gives the same gradient. It
  costs a forward pass of policy and reference on the prompts of the batch with
  each other's answers, in rows of their own.
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


def _in_rows(others, rows: int, max_length: int):
  """Batches of one example a row, `rows` of them, the last one filled up."""
  for first in range(0, len(others), rows):
    part = from_list(others[first : first + rows])
    members = [[i] for i in range(len(part))]
    members += [[]] * (rows - len(part))
    batch = pipeline.fill_rows(part, members, max_length, packing=False)
    ids = np.array([row[0] if row else -1 for row in members], np.int32)
    yield batch | {'examples': ids[:, None]}


def _make_evaluate(config, train_model: TrainModel, held_out: Rated):
  """Returns `evaluate(trained) -> {eval_loss, eval_reward_accuracy, …}`."""
  loss_fn = make_kto_loss(train_model, config)
  eval_step = on_mesh(jax.jit(make_eval_step(loss_fn)), train_model.mesh)
  add = make_columns(config, train_model, held_out)
  key = jax.random.key(0)  # nothing is drawn

  def evaluate(params: Any) -> dict[str, float]:
    totals = {}
    for batch in pipeline.eval_batches(
      held_out.examples,
      batch_size=config.train.batch_size,
      max_length=config.data.max_length,
      packing=config.data.packing,
      named=True,
    ):
      sums = eval_step(params, add(params, batch), key, train_model.frozen)
      totals = {k: totals.get(k, 0.0) + v for k, v in sums.items()}
    weight = float(totals.pop('weight'))
    return {f'eval_{k}': float(v) / weight for k, v in totals.items()}

  return evaluate
