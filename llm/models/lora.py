"""Low-rank adapters beside frozen parameters: LoRA and DoRA.

LoRA (2106.09685) adds s B A to a weight W [out, in], A [r, in], B [out, r];
DoRA (2402.09353) rescales each output row to a learned length m:

  LoRA  y = (W + s B A) x             s = alpha / r, or alpha / sqrt(r) (rsLoRA)
  DoRA  y = m / |W + s B A| (W + s B A) x      |.|: norm of each row, constant
                                               in the gradient (section 4.3)

Adapters are a tree of their own, one entry for each projection that a Hugging
Face checkpoint knows, so that they convert to PEFT's format and back:

  layers_{i}/attn/{q,k,v,o}/{lora_a, lora_b}   and mlp/{gate,up,down}, lm_head;
  and magnitude [out] with DoRA. Stacked: layers/block/… with a leading L.

`variables(base, lora, config)` turns both trees into what the model runs on.
The products are added to the activations, W x + s B (A x), inside `Linear`. The
other way, forming W + s B A in the loss, would bring back the gradient of every
whole weight, a third of the arithmetic of a step; here it is never computed,
nor is the sum ever formed, and the base may stay in another dtype. The row
norms of DoRA come from |W|^2 + 2 s W A' . B + s^2 |B A|^2 by row; its
magnitudes need the output of W itself in the backward pass, which costs what
is saved again if blocks are rematerialised. The output weight (lm_head) is the
exception: losses take it as one array, so its effective value is formed.

A base weight may be packed (`llm.models.weights`): the products are added to
what it gives. Only DoRA and an adapted lm_head read it as an array.

Decoding many tokens with fixed adapters: `merge` them once, which gives plain
parameters, equal to the two trees within rounding.
"""

from collections.abc import Iterator
import math
from typing import Any

import jax
import jax.numpy as jnp

from llm.errors import UserError
from llm.models.config import ModelConfig
from llm.models.lora_config import (
  FUSED,
  HEAD,
  LoraConfig,
  match_targets,
  paths,
  shape,
)
from llm.models.projections import join, projections, sizes, split
from llm.models.weights import dense, is_packed, sliced

_HIGHEST = jax.lax.Precision.HIGHEST


def init_lora(
  config: LoraConfig, model_config: ModelConfig, base: Any, rng: jax.Array
) -> Any:
  """Fresh adapters, with which the model computes what it did without them.

  A is uniform in +-1 / sqrt(in) (PEFT's kaiming_uniform with a = sqrt(5)), B is
  zero, and the magnitudes of DoRA are the row norms of the base. What a
  projection draws does not depend on which others are targets.

  Args:
    config: what to adapt.
    model_config: the model.
    base: its parameters, with unrolled or stacked layers; without DoRA their
      shapes are enough (`jax.eval_shape`).
    rng: typed key.

  Returns:
    The adapter tree in float32, laid out as `base` is.

  Raises:
    UserError: a target names nothing, or, with stacked layers, not all layers.
  """
  lora = {}
  index = {path: i for i, path in enumerate(paths(model_config))}
  for path in match_targets(config, model_config):
    rows, columns = shape(model_config, path)
    rank = config.rank_of(path)
    key = jax.random.fold_in(rng, index[path])
    bound = 1.0 / math.sqrt(columns)
    insert(
      lora,
      path,
      {
        'lora_a': jax.random.uniform(
          key, (rank, columns), jnp.float32, -bound, bound
        ),
        'lora_b': jnp.zeros((rows, rank), jnp.float32),
      },
    )
  if 'layers' in base:
    check_alike(config, model_config)
    lora = stack(lora, model_config)
  if config.dora:
    lora = _with_magnitudes(base, lora)
  return lora


def insert(lora: Any, path: tuple[str, ...], adapter: dict) -> None:
  """Puts an adapter into a tree, in place."""
  for key in path[:-1]:
    lora = lora.setdefault(key, {})
  lora[path[-1]] = adapter


def items(lora: Any) -> Iterator[tuple[tuple[str, ...], dict]]:
  """(path, adapter) of a tree with unrolled layers, in no special order."""
  for key, value in lora.items():
    if 'lora_a' in value:
      yield (key,), value
    else:
      yield from (((key, *path), leaf) for path, leaf in items(value))


def stack(lora: Any, config: ModelConfig) -> Any:
  """`layers_i` -> `layers/block` with a leading L axis, for scanned layers.

  Raises:
    UserError: the layers are not adapted alike.
  """
  layers = [lora.get(f'layers_{i}', {}) for i in range(config.num_layers)]
  shapes = [jax.tree.map(jnp.shape, layer) for layer in layers]
  for i, found in enumerate(shapes):
    if found != shapes[0]:
      raise UserError(
        f'lora: layer {i} is not adapted as layer 0 is, and scanned layers '
        'must be alike: use the same targets and ranks in all of them, or '
        'layers that are not scanned'
      )
  out = {k: v for k, v in lora.items() if not k.startswith('layers_')}
  if layers[0]:
    out['layers'] = {'block': jax.tree.map(lambda *x: jnp.stack(x), *layers)}
  return out


