"""The columns that preference losses read besides the tokens."""

from collections.abc import Callable
import hashlib
import json
import os

import numpy as np

from llm.align.checks import PRECOMPUTED, needs_reference
from llm.align.preference_loss import tokens_per_pair
from llm.align.scores import make_score
from llm.data.pairs import Pairs
from llm.host import terminal
from llm.parallel.distributed import to_host
from llm.parallel.sharding import shard_batch
from llm.runs import outputs
from llm.runs.batches import eval_batches
from llm.runs.train_model import TrainModel


def make_pair_columns(
  config, train_model: TrainModel, pairs: Pairs
) -> Callable:
  """Returns `add(batch)`, which adds the columns that the loss reads.

  `tokens_per_pair` float32[B], for means over tokens of the whole batch, and,
  where the reference is precomputed, `ref_logprobs` float32[B, S].
  """
  loss = config.loss
  table = None
  if loss.reference == PRECOMPUTED and needs_reference(loss.name):
    table = _reference_table(config, train_model, pairs)

  def add(batch):
    batch = batch | {'tokens_per_pair': tokens_per_pair(batch, loss)}
    if table is not None:
      # An empty segment has index -1: it reads the 0 that ends the table.
      batch['ref_logprobs'] = table[batch['examples']]
    return batch

  return add


def _reference_table(
  config, train_model: TrainModel, pairs: Pairs
) -> np.ndarray:
  """float32[2N + 1]: each completion's log-probability before training, then 0.

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
  score = make_score(train_model, config.loss.ld_alpha)
  with terminal.progress_bar('completions') as bar:
    task = bar.add_task('reference', total=len(pairs.examples))
    for batch in eval_batches(config, pairs.examples, group=2):
      device = shard_batch(batch, train_model.mesh)
      logprobs = to_host(score(train_model.params, train_model.frozen, device))
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
