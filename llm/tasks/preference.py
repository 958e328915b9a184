"""The run `preference`: a model that prefers one answer to another."""

from collections.abc import Callable
import hashlib
import json
import os
from typing import Any

import jax
import numpy as np

from llm.align import preference_loss
from llm.align.preference_loss import BASE, FROZEN, KTO, PRECOMPUTED
from llm.align.reference import check_reference, with_reference
from llm.data import pipeline
from llm.data.pairs import Pairs, load_pairs
from llm.host import terminal
from llm.parallel.distributed import to_host
from llm.parallel.mesh import check_batch, make_mesh, on_mesh
from llm.parallel.sharding import shard_batch
from llm.runs import checks as training_checks
from llm.runs import datasets, outputs, training
from llm.runs.train_model import TrainModel, build_train_model, read_spec
from llm.tasks import kto
from llm.tasks.training_fields import training_fields
from llm.train.step import make_eval_step


def run(config, workdir: str | None) -> dict[str, float]:
  """Trains as `configs/preference.py` asks for.

  Returns:
    The row of `result.json`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  if config.loss.name == KTO:
    return kto.run(_resolved(config), workdir)
  preference_loss.check_loss(config.loss)
  config = _resolved(config)
  workdir = training_checks.check_fields(
    config, workdir, training_fields(config.task)
  )
  check_reference(config)
  mesh = make_mesh(config.mesh)
  train, data = config.train, config.data
  microbatches = check_batch(train.batch_size, train.microbatch_size, mesh)
  spec = read_spec(config)
  examples, held_out = datasets.load_ratings(config, spec, load_pairs, 'pairs')
  identity = {
    'examples': examples.examples.digest,
    'held_out': held_out and held_out.examples.digest,
  }
  source = pipeline.make_source(
    examples.examples,
    batch_size=train.batch_size,
    max_length=data.max_length,
    packing=data.packing,
    shuffle=data.shuffle,
    seed=data.seed,
    group=2,
  )
  training.check_run(config, workdir, spec, identity)
  train_model = build_train_model(config, spec, mesh)
  train_model = with_reference(config, train_model)
  add = _reference_columns(config, train_model, examples)
  recipe = training.Recipe(
    loss_fn=preference_loss.make_preference_loss(train_model, config.loss),
    draw=_make_draw(source, add, mesh),
    data_state=source.get_state,
    seek=source.set_state,
    evaluate=held_out and _make_evaluate(config, train_model, held_out),
    identity=identity,
  )
  return training.train(config, workdir, train_model, recipe, microbatches)


def _resolved(config):
  """The config with the kind of reference that None stands for."""
  loss = config.loss
  if loss.reference is not None or not preference_loss.needs_reference(
    loss.name
  ):
    return config
  config = config.copy_and_resolve_references()
  config.loss.reference = PRECOMPUTED
  if config.loss.name == KTO:  # it reads the reference on ever new rows
    fresh = config.lora.rank and config.lora.path is None
    config.loss.reference = BASE if fresh else FROZEN
  return config


def _make_draw(source, add, mesh):
  def draw(state):
    del state
    batch, stats = next(source)
    return shard_batch(add(batch), mesh), stats

  return draw


def _reference_columns(
  config, train_model: TrainModel, pairs: Pairs
) -> Callable:
  """Returns `add(batch)`: the columns of a batch that the loss reads besides.

  `tokens_per_pair` float32[B], for means over tokens of the whole batch, and,
  where the reference is precomputed, `ref_logprobs` float32[B, S].
  """
  loss = config.loss
  table = None
  if loss.reference == PRECOMPUTED and preference_loss.needs_reference(
    loss.name
  ):
    table = _reference_table(config, train_model, pairs)

  def add(batch):
    batch = batch | {
      'tokens_per_pair': preference_loss.tokens_per_pair(batch, loss)
    }
    if table is not None:
      # An empty segment has index -1: it reads the 0 that ends the table.
      batch['ref_logprobs'] = table[batch['examples']]
    return batch

  return add


def _reference_table(
  config, train_model: TrainModel, pairs: Pairs
) -> np.ndarray:
  """float32[2N + 1]: log-probability of each answer before training, then 0.

  Kept on disk under a name that follows from the pairs, the model and what
  else decides the numbers, so that it is computed once.
  """
  folder = os.path.join(outputs.cache_dir(), 'reference')
  path = os.path.join(
    folder, f'{_reference_key(config, train_model, pairs)}.npy'
  )
  table = np.zeros(len(pairs.examples) + 1, np.float32)
  if os.path.exists(path):
    try:
      kept = np.load(path)
    except (OSError, ValueError, EOFError):  # half of a file: written again
      kept = None
    if kept is not None and kept.shape == table.shape:
      return kept
  step = on_mesh(
    jax.jit(
      lambda params, frozen, batch: (
        preference_loss.score_completions(
          train_model.model,
          train_model.variables(params, frozen),
          batch,
          config.loss.ld_alpha,
        ).logprobs
      )
    ),
    train_model.mesh,
  )
  with terminal.progress_bar('answers') as bar:
    task = bar.add_task('reference', total=len(pairs.examples))
    for batch in _eval_batches(config, pairs):
      device = shard_batch(batch, train_model.mesh)
      logprobs = to_host(step(train_model.params, train_model.frozen, device))
      there = batch['examples'] >= 0
      table[batch['examples'][there]] = logprobs[there]
      bar.advance(task, int(there.sum()))
  os.makedirs(folder, exist_ok=True)
  partial = f'{path}.{os.getpid()}.npy'
  np.save(partial, table)
  os.replace(partial, path)
  return table


def _reference_key(config, train_model: TrainModel, pairs: Pairs) -> str:
  spec = train_model.spec
  parts = {
    'pairs': pairs.examples.digest,
    'model': repr(spec.config),
    'weights': spec.weights or f'fresh with seed {config.seed}',
    'dtype': config.dtype,
    'packing': config.data.packing,
    'max_length': config.data.max_length,
    'ld_alpha': config.loss.ld_alpha,
    'version': 1,
  }
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _make_evaluate(config, train_model: TrainModel, held_out: Pairs):
  """Returns `evaluate(trained) -> {eval_loss, eval_reward_accuracy, …}`."""
  loss_fn = preference_loss.make_preference_loss(train_model, config.loss)
  eval_step = on_mesh(jax.jit(make_eval_step(loss_fn)), train_model.mesh)
  add = _reference_columns(config, train_model, held_out)
  key = jax.random.key(0)  # nothing is drawn

  def evaluate(params: Any) -> dict[str, float]:
    totals = {}
    for batch in _eval_batches(config, held_out):
      batch = shard_batch(add(batch), train_model.mesh)
      sums = eval_step(params, batch, key, train_model.frozen)
      totals = {k: totals.get(k, 0.0) + v for k, v in sums.items()}
    weight = float(totals.pop('weight'))
    return {f'eval_{k}': float(v) / weight for k, v in totals.items()}

  return evaluate


def _eval_batches(config, pairs: Pairs):
  return pipeline.eval_batches(
    pairs.examples,
    batch_size=config.train.batch_size,
    max_length=config.data.max_length,
    packing=config.data.packing,
    group=2,
  )
