"""The project's programs, lowered for the devices of a target.

Arguments are shapes with shardings: nothing is allocated and nothing runs.
"""

import dataclasses
import functools
import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
import numpy as np

from llm.align import preference_loss, supervised_loss
from llm.align.checks import check_pair_loss
from llm.decode import prefill as prefilling
from llm.decode.rows import stack_rows
from llm.decode.sampling_params import SamplingParams
from llm.decode.score import score_tokens
from llm.decode.step import CHUNK_STEPS, decode_chunk, start
from llm.models.cache import init_cache
from llm.models.config import ModelConfig, RopeConfig
from llm.models.transformer import Transformer, init_params
from llm.parallel.mesh import make_mesh
from llm.parallel.sharding import (
  batch_sharding,
  param_shardings,
  state_shardings,
)
from llm.rl import loss as rl_loss
from llm.rl.algorithms import read_algorithm
from llm.runs import training
from llm.runs.job import Job
from llm.runs.train_model import ModelSpec, TrainModel
from llm.train.optim import make_optimizer
from llm.train.state import init_state

ROOT = pathlib.Path(__file__).parents[2]
_LLAMA3 = RopeConfig(
  type='llama3', theta=500_000.0, factor=32.0, original_max_length=8192
)


@dataclasses.dataclass(frozen=True)
class Shape:
  """A model and how much it is given.

  Attributes:
    config: the model.
    rows: B of decoding and of a training step.
    slots: of each row's cache.
    prompt: tokens of a prompt, and of a training row.
  """

  config: ModelConfig
  rows: int
  slots: int
  prompt: int


SHAPES = {
  # One layer, as wide as those of a real model: smaller ones would fit into the
  # memory on a TPU's core, and copies there are none.
  'small': Shape(
    ModelConfig(
      vocab_size=16_384,
      embed_dim=2048,
      hidden_dim=4096,
      num_layers=1,
      num_heads=32,
      num_kv_heads=8,
      head_dim=64,
      max_length=2048,
      tie_embeddings=True,
    ),
    rows=8,
    slots=1024,
    prompt=256,
  ),
  # The shape of Llama 3.2 1B.
  '1b': Shape(
    ModelConfig(
      vocab_size=128_256,
      embed_dim=2048,
      hidden_dim=8192,
      num_layers=16,
      num_heads=32,
      num_kv_heads=8,
      head_dim=64,
      max_length=131_072,
      rope=_LLAMA3,
      tie_embeddings=True,
    ),
    rows=8,
    slots=2048,
    prompt=1024,
  ),
}
DTYPE = jnp.bfloat16


