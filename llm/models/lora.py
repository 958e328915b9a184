"""Low-rank adapters beside frozen parameters: LoRA and DoRA.

LoRA (2106.09685) adds s B A to a weight W [out, in], A [r, in], B [out, r];
DoRA (2402.09353) rescales each output row to a learned length m:

  LoRA  y = (W + s B A) x             s = alpha / r, or alpha / sqrt(r) (rsLoRA)
  DoRA  y = m / |W + s B A| (W + s B A) x      |.|: norm of each row, constant
                                               in the gradient (section 4.3)

Adapters are a tree of their own, one entry for each projection that a Hugging
Face checkpoint knows, so that they convert to PEFT's format and back:

  layers_{i}/attn/{q,k,v,o}/{lora_a, lora_b}   and mlp/{gate,up,down}, lm_head,
  embedder; and magnitude [out] with DoRA. Stacked: layers/block/… with a
  leading L. The token table maps one-hot tokens to D: W is its transpose.

Beside them may stand whole trained copies of parameters, under the names that
these have in the base (`final_norm/scale`, `lm_head/kernel`, …), and `rows`
[n, D] of a table, which replace those that `LoraConfig.tokens` names.

`variables(base, lora, config)` turns both trees into what the model runs on.
The products are added to the activations, W x + s B (A x), inside `Linear`. The
other way, forming W + s B A in the loss, would bring back the gradient of every
whole weight, a third of the arithmetic of a step; here it is never computed,
nor is the sum ever formed, and the base may stay in another dtype. The row
norms of DoRA come from |W|^2 + 2 s W A' . B + s^2 |B A|^2 by row; its
magnitudes need the output of W itself in the backward pass, which costs what
is saved again if blocks are rematerialised. The tables (lm_head, embedder) are
the exception: losses take them as one array, so their effective values are
formed.

A base weight may be packed (`llm.models.weights`): the products are added to
what it gives. Only DoRA and an adapted table read it as an array.

Decoding many tokens with fixed adapters: `merge` them once, which gives plain
parameters, equal to the two trees within rounding.
"""

from collections.abc import Iterator
import math
from typing import Any

import jax
import jax.numpy as jnp

from llm.models.config import ModelConfig
from llm.models.lora_config import LoraConfig, module_label
from llm.models.lora_fit import base_leaf, check_fit, check_float
from llm.models.lora_places import (
  EMBED,
  FUSED,
  ROWS,
  TABLES,
  match_tokens,
  match_whole,
  paths,
  resolve,
  shape,
)
from llm.models.lora_tree import (
  copies,
  count_parameters,
  insert,
  items,
  leaves,
  overlay,
  stack,
  unstack,
)
from llm.models.projections import join, projections, sizes, split
from llm.models.weights import dense, is_packed, sliced

__all__ = [
  'count_parameters',
  'init_lora',
  'insert',
  'items',
  'merge',
  'shape',
  'stack',
  'unstack',
  'variables',
]
_HIGHEST = jax.lax.Precision.HIGHEST


def init_lora(
  config: LoraConfig, model_config: ModelConfig, base: Any, rng: jax.Array
) -> Any:
  """Fresh adapters, with which the model computes what it did without them.

  A is uniform in +-1 / sqrt(in) (PEFT's kaiming_uniform with a = sqrt(5)), B is
  zero, and the magnitudes of DoRA are the row norms of the base; for the token
  table A is zero, and B normal, as PEFT has it. What a projection draws does
  not depend on which others are targets. Copies and rows are the base's.

  Args:
    config: what to adapt.
    model_config: the model.
    base: its parameters, with unrolled or stacked layers; their shapes are
      enough (`jax.eval_shape`) without DoRA, copies and rows.
    rng: typed key.

  Returns:
    The adapter tree in float32, laid out as `base` is.

  Raises:
    UserError: a target names nothing, or, with stacked layers, not all layers.
  """
  lora = {}
  index = {path: i for i, path in enumerate(paths(model_config))}
  for path, (rank, _) in resolve(config, model_config).items():
    key = jax.random.fold_in(rng, index[path])
    insert(lora, path, _fresh(key, path, rank, *shape(model_config, path)))
  for path in match_whole(config, model_config):
    insert(lora, path, _copy(base, path))
  for path, ids in match_tokens(config, model_config).items():
    table = _copy(base, (*path, TABLES[path]))
    insert(lora, path, {ROWS: table[jnp.asarray(ids)]})
  if 'layers' in base:
    lora = stack(lora, model_config)
  if config.dora:
    lora = _with_magnitudes(base, lora)
  return lora


def _copy(base: Any, path: tuple[str, ...]) -> jax.Array:
  """A parameter of unrolled layers in float32, wherever it lies in the base."""
  if path[0].startswith('layers_') and 'layers' in base:
    index = int(path[0].removeprefix('layers_'))
    leaf = base_leaf(base, ('layers', 'block', *path[1:]))
    return dense(sliced(leaf, index), jnp.float32)
  return dense(base_leaf(base, path), jnp.float32)


