"""A pytree as a flat dict of plain arrays, and back.

Orbax cannot store typed keys or arrays of size 0, and its error about a tree of
another structure does not say what differs. A flat dict of plain arrays avoids
both.
"""

import math
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from llm.errors import UserError


def flatten(tree: Any) -> dict[str, Any]:
  """Returns {path: leaf}, such as `params/layers_0/attn/o/kernel`.

  Raises:
    UserError: two leaves have one path, as {'a/b': …} and {'a': {'b': …}}.
  """
  flat = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name in flat:
      raise UserError(f'two leaves of the state are named {name!r}')
    flat[name] = leaf
  return flat


def specs(tree: Any) -> dict[str, list]:
  """Returns {path: [dtype's name, shape]}, what a checkpoint must fit."""
  return {
    name: [str(leaf.dtype), list(leaf.shape)]
    for name, leaf in flatten(_abstract(tree)).items()
  }


def to_arrays(tree: Any) -> dict[str, jax.Array]:
  """The leaves as Orbax saves them: keys as data, none without elements."""
  arrays = {}
  for name, leaf in flatten(tree).items():
    # A copy: the save continues while the caller may write to its own array.
    leaf = leaf if isinstance(leaf, jax.Array) else jax.numpy.array(leaf)
    if _is_key(leaf):
      leaf = jax.random.key_data(leaf)
    if leaf.size:
      arrays[name] = leaf
  return arrays


def abstract_arrays(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """What `to_arrays` of a tree of this form returns: shapes and shardings.

  Leaves without a sharding go to the default device.
  """
  arrays = {}
  default = SingleDeviceSharding(jax.devices()[0])
  shapes = flatten(jax.eval_shape(_data, _abstract(tree)))
  for name, leaf in flatten(tree).items():
    shape = shapes[name]
    if math.prod(shape.shape):
      sharding = getattr(leaf, 'sharding', None) or default
      arrays[name] = jax.ShapeDtypeStruct(
        shape.shape, shape.dtype, sharding=sharding
      )
  return arrays


def from_arrays(tree: Any, arrays: dict[str, jax.Array]) -> Any:
  """Puts `arrays` into the form of `tree`; the inverse of `to_arrays`."""
  leaves = []
  shapes = flatten(_abstract(tree))
  for name, leaf in flatten(tree).items():
    shape = shapes[name]
    if name in arrays:
      value = arrays[name]
      if _is_key(shape):
        value = jax.random.wrap_key_data(value, impl=_key_impl(shape))
    else:
      value = jax.numpy.zeros(
        shape.shape, shape.dtype, device=getattr(leaf, 'sharding', None)
      )
    leaves.append(value)
  return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _abstract(tree: Any) -> Any:
  return jax.eval_shape(lambda x: x, tree)


def _data(tree: Any) -> Any:
  return jax.tree.map(
    lambda x: jax.random.key_data(x) if _is_key(x) else x, tree
  )


def _is_key(leaf: Any) -> bool:
  return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(shape: jax.ShapeDtypeStruct) -> str:
  # jax.random.key_impl takes arrays and tracers, not shapes.
  found = []
  jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), shape)
  return found[0]