def check_alike(config: LoraConfig, model_config: ModelConfig) -> None:
  """Refuses alphas that differ between layers, where layers are stacked.

  Raises:
    UserError: naming the projection.
  """
  for path in match_targets(config, model_config):
    first = ('layers_0', *path[1:])
    if path != HEAD and config.scale(path, 1) != config.scale(first, 1):
      raise UserError(
        f'lora.alpha_pattern: {"/".join(path)} has another alpha than layer 0,'
        ' and scanned layers must be alike: use the same in all of them, or '
        'layers that are not scanned'
      )


def unstack(lora: Any, config: ModelConfig) -> Any:
  """The inverse of `stack`; a tree of unrolled layers stays as it is."""
  out = {k: v for k, v in lora.items() if k != 'layers'}
  if 'layers' in lora:
    for i in range(config.num_layers):
      out[f'layers_{i}'] = jax.tree.map(
        lambda x, i=i: x[i], lora['layers']['block']
      )
  return out


def count_parameters(base: Any, lora: Any) -> tuple[int, int]:
  """(trained, of all): numbers of the adapters, and of both trees together."""
  trained = sum(x.size for x in jax.tree.leaves(lora))
  return trained, trained + sum(x.size for x in jax.tree.leaves(base))


def variables(
  base: Any,
  lora: Any,
  config: LoraConfig,
  *,
  keys: jax.Array | None = None,
) -> dict[str, Any]:
  """What the model runs on: `model.apply(variables(…), tokens, …)`.

  Differentiable in both trees; a gradient with respect to `lora` costs no
  gradient of a base weight, other than that of an adapted lm_head.

  Args:
    base: the frozen parameters.
    lora: adapters, with layers unrolled or stacked as in `base`.
    config: of these adapters.
    keys: typed key[B], one for each row of the batch: dropout is on. None: off.

  Raises:
    UserError: an adapter that the base has no place for.
  """
  _check_fit(base, lora, config)

  def run(block, adapters, layer, where):
    out = {}
    for number, (module, linear, found) in enumerate(_fused(adapters)):
      kernel = block[module][linear]['kernel']
      entry = _entry(kernel, linear, found, config, (where, module))
      if keys is not None and config.dropout:
        entry['keys'] = _fold(_fold(keys, layer), number)
        entry['rate'] = jnp.float32(config.dropout)
      out.setdefault(module, {})[linear] = {'adapter': entry}
    return out

  params = base
  if 'lm_head' in lora:
    params = {**base, 'lm_head': _merged_head(base, lora, config)}
  return {'params': params, 'lora': _map_layers(run, base, lora)}


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
  _check_fit(base, lora, config)

  def fold(block, adapters, layer, where):
    del layer
    out = {}
    for module, linear, found in _fused(adapters):
      kernel = block[module][linear]['kernel']
      _check_float(kernel, f'{module}/{linear}')
      parts = split(linear, kernel)
      for name, adapter in found.items():
        path = (where, module, name)
        parts[name] = _merged(parts[name], adapter, config, path)
      new = join(linear, parts, kernel).reshape(kernel.shape)
      out.setdefault(module, {})[linear] = {'kernel': new}
    return out

  merged = _overlay(base, _map_layers(fold, base, lora))
  if 'lm_head' in lora:
    _check_float(base['lm_head']['kernel'], 'lm_head')
    merged = {**merged, 'lm_head': _merged_head(base, lora, config)}
  return merged


def _check_float(weight: Any, name: str) -> None:
  if is_packed(weight):
    raise UserError(
      f'lora: the base weight {name} is packed, and adapters cannot be merged '
      'into it: keep them beside it, or merge them into float weights'
    )


def _with_magnitudes(base: Any, lora: Any) -> Any:
  """The adapters with DoRA's magnitudes, the row norms of the base."""

  def add(block, adapters, layer, where):
    del layer, where
    out = {}
    for module, linear, found in _fused(adapters):
      weights = projections(linear, block[module][linear]['kernel'])
      for name in found:
        norms = jnp.linalg.norm(weights[name], axis=-1)
        out.setdefault(module, {})[name] = {'magnitude': norms}
    return out

  new = _map_layers(add, base, lora)
  if 'lm_head' in lora:
    head = dense(base['lm_head']['kernel'], jnp.float32)
    new['lm_head'] = {'magnitude': jnp.linalg.norm(head, axis=-1)}
  return _overlay(lora, new)


def _map_layers(function: Any, base: Any, lora: Any) -> Any:
  """function(params, adapters, number, name) of each layer, stacked or not.

  Stacked layers are alike, and have the name of the first.
  """
  out = {}
  for name, adapters in lora.items():
    if name == 'layers':
      count = jax.tree.leaves(adapters)[0].shape[0]
      out[name] = {
        'block': jax.vmap(lambda *args: function(*args, 'layers_0'))(
          base[name]['block'], adapters['block'], jnp.arange(count)
        )
      }
    elif name != 'lm_head':
      number = int(name.removeprefix('layers_'))
      out[name] = function(base[name], adapters, number, name)
  return out


def _fused(adapters: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
  """(module, its linear map, adapters by projection) where there are any."""
  for (module, linear), names in FUSED.items():
    own = adapters.get(module, {})
    found = {name: own[name] for name in names if name in own}
    if found:
      yield module, linear, found


def _overlay(tree: Any, new: Any) -> Any:
  """The tree with the leaves of `new` put over it."""
  if not isinstance(tree, dict):
    return new
  out = dict(tree)
  for key, value in new.items():
    out[key] = _overlay(tree[key], value) if key in tree else value
  return out


def _entry(
  kernel: Any,
  linear: str,
  found: dict[str, Any],
  config: LoraConfig,
  place: tuple[str, str],
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
      config.scale((*place, name), rank) * adapter['lora_b'],
      ((0, 0), (start, a.shape[0] - start - rank)),
    )
    if config.dora:
      factor = _row_factor(weights[name], adapter, config, (*place, name))
      factors[name] = factor[:, None]
    start += rank
  entry = {'a': a, 'b': join(linear, b, kernel)}
  if config.dora:
    entry['scale'] = join(linear, factors, kernel)[..., 0]
  return entry


def _row_factor(
  weight: jax.Array,
  adapter: dict,
  config: LoraConfig,
  path: tuple[str, ...],
) -> jax.Array:
  """m / |W + s B A| by row, float32[out]; the norm is a constant."""
  w, a, b = (
    jax.lax.stop_gradient(x).astype(jnp.float32)
    for x in (weight, adapter['lora_a'], adapter['lora_b'])
  )
  s = config.scale(path, a.shape[0])
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


def _merged(
  weight: jax.Array,
  adapter: dict,
  config: LoraConfig,
  path: tuple[str, ...],
) -> jax.Array:
  """W + s B A, with DoRA's length of each row, in the dtype of W."""
  a, b = (adapter[k].astype(jnp.float32) for k in ('lora_a', 'lora_b'))
  scale = config.scale(path, a.shape[0])
  delta = scale * jnp.matmul(b, a, precision=_HIGHEST)
  out = weight.astype(jnp.float32) + delta
  if config.dora:
    out *= _row_factor(weight, adapter, config, path)[:, None]
  return out.astype(weight.dtype)


def _merged_head(base: Any, lora: Any, config: LoraConfig) -> Any:
  kernel = base['lm_head']['kernel']
  if is_packed(kernel):
    kernel = dense(kernel, jnp.float32)
  return {'kernel': _merged(kernel, lora['lm_head'], config, HEAD)}


def _fold(keys: jax.Array, number: jax.Array | int) -> jax.Array:
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _check_fit(base: Any, lora: Any, config: LoraConfig) -> None:
  """Refuses adapters that would be ignored, or do not fit the weights."""
  for path, adapter in items(lora):
    name = '/'.join(path)
    try:
      rows, columns = _base_shape(base, path)
    except (KeyError, ValueError):
      raise UserError(
        f'lora: {name} has no weight in the base: use the model that the '
        'adapters were made for, with layers stacked in both or in neither'
      ) from None
    found = adapter['lora_b'].shape[-2], adapter['lora_a'].shape[-1]
    if found != (rows, columns):
      raise UserError(
        f'lora: {name} is for a weight {list(found)}, and the base has '
        f'{[rows, columns]}: use the model that the adapters were made for'
      )
    if ('magnitude' in adapter) != config.dora:
      has = 'a' if 'magnitude' in adapter else 'no'
      raise UserError(
        f'lora.dora={config.dora}, and {name} has {has} magnitude: use the '
        'config that the adapters were made with'
      )


def _base_shape(base: Any, path: tuple[str, ...]) -> tuple[int, int]:
  """(out, in) of the base's weight at an adapter's path."""
  if path == HEAD:
    return base['lm_head']['kernel'].shape
  *block, module, name = path
  node = base
  for key in block:
    node = node[key]
  linear = next(own for (_, own), names in FUSED.items() if name in names)
  kernel = node[module][linear]['kernel']
  if 'layers' in block:
    kernel = jax.eval_shape(lambda k: sliced(k, 0), kernel)
  return sizes(linear, kernel)[name]
