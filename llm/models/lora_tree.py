"""The tree of adapters and trained copies, as a data structure."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from llm.errors import UserError
from llm.models.config import ModelConfig
from llm.models.lora_places import PARTS, ROWS, Path


def insert(tree: Any, path: Path, value: Any) -> None:
  """Puts an adapter or a leaf into a tree, in place."""
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  if isinstance(value, dict):
    tree.setdefault(path[-1], {}).update(value)
  else:
    tree[path[-1]] = value


def items(lora: Any) -> Iterator[tuple[Path, dict]]:
  """(path, {part: array}) of each adapter, in no special order."""
  for key, value in lora.items():
    if not isinstance(value, dict):
      continue
    if 'lora_a' in value:
      yield (key,), {part: value[part] for part in PARTS if part in value}
    yield from (((key, *path), leaf) for path, leaf in items(value))


def leaves(lora: Any) -> Iterator[tuple[Path, Any]]:
  """(path, array) of what belongs to no adapter: whole copies and rows."""
  for key, value in lora.items():
    if isinstance(value, dict):
      yield from (((key, *path), leaf) for path, leaf in leaves(value))
    elif key not in PARTS:
      yield (key,), value


def copies(lora: Any) -> Any:
  """The whole copies alone, as a tree like the parameters'."""
  out = {}
  for path, leaf in leaves(lora):
    if path[-1] != ROWS:
      insert(out, path, leaf)
  return out


def overlay(tree: Any, new: Any) -> Any:
  """The tree with the leaves of `new` put over it."""
  if not isinstance(tree, dict):
    return new
  out = dict(tree)
  for key, value in new.items():
    out[key] = overlay(tree[key], value) if key in tree else value
  return out


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
  """(trained, of all): numbers of what is trained, and of both trees together.

  A whole copy or a row counts as trained, and once: it stands for the base's.
  """
  trained = sum(x.size for x in jax.tree.leaves(lora))
  stands_for = sum(x.size for _, x in leaves(lora))
  total = trained + sum(x.size for x in jax.tree.leaves(base)) - stands_for
  return trained, total
