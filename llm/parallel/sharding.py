"""Shardings of parameters, train state and batches over the mesh.

A leaf's sharding follows from its path alone, so that the same rules hold for
parameters, their gradients, their moving averages and the optimizer's moments.
An axis that the mesh does not divide stays whole on every device.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

# (module, leaf) -> axes, counted from the last, that `tensor` and `fsdp` may
# split; the first that divides is taken. What is in front of them (layers of a
# scan, experts) stays whole: both are indexed in a loop, and an index into a
# split axis would fetch it from another device in each turn. Leaves that are
# not listed (norm scales, biases of D, adapters) are whole on each device.
_RULES = {
  ('embedder', 'embedding'): ((-2,), (-1,)),  # V, D
  ('lm_head', 'kernel'): ((-2,), (-1,)),  # V, D
  ('qkv', 'kernel'): ((-4, -3), (-1,)),  # K or else G + 2, D
  ('qkv', 'bias'): ((-3, -2), ()),  # K or else G + 2
  ('o', 'kernel'): ((-2,), (-3,)),  # N, D
  ('router', 'kernel'): ((), (-1,)),  # D
  ('gate_up', 'kernel'): ((-2,), (-1,)),  # F, D
  ('gate_up', 'bias'): ((-1,), ()),  # F
  ('down', 'kernel'): ((-1,), (-2,)),  # F, D
}


def param_shardings(params: Any, mesh: Mesh) -> Any:
  """The sharding of each parameter, by its path.

  `tensor` splits heads (K, or the G + 2 rows of each where K does not divide;
  N for the output), F and V; `fsdp` splits D. Leading axes of a scan over
  layers and of experts stay whole.

  Args:
    params: tree as the model reads it, of arrays or `ShapeDtypeStruct`s,
      unrolled or scanned.
    mesh: of `make_mesh`.

  Returns:
    The same tree, of `NamedSharding`; fit for `load_params(shardings=...)`.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: NamedSharding(mesh, _param_spec(_names(path), x, mesh)),
    params,
  )


def state_shardings(state: Any, mesh: Mesh) -> Any:
  """The sharding of each leaf of a train state.

  A leaf belongs to the parameter whose path is part of its own path. With the
  same shape (moments, moving averages) it has the same sharding. With one axis
  less (Adafactor's factors), that axis is left out. With an axis of another
  length (scales of 8-bit moments, one per block of D), it is split along the
  axes that still divide. Leaves of another rank (scales of all values in a row)
  are split over fsdp along their first axis. Everything else (counts, keys) is
  replicated.

  Args:
    state: TrainState or any pytree with the attribute `params`, of arrays or
      `ShapeDtypeStruct`s (`jax.eval_shape` gives them without memory).
    mesh: of `make_mesh`.

  Returns:
    The same tree, of `NamedSharding`.
  """
  params = {
    _names(path): (leaf.shape, _param_spec(_names(path), leaf, mesh))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
  }

  def place(path, leaf):
    owner = _owner(_names(path), params)
    spec = PartitionSpec()
    if owner is not None:
      spec = _mirrored(leaf.shape, *params[owner], mesh)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(place, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows (the first axis) over data and fsdp, the rest whole."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
  """Host arrays [B, ...] -> global arrays with their rows over the mesh.

  Each process gives the whole batch and copies only the rows of its own
  devices, so that the order of the data does not depend on the number of
  processes.

  Raises:
    ValueError: the mesh does not divide B (`check_batch` says so earlier).
  """
  sharding = batch_sharding(mesh)

  def put(x):
    x = np.asarray(x)
    return jax.make_array_from_process_local_data(sharding, x, x.shape)

  return jax.tree.map(put, batch)


def _names(path) -> tuple[str, ...]:
  """A key path as strings: dict keys, attributes and indices alike."""
  names = []
  for key in path:
    for field in ('key', 'name', 'idx'):
      if hasattr(key, field):
        names.append(str(getattr(key, field)))
        break
  return tuple(names)


def _param_spec(names, leaf, mesh: Mesh) -> PartitionSpec:
  axes = [None] * len(leaf.shape)
  rule = _RULES.get(names[-2:], ((), ()))
  for mesh_axis, candidates in zip(('tensor', 'fsdp'), rule, strict=True):
    size = mesh.shape[mesh_axis]
    for axis in candidates:
      if size > 1 and leaf.shape[axis] % size == 0:
        axes[axis] = mesh_axis
        break
  return PartitionSpec(*axes)


def _owner(names, params) -> tuple[str, ...] | None:
  """The longest parameter path that is a part of `names`."""
  for length in range(len(names), 0, -1):
    for start in range(len(names) - length + 1):
      part = names[start : start + length]
      if part in params:
        return part
  return None


def _mirrored(shape, param_shape, spec, mesh: Mesh) -> PartitionSpec:
  """The place of a leaf that belongs to a parameter."""
  if shape == param_shape:
    return spec
  for axis in range(len(param_shape)):
    if shape == (*param_shape[:axis], *param_shape[axis + 1 :]):
      return PartitionSpec(*spec[:axis], *spec[axis + 1 :])
  if len(shape) == len(param_shape):
    return PartitionSpec(
      *[
        name if name and size % mesh.shape[name] == 0 else None
        for size, name in zip(shape, spec, strict=True)
      ]
    )
  size = mesh.shape['fsdp']
  whole = all(part is None for part in spec)
  if whole or size == 1 or not shape or shape[0] % size:
    return PartitionSpec()
  return PartitionSpec('fsdp')