def _fresh(
  key: jax.Array, path: Any, rank: int, rows: int, columns: int
) -> Any:
  if path == EMBED:
    return {
      'lora_a': jnp.zeros((rank, columns), jnp.float32),
      'lora_b': jax.random.normal(key, (rows, rank), jnp.float32),
    }
  bound = 1.0 / math.sqrt(columns)
  return {
    'lora_a': jax.random.uniform(
      key, (rank, columns), jnp.float32, -bound, bound
    ),
    'lora_b': jnp.zeros((rows, rank), jnp.float32),
  }


def variables(
  base: Any,
  lora: Any,
  config: LoraConfig,
  *,
  keys: jax.Array | None = None,
) -> dict[str, Any]:
  """What the model runs on: `model.apply(variables(…), tokens, …)`.

  Differentiable in both trees; a gradient with respect to `lora` costs no
  gradient of a base weight, other than that of an adapted table.

  Args:
    base: the frozen parameters.
    lora: adapters, with layers unrolled or stacked as in `base`.
    config: of these adapters.
    keys: typed key[B], one for each row of the batch: dropout is on. None: off.

  Raises:
    UserError: an adapter that the base has no place for.
  """
  check_fit(base, lora, config)

  def run(block, adapters, layer):
    out = {}
    for number, (module, linear, found) in enumerate(_fused(adapters)):
      entry = _entry(block[module][linear]['kernel'], linear, found, config)
      if keys is not None and config.dropout:
        entry['keys'] = _fold(_fold(keys, layer), number)
        entry['rate'] = jnp.float32(config.dropout)
      out.setdefault(module, {})[linear] = {'adapter': entry}
    return out

  params = overlay(base, copies(lora))
  params = overlay(params, _tables(params, lora, config))
  adapters = _map_layers(run, base, _with_factors(lora, config))
  return {'params': params, 'lora': adapters}


def merge(base: Any, lora: Any, config: LoraConfig) -> Any:
  """Plain parameters that compute what base and adapters compute together.

  Args:
    base: the frozen parameters.
    lora: adapters, with layers unrolled or stacked as in `base`.
    config: of these adapters.

  Returns:
    A tree like `base`, summed in float32 and cast to its dtypes; weights
    without an adapter are the same arrays.

  Raises:
    UserError: an adapter that the base has no place for, or whose weight is
      packed.
  """
  check_fit(base, lora, config)

  def fold(block, adapters, layer):
    del layer
    out = {}
    for module, linear, found in _fused(adapters):
      kernel = block[module][linear]['kernel']
      check_float(kernel, f'{module}/{linear}')
      parts = split(linear, kernel)
      for name, adapter in found.items():
        parts[name] = _merged(parts[name], adapter)
      new = join(linear, parts, kernel).reshape(kernel.shape)
      out.setdefault(module, {})[linear] = {'kernel': new}
    return out

  for path, leaf in TABLES.items():
    if {'lora_a', ROWS} & lora.get(path[0], {}).keys():
      check_float(base[path[0]][leaf], module_label(path))
  scaled = _with_factors(lora, config)
  merged = overlay(base, _map_layers(fold, base, scaled))
  new = {}
  for path, copy in leaves(copies(lora)):
    old = base_leaf(base, path)
    dtype = copy.dtype if is_packed(old) else old.dtype
    insert(new, path, copy.astype(dtype))
  merged = overlay(merged, new)
  return overlay(merged, _tables(merged, lora, config))


def _with_magnitudes(base: Any, lora: Any) -> Any:
  """The adapters with DoRA's magnitudes, the row norms of the base."""

  def add(block, adapters, layer):
    del layer
    out = {}
    for module, linear, found in _fused(adapters):
      weights = projections(linear, block[module][linear]['kernel'])
      for name in found:
        norms = jnp.linalg.norm(weights[name], axis=-1)
        out.setdefault(module, {})[name] = {'magnitude': norms}
    return out

  new = _map_layers(add, base, lora)
  for path, leaf in TABLES.items():
    if 'lora_a' in lora.get(path[0], {}):
      weight = _as_map(path, dense(base[path[0]][leaf], jnp.float32))
      new[path[0]] = {'magnitude': jnp.linalg.norm(weight, axis=-1)}
  return overlay(lora, new)


def _with_factors(lora: Any, config: LoraConfig) -> Any:
  """The adapters of the layers, each with its s as `factor`; [L] if stacked."""
  out = {}
  for path, adapter in items(lora):
    if path in TABLES:
      continue
    rank = adapter['lora_a'].shape[-2]
    if path[0] == 'layers':
      count = adapter['lora_a'].shape[0]
      own = [(f'layers_{i}', *path[2:]) for i in range(count)]
      factor = [config.scale(config.alpha_of(p), rank) for p in own]
    else:
      factor = config.scale(config.alpha_of(path), rank)
    factor = jnp.asarray(factor, adapter['lora_b'].dtype)
    insert(out, path, {**adapter, 'factor': factor})
  return out


def _map_layers(function: Any, base: Any, lora: Any) -> Any:
  """function(params, adapters, number) of each layer, stacked or not."""
  out = {}
  for name, adapters in lora.items():
    if name == 'layers':
      count = jax.tree.leaves(adapters)[0].shape[0]
      out[name] = {
        'block': jax.vmap(function)(
          base[name]['block'], adapters['block'], jnp.arange(count)
        )
      }
    elif name.startswith('layers_'):
      number = int(name.removeprefix('layers_'))
      out[name] = function(base[name], adapters, number)
  return out


def _fused(adapters: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
  """(module, its linear map, adapters by projection) where there are any."""
  for (module, linear), names in FUSED.items():
    own = adapters.get(module, {})
    found = {name: own[name] for name in names if name in own}
    if found:
      yield module, linear, found


def _entry(
  kernel: Any, linear: str, found: dict[str, Any], config: LoraConfig
) -> dict[str, jax.Array]:
  """The adapters of a fused map as one of rank R = the sum of theirs.

  a holds each A below the last, b each s B in the rows of its projection and
  the columns of its A, with zeros elsewhere; for q and v of rank 1:

    a = [A_q; A_v]      rows of q: s B_q 0    of k: 0 0    of v: 0 s B_v
  """
  weights = projections(linear, kernel) if config.dora else {}
  a = jnp.concatenate([adapter['lora_a'] for adapter in found.values()])
  b, factors, start = {}, {}, 0
  for name, (rows, _) in sizes(linear, kernel).items():
    if name not in found:
      b[name] = jnp.zeros((rows, a.shape[0]), a.dtype)
      factors[name] = jnp.ones((rows, 1), jnp.float32)
      continue
    adapter = found[name]
    rank = adapter['lora_a'].shape[0]
    b[name] = jnp.pad(
      adapter['factor'] * adapter['lora_b'],
      ((0, 0), (start, a.shape[0] - start - rank)),
    )
    if config.dora:
      factors[name] = _row_factor(weights[name], adapter)[:, None]
    start += rank
  entry = {'a': a, 'b': join(linear, b, kernel)}
  if config.dora:
    entry['scale'] = join(linear, factors, kernel)[..., 0]
  return entry


def _row_factor(weight: jax.Array, adapter: dict) -> jax.Array:
  """m / |W + s B A| by row, float32[out]; the norm is a constant."""
  w, a, b = (
    jax.lax.stop_gradient(x).astype(jnp.float32)
    for x in (weight, adapter['lora_a'], adapter['lora_b'])
  )
  s = adapter['factor'].astype(jnp.float32)
  cross = jnp.matmul(w, a.T, precision=_HIGHEST)
  own = jnp.matmul(
    b, jnp.matmul(a, a.T, precision=_HIGHEST), precision=_HIGHEST
  )
  square = jnp.sum(w * w, axis=-1)
  square += jnp.sum((2 * s * cross + s * s * own) * b, axis=-1)
  norm = jnp.sqrt(jnp.maximum(square, 0.0))
  # A row of zeros stays one.
  return jnp.where(
    norm > 0, adapter['magnitude'] / jnp.where(norm > 0, norm, 1.0), 1.0
  )


def _merged(weight: jax.Array, adapter: dict) -> jax.Array:
  """W + s B A, with DoRA's length of each row, in the dtype of W."""
  a, b = (adapter[k].astype(jnp.float32) for k in ('lora_a', 'lora_b'))
  factor = adapter['factor'].astype(jnp.float32)
  out = weight.astype(jnp.float32) + factor * jnp.matmul(
    b, a, precision=_HIGHEST
  )
  if 'magnitude' in adapter:
    out *= _row_factor(weight, adapter)[:, None]
  return out.astype(weight.dtype)


def _as_map(path: tuple[str, ...], table: jax.Array) -> jax.Array:
  """A table [V, D] as the weight of a map, and back: the embedder's turned."""
  return table.T if path == EMBED else table


def _tables(params: Any, lora: Any, config: LoraConfig) -> Any:
  """The effective values of the tables that have an adapter or trained rows."""
  out, ids = {}, dict(config.tokens)
  for path, leaf in TABLES.items():
    own = lora.get(path[0], {})
    if not {'lora_a', ROWS} & own.keys():
      continue
    table = params[path[0]][leaf]
    if is_packed(table):
      table = dense(table, jnp.float32)
    if ROWS in own:
      index = jnp.asarray(ids[module_label(path)])
      table = table.at[index].set(own[ROWS].astype(table.dtype))
    else:
      factor = config.scale(config.alpha_of(path), own['lora_a'].shape[0])
      adapter = {**own, 'factor': jnp.float32(factor)}
      table = _as_map(path, _merged(_as_map(path, table), adapter))
    out[path[0]] = {leaf: table}
  return out


def _fold(keys: jax.Array, number: jax.Array | int) -> jax.Array:
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