def _placed(tree, sharding):
  """The shapes of a tree, all of its leaves at one place."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )


def _params(shape, dtype, scan=False):
  make = lambda: init_params(shape.config, jax.random.key(0), dtype, scan)
  return jax.eval_shape(make)


class Decoding:
  """Programs of one device, with weights and cache in bfloat16."""

  def __init__(self, shape, devices):
    self.shape = shape
    self.model = Transformer(shape.config, dtype=DTYPE)
    self._place = SingleDeviceSharding(devices[0])
    self.params = self._on(_params(shape, DTYPE))

  def _on(self, tree):
    return _placed(tree, self._place)

  def _cache(self):
    shape = self.shape
    make = functools.partial(
      init_cache, shape.config, shape.rows, shape.slots, DTYPE
    )
    return self._on(jax.eval_shape(make))

  def _array(self, shape, dtype):
    return self._on(jax.ShapeDtypeStruct(shape, dtype))

  def _state(self):
    shape = self.shape
    rows = stack_rows(
      [SamplingParams()] * shape.rows, vocab_size=shape.config.vocab_size
    )
    whole = functools.partial(
      start, capacity=shape.slots, order=('temperature',), top_n=0
    )
    state, _ = jax.eval_shape(
      whole,
      self._cache(),
      self._array((shape.rows, shape.config.vocab_size), jnp.float32),
      self._array((shape.rows, shape.prompt), jnp.int32),
      self._array((shape.rows,), jnp.int32),
      rows,
      self._array((shape.rows,), jnp.int32),
    )
    return self._on(state)

  def prefill(self):
    shape, cache = self.shape, self._cache()
    hidden = self._array((shape.rows, 1, shape.config.embed_dim), DTYPE)
    lowered = prefilling._prefill_chunk.lower(
      self.params,
      self._array((shape.rows, shape.prompt), jnp.int32),
      self._array((shape.rows,), jnp.int32),
      self._array((), jnp.int32),
      cache,
      hidden,
      model=self.model,
      attend_length=0,
    )
    return lowered, (cache, hidden)

  def decode(self):
    state = self._state()
    lowered = decode_chunk.lower(
      self.params,
      state,
      model=self.model,
      steps=CHUNK_STEPS,
      attend_length=self.shape.slots,
      order=('temperature',),
    )
    return lowered, state

  def score(self):
    shape = self.shape
    lowered = score_tokens.lower(
      self.params,
      self._array((shape.rows, shape.prompt), jnp.int32),
      self._array((shape.rows,), jnp.int32),
      model=self.model,
    )
    return lowered, ()

  def needed(self):
    """Bytes that a decode step must read: weights, slots in use, logits."""
    logits = self.shape.rows * self.shape.config.vocab_size * 4
    return logits + bytes_on_a_device((self.params, self._cache().layers))


def _config(name):
  path = ROOT / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


class Training:
  """Steps on all devices of a target: float32 parameters, bfloat16 compute."""

  def __init__(self, shape, devices):
    self.shape, self.devices = shape, devices

  def _lower(self, name, make_loss, batch):
    config = _config(name)
    config.dtype, config.mesh.data, config.mesh.fsdp = 'bfloat16', 1, -1
    mesh = make_mesh(config.mesh, self.devices)
    scan = self.shape.config.num_layers > 1
    shapes = _params(self.shape, jnp.float32, scan)
    params = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      param_shardings(shapes, mesh),
    )
    model = Transformer(
      self.shape.config, dtype=DTYPE, remat='full', scan_layers=scan
    )
    spec = ModelSpec(None, None, self.shape.config, None, None)
    train_model = TrainModel(spec, model, mesh, params, {})
    tx = make_optimizer(config.optim, config.train.steps, shapes)
    make = lambda p: init_state(p, tx, jax.random.key(0))
    state = jax.eval_shape(make, params)
    state = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      state,
      state_shardings(state, mesh),
    )
    job = Job(config, '', mesh, 1, tx, spec)
    recipe = training.Recipe(make_loss(train_model, config), None, None, {}, {})
    step = training.compile_step(job, train_model, recipe, state)
    batch = {
      k: jax.ShapeDtypeStruct(s, d, sharding=batch_sharding(mesh))
      for k, (s, d) in batch.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = _placed(key, NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
      return step.__wrapped__.lower(state, batch, key, {}), state

  def _rows(self, length):
    whole = (self.shape.rows, length)
    return {
      'tokens': (whole, np.int32),
      'positions': (whole, np.int32),
      'segment_ids': (whole, np.int32),
      'loss_mask': (whole, np.float32),
    }

  def sft(self):
    make = lambda model, config: supervised_loss.make_training_loss(model, 0.0)
    return self._lower('sft', make, self._rows(self.shape.prompt))

  def dpo(self):
    rows = self.shape.rows
    make = lambda model, config: preference_loss.make_preference_loss(
      model, config.loss, check_pair_loss(config.loss)
    )
    batch = self._rows(self.shape.prompt) | {
      'examples': ((rows, 2), np.int32),
      'ref_logprobs': ((rows, 2), np.float32),
      'tokens_per_pair': ((rows,), np.float32),
    }
    return self._lower('preference', make, batch)

  def grpo(self):
    rows = self.shape.rows
    length = self.shape.prompt // 2
    whole = (rows, length)

    def make(model, config):
      config.rollout.group_size = 4
      share = rl_loss.rows_of_a_prompt(config, model, rows)
      algorithm = read_algorithm(config)
      return rl_loss.make_rl_loss(model, algorithm, config.rollout, share)

    batch = {
      'tokens': (whole, np.int32),
      'targets': (whole, np.int32),
      'positions': (whole, np.int32),
      'mask': (whole, bool),
      'old_logprobs': (whole, np.float32),
      'ref_logprobs': (whole, np.float32),
      'prompt_tokens': (whole, np.int32),
      'prompt_lengths': ((rows,), np.int32),
      'advantages': ((rows,), np.float32),
      'row_weights': ((rows,), np.float32),
      'group_lengths': ((rows,), np.float32),
    }
    return self._lower('rl', make, batch)


PROGRAMS = {
  'prefill': (Decoding, 'prefill'),
  'decode': (Decoding, 'decode'),
  'score': (Decoding, 'score'),
  'sft': (Training, 'sft'),
  'dpo': (Training, 'dpo'),
  'grpo': (Training, 'grpo'),
}


def lower(program, shape, devices):
  """(the lowered program of `PROGRAMS`, its donated arguments)."""
  kind, name = PROGRAMS[program]
  return getattr(kind(SHAPES[shape], devices), name)()


def bytes_on_a_device(tree):
  """Of arrays or shapes with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )
