"""What a training run trains: a model from a checkpoint or a fresh one."""

from collections.abc import Callable
import dataclasses
import hashlib
import os
from typing import Any

import jax
import jax.numpy as jnp

from llm.checkpoints.opened import Source
from llm.checkpoints.source import read_adapters, to_dtype
from llm.errors import UserError
from llm.host import terminal
from llm.models import lora as lora_lib
from llm.models.config import ModelConfig, RopeConfig
from llm.models.lora_config import LoraConfig
from llm.models.resize import resize_tables
from llm.models.transformer import (
  Transformer,
  init_params,
  stack_layers,
  unstack_layers,
)
from llm.parallel.sharding import param_shardings
from llm.runs.base import fresh_shape, lora_config, open_base
from llm.text.tokenizer import Tokenizer, load_tokenizer

# A fingerprint reads all of a weight file up to so many bytes, and of a larger
# one blocks that are spread evenly over it.
_WHOLE, _BLOCKS, _BLOCK = 1 << 28, 1024, 1 << 16


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """The model before its weights: what the data can be checked against.

  `source` is the opened checkpoint and `weights` a fingerprint of its files
  (and of those at `lora.path`); both are None for a fresh model. `adapters` are
  those that training starts from, None for fresh ones.
  """

  source: Source | None
  weights: str | None
  config: ModelConfig
  tokenizer: Tokenizer
  lora: LoraConfig | None
  adapters: Any = None


@dataclasses.dataclass(frozen=True)
class TrainModel:
  """A model in training.

  Attributes:
    spec: its shape and tokenizer.
    model: the Transformer that training runs.
    mesh: the devices.
    params: what is trained: all parameters in float32, or the adapters.
    frozen: {'base': parameters} under LoRA, else {}.
  """

  spec: ModelSpec
  model: Transformer
  mesh: jax.sharding.Mesh
  params: Any
  frozen: dict[str, Any]

  def variables(self, params, frozen, keys=None) -> dict[str, Any]:
    """What the model runs on; `keys` [B] turn dropout on."""
    lora = self.spec.lora
    if lora is None:
      return {'params': params}
    return lora_lib.variables(frozen['base'], params, lora, keys=keys)

  def folded(self, params) -> Any:
    """Plain parameters, laid out as the model runs them."""
    lora = self.spec.lora
    if lora is None:
      return params
    merge = jax.jit(lora_lib.merge, static_argnums=2)
    return merge(self.frozen['base'], params, lora)

  def merged(self, params) -> Any:
    """Plain parameters with unrolled layers, for decoding."""
    params = self.folded(params)
    if self.model.scan_layers:
      params = unstack_layers(params, self.spec.config)
    return params


def read_spec(config) -> ModelSpec:
  """Reads shape and tokenizer; the weights are not touched.

  Raises:
    UserError: a path, a shape or a field of `lora` is wrong.
  """
  source, lora = open_base(config), lora_config(config.lora)
  if source is None:
    tokenizer = load_tokenizer(config.tokenizer.path)
    tokenizer = tokenizer.with_tokens(config.tokenizer.add_tokens)
    return ModelSpec(
      None, None, fresh_config(config.model, tokenizer), tokenizer, lora
    )
  weights, adapters = fingerprint(source.path), None
  if config.lora.path is not None:
    _, adapters = read_adapters(config.lora.path, source.config)
    weights += fingerprint(config.lora.path)
  terminal.log(source.note)
  terminal.log(source.ends.note)
  tokenizer = source.tokenizer.with_tokens(config.tokenizer.add_tokens)
  shape = dataclasses.replace(
    source.config,
    eos_ids=source.ends.ids,
    vocab_size=max(source.config.vocab_size, tokenizer.vocab_size),
  )
  if tokenizer.vocab_size > source.tokenizer.vocab_size:
    _check_new_tokens(config)
    new = tokenizer.vocab_size - source.tokenizer.vocab_size
    tables = f'{new} new tokens; the tables have {shape.vocab_size} rows'
    if lora:
      tables += '; adapters do not train them, so that all new tokens are alike'
    terminal.log(tables)
  return ModelSpec(source, weights, shape, tokenizer, lora, adapters)


def _check_new_tokens(config) -> None:
  """Refuses adapters where the tables get rows for new tokens."""
  for field in ('path', 'export'):
    if config.lora[field] is not None:
      raise UserError(
        f'tokenizer.add_tokens with lora.{field}: the rows of new tokens are no'
        f' part of adapters; leave lora.{field} unset, and set export for the '
        'merged model'
      )


def fresh_config(shape, tokenizer: Tokenizer) -> ModelConfig:
  """A Llama of the config's shape and the tokenizer's vocabulary.

  Args:
    shape: `config.model`; a field that is None has its `FRESH_SHAPE` value.
    tokenizer: gives the vocabulary and the ids of BOS and EOS.

  Raises:
    UserError: a size is wrong.
  """
  values = fresh_shape(shape)
  theta = values.pop('rope_theta')
  return ModelConfig(
    vocab_size=tokenizer.vocab_size,
    rope=RopeConfig(theta=theta),
    bos_id=tokenizer.bos_id,
    eos_ids=tokenizer.eos_ids,
    **values,
  )


