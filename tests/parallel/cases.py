"""One train step on several meshes, for a process with 4 simulated devices."""

import json
import re
import sys
import types

import jax
import numpy as np
import optax

from llm.data import packing, pipeline
from llm.data.examples import Example, from_list
from llm.losses.chunked import chunked_cross_entropy_loss
from llm.losses.language import cross_entropy_loss, next_token_targets
from llm.models import lora as lora_lib
from llm.models.lora_config import LoraConfig
from llm.models.transformer import Transformer, stack_layers
from llm.parallel.mesh import check_batch, make_mesh, on_mesh
from llm.parallel.sharding import (
  param_shardings,
  shard_batch,
  state_shardings,
)
from llm.train.state import init_state
from llm.train.step import make_train_step
from tests.models import tiny

ROWS, LENGTH = 16, 48
LORA = LoraConfig(rank=4, alpha=8.0, dora=True, dropout=0.2)


def keep_gradient():
  """A transformation whose state is the last gradient."""
  zeros = lambda tree: jax.tree.map(lambda x: 0 * x, tree)
  return optax.GradientTransformation(
    zeros, lambda grads, state, params: (zeros(grads), grads)
  )


def batch():
  rng = np.random.default_rng(0)
  lengths = rng.integers(3, 40, 80)
  documents = from_list(
    Example(rng.integers(1, 96, n), np.ones(n, bool)) for n in lengths
  )
  members = packing.next_fit(lengths, LENGTH)[:ROWS]
  rows = pipeline.fill_rows(documents, members, LENGTH, packing=True)
  rows['loss_mask'] *= rng.random((ROWS, LENGTH)) < 0.7
  return rows


def setup(kind='dense', chunked=False, scan=True, lora=False):
  """(state, loss function, what is frozen)."""
  config = tiny.config(
    kind,
    vocab_size=96,
    embed_dim=64,
    hidden_dim=96,
    num_layers=2 if scan else 1,
  )
  params = tiny.init(config, factor=4.0)
  if scan:
    params = stack_layers(params, config)
  model = Transformer(config, scan_layers=scan)
  frozen = None
  if lora:
    frozen = params
    params = lora_lib.init_lora(LORA, config, frozen, jax.random.key(1))
    rng = np.random.default_rng(1)  # B is 0 at first
    noise = lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32)
    params = jax.tree.map(noise, params)

  def loss(params, frozen, batch, keys):
    targets, weights = next_token_targets(
      batch['tokens'], batch['loss_mask'], batch['segment_ids']
    )
    variables = {'params': params}
    if frozen is not None:
      variables = lora_lib.variables(frozen, params, LORA, keys=keys)
    hidden, _ = model.apply(
      variables,
      batch['tokens'],
      batch['positions'],
      batch['segment_ids'],
      method='trunk',
    )
    if chunked:
      table = params['lm_head']['kernel']
      return chunked_cross_entropy_loss(
        hidden, table, targets, weights, block_tokens=128
      )
    logits = model.apply(variables, hidden, method='logits')
    return cross_entropy_loss(logits, targets, weights)

  state = init_state(params, keep_gradient(), jax.random.key(0))
  return state, loss, frozen


def run(state, loss, frozen, sizes, microbatches):
  """(loss, gradient leaves, bytes of arguments, float arrays gathered)."""
  names = ('data', 'fsdp', 'tensor')
  mesh = make_mesh(
    types.SimpleNamespace(**dict(zip(names, sizes, strict=True))),
    jax.devices()[: int(np.prod(sizes))],
  )
  assert check_batch(ROWS, ROWS // microbatches, mesh) == microbatches
  shardings = state_shardings(state, mesh)
  step = jax.jit(
    make_train_step(loss, keep_gradient(), microbatches=microbatches),
    out_shardings=(shardings, None),
  )
  state = jax.device_put(state, shardings)
  if frozen is not None:
    frozen = jax.device_put(frozen, param_shardings(frozen, mesh))
  rows, key = shard_batch(batch(), mesh), jax.random.key(1)
  # Quick to compile: what is compared does not depend on LLVM's passes.
  compiled = on_mesh(step.lower, mesh)(state, rows, key, frozen).compile(
    {'xla_backend_optimization_level': 0}
  )
  state, metrics = compiled(state, rows, key, frozen)
  memory = compiled.memory_analysis().argument_size_in_bytes
  shapes = re.findall(r'= f32\[([\d,]+)\]\S* all-gather', compiled.as_text())
  gathered = [tuple(map(int, shape.split(','))) for shape in shapes]
  gradient = [np.asarray(x) for x in jax.tree.leaves(state.opt_state)]
  return float(metrics['loss']), gradient, memory, gathered


def compare(cases, kind='dense', scan=True, lora=False):
  """Prints, for each (sizes, microbatches, chunked), how it differs."""
  plain = setup(kind, scan=scan, lora=lora)
  loss, gradient, memory, _ = run(*plain, (1, 1, 1), 1)
  out = []
  for sizes, microbatches, chunked in cases:
    mine = setup(kind, True, scan, lora) if chunked else plain
    other, grads, share, gathered = run(*mine, sizes, microbatches)
    errors = [
      float(np.linalg.norm(a - b) / np.linalg.norm(b))
      for a, b in zip(grads, gradient, strict=True)
    ]
    out.append(
      {
        'loss': abs(other / loss - 1),
        'gradient': max(errors),
        'memory': share / memory,
        'gathered': gathered,
      }
    )
  json.dump(out, sys.stdout)
