"""Where activations lie when several devices share a step."""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
from jax.sharding import PartitionSpec

ROWS = ('data', 'fsdp')  # the axes of the mesh that rows are spread over


def keep_rows(x: jax.Array) -> jax.Array:
  """x [B, ...], its rows pinned to the devices of the mesh in context.

  Weights are split over `fsdp` too, along D. In a product of both the compiler
  must fetch the weights and leave the rows where they are; left to itself it
  may fetch the rows of all devices instead. Without a mesh (`jax.set_mesh`), or
  where it does not divide B, x stays as it is.
  """
  if not splits_rows(x):
    return x
  rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS, *rest))


def fetch_rows(table: jax.Array) -> jax.Array:
  """table [V, D], whole rows of it on each device; V stays split by `tensor`.

  For a lookup, whose result has rows of the batch and all of D on one device.
  Left to itself, the compiler gathers rows and table in full for the backward
  pass.
  """
  if not _in_mesh():
    return table
  spec = PartitionSpec(PartitionSpec.UNCONSTRAINED, None)
  return jax.lax.with_sharding_constraint(table, spec)


def keep_heads(qkv: jax.Array) -> jax.Array:
  """qkv [B, T, K, G + 2, H], whole heads of it on each device.

  Where `tensor` does not divide K, the rows of each kv-head are split; taking
  queries, keys and values apart then crosses devices, and is done on all of
  them instead.
  """
  if not splits_rows(qkv, ('tensor',)):
    return qkv
  if qkv.shape[2] % jax.sharding.get_abstract_mesh().shape['tensor'] == 0:
    return qkv
  return jax.lax.with_sharding_constraint(qkv, PartitionSpec(ROWS))


def on_own_rows(
  function: Callable[..., jax.Array],
  x: jax.Array,
  weights: Sequence[tuple[Any, int | None]],
) -> jax.Array:
  """`function(x, *weights)` [B, ...], by each device on its own rows of x.

  For what the compiler cannot split by itself, such as a sort of all tokens.
  Without a mesh, or where it does not divide B, it is the plain call.

  Args:
    function: of x [B, ...] and weights; a sum over the axes that are split.
    x: [B, ...].
    weights: (an array, or a packed weight, and the axis that `tensor` splits or
      None) in the order of the arguments.
  """
  mesh = jax.sharding.get_abstract_mesh()
  arrays = [w for w, _ in weights]
  if not splits_rows(x, ('tensor',)):
    return function(x, *arrays)
  parts = mesh.shape['tensor']
  split = all(a is None or w.shape[a] % parts == 0 for w, a in weights)

  cut = [split and axis is not None for _, axis in weights]
  specs = [
    PartitionSpec(*[None] * axis, 'tensor') if is_cut else PartitionSpec()
    for (_, axis), is_cut in zip(weights, cut, strict=True)
  ]

  def own(x, *arrays):
    # Each device's copy has its own gradient, to be added up at the end: not
    # where it is used, which may be a branch that other devices skip.
    x = jax.lax.pcast(x, 'tensor', to='varying')
    also = [ROWS if is_cut else (*ROWS, 'tensor') for is_cut in cut]
    arrays = [
      jax.tree.map(lambda leaf, a=axes: jax.lax.pcast(leaf, a, to='varying'), w)
      for w, axes in zip(arrays, also, strict=True)
    ]
    out = function(x, *arrays)
    return jax.lax.psum(out if split else out / parts, 'tensor')

  return jax.shard_map(
    own,
    in_specs=(PartitionSpec(ROWS), *specs),
    out_specs=PartitionSpec(ROWS),
  )(x, *arrays)


def splits_rows(x: jax.Array, also: tuple[str, ...] = ()) -> bool:
  """True where the mesh in context divides the rows of x among devices."""
  if not _in_mesh():
    return False
  mesh = jax.sharding.get_abstract_mesh()
  shards = mesh.shape['data'] * mesh.shape['fsdp']
  several = shards * math.prod(mesh.shape[a] for a in also)
  return several > 1 and x.shape[0] % shards == 0


def _in_mesh() -> bool:
  """True where a mesh is in context whose axes are left to the compiler."""
  mesh = jax.sharding.get_abstract_mesh()
  return set(ROWS) <= set(mesh.axis_names) - set(mesh.manual_axes)