def trained_shapes(config, spec: ModelSpec) -> Any:
  """The shapes of the tree that `build_train_model` will train.

  Raises:
    UserError: `lora.targets` does not fit the model.
  """
  model_config, lora = spec.config, spec.lora
  key = jax.random.key(0)

  def make():
    scan = config.model.scan_layers
    base = init_params(model_config, key, jnp.float32, scan)
    if lora is None:
      return base
    return _first_adapters(spec, base, key)

  return jax.eval_shape(make)


def build_train_model(config, spec: ModelSpec, mesh) -> TrainModel:
  """Reads or initialises the weights, straight to the devices of the mesh.

  Under LoRA the base has the dtype of the computation, for nobody updates it;
  parameters that are trained are float32.
  """
  model = Transformer(
    spec.config,
    scan_layers=config.model.scan_layers,
    dtype=to_dtype(config.dtype),
    remat=config.train.remat,
  )
  key = jax.random.key(config.seed)
  base_dtype = jnp.float32 if spec.lora is None else model.dtype
  base = _base_params(config, spec, mesh, base_dtype)
  if spec.lora is None:
    return TrainModel(spec, model, mesh, base, {})
  if spec.adapters is None:
    key = jax.random.fold_in(key, 1)
    make = lambda base: _first_adapters(spec, base, key)
    adapters = _on_mesh(make, mesh, base)
  else:
    adapters = jax.device_get(_first_adapters(spec, base, key))
    adapters = jax.device_put(adapters, param_shardings(adapters, mesh))
  return TrainModel(spec, model, mesh, adapters, {'base': base})


def export_params(config, train_model: TrainModel, params) -> Any:
  """What was trained as plain float32 parameters, for a model folder.

  Under LoRA the base lies in memory in the dtype of the computation. The
  adapters are added to the checkpoint's own weights instead, read anew, so that
  nothing is rounded.
  """
  frozen = train_model.frozen
  if train_model.spec.lora is None or config.dtype == 'float32':
    return train_model.merged(params)
  if train_model.spec.source is None:  # initialised in that dtype
    base = jax.tree.map(lambda x: x.astype(jnp.float32), frozen['base'])
  else:
    base = _base_params(config, train_model.spec, train_model.mesh, jnp.float32)
    base = {name: base[name] for name in frozen['base']}
  train_model = dataclasses.replace(
    train_model, frozen={**frozen, 'base': base}
  )
  return train_model.merged(params)


def _first_adapters(spec: ModelSpec, base, key) -> Any:
  """Fresh adapters, or those of `lora.path`, laid out as the base is."""
  if spec.adapters is None:
    return lora_lib.init_lora(spec.lora, spec.config, base, key)
  if 'layers' in base:
    return lora_lib.stack(spec.adapters, spec.config)
  return spec.adapters


def _base_params(config, spec, mesh, dtype):
  key = jax.random.key(config.seed)
  model_config, scan = spec.config, config.model.scan_layers
  if spec.source is None:
    init = lambda key: init_params(model_config, key, dtype, scan)
    return _on_mesh(init, mesh, jax.random.fold_in(key, 0))
  there = spec.source.config
  shapes = jax.eval_shape(lambda: init_params(there, key, dtype))
  with terminal.progress_bar() as bar:
    task = bar.add_task('loading', total=None)
    params = spec.source.load(
      dtype,
      param_shardings(shapes, mesh),
      lambda done, total, _: bar.update(task, completed=done, total=total),
    )
  if model_config.vocab_size > there.vocab_size:
    size = model_config.vocab_size
    params = _on_mesh(lambda p: resize_tables(p, size), mesh, params)
  if scan:
    params = _on_mesh(lambda p: stack_layers(p, model_config), mesh, params)
  return params


def _on_mesh(function: Callable, mesh, *args):
  """A tree of parameters, computed where its leaves shall lie."""
  shapes = jax.eval_shape(function, *args)
  return jax.jit(function, out_shardings=param_shardings(shapes, mesh))(*args)


def fingerprint(path: str) -> str:
  """A hash of each weight file's name, size and content.

  Of files above 256 MiB it reads 64 MiB only.
  """
  digest = hashlib.sha256()
  files = [path]
  if os.path.isdir(path):
    names = sorted(os.listdir(path))
    kinds = ('.safetensors', '.bin')
    files = [os.path.join(path, n) for n in names if n.endswith(kinds)]
  for name in files:
    size = os.path.getsize(name)
    digest.update(f'{os.path.basename(name)} {size}'.encode())
    with open(name, 'rb') as file:
      if size <= _WHOLE:
        digest.update(file.read())
        continue
      for i in range(_BLOCKS):
        file.seek(i * (size - _BLOCK) // (_BLOCKS - 1))
        digest.update(file.read(_BLOCK))
  return digest.hexdigest()
