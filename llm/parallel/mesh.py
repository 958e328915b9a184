"""The mesh of devices, and the batch sizes that it can take."""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax

from llm.errors import UserError
from llm.parallel.checks import AXES, check_mesh, check_microbatch


def make_mesh(config: Any, devices: Any = None) -> jax.sharding.Mesh:
  """The devices as a grid [data, fsdp, tensor].

  Trace: 8 devices with data=-1, fsdp=2, tensor=1 give the shape (4, 2, 1).

  Args:
    config: `data`, `fsdp`, `tensor`: devices along each axis. One of them may
      be -1: the devices that the other two leave.
    devices: default: all devices of all processes.

  Returns:
    A mesh of automatic axes: the compiler adds the communication.

  Raises:
    UserError: a field is no whole number of at least 1 (or one -1), or the
      fields do not multiply to the number of devices.
  """
  check_mesh(config)
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  sizes = {name: getattr(config, name) for name in AXES}
  said = ', '.join(f'mesh.{name}={size}' for name, size in sizes.items())
  free = [name for name, size in sizes.items() if size == -1]
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if count % fixed or (not free and count != fixed):
    need = 'must divide' if free else 'must be'
    raise UserError(
      f'{said}: the product {fixed} {need} the number of devices, {count}'
      + ('' if free else '; set mesh.data=-1 to use all of them')
    )
  for name in free:
    sizes[name] = count // fixed
  return jax.make_mesh(
    tuple(sizes.values()),
    AXES,
    # Since 0.9 JAX's default is explicit axes, which need annotations in the
    # model; with automatic ones the model is the same on one device.
    axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
    devices=devices,
  )


def check_batch(
  batch_size: int, microbatch_size: int | None, mesh: jax.sharding.Mesh
) -> int:
  """The number of microbatches of a step, if the sizes fit the mesh.

  Args:
    batch_size: rows of one optimizer step over all devices.
    microbatch_size: rows of one forward and backward pass over all devices;
      None or 0: the whole batch.
    mesh: of `make_mesh`. Rows are spread over its data and fsdp axes.

  Raises:
    UserError: a size is below 1, the microbatch does not divide the batch, or
      the mesh does not divide the microbatch.
  """
  check_microbatch(batch_size, microbatch_size)
  rows = microbatch_size or batch_size
  shards = mesh.shape['data'] * mesh.shape['fsdp']
  if rows % shards:
    name = 'microbatch_size' if microbatch_size else 'batch_size'
    raise UserError(
      f'train.{name}={rows}: use a multiple of {shards}, for mesh.data='
      f'{mesh.shape["data"]} times mesh.fsdp={mesh.shape["fsdp"]} devices '
      'share its rows'
    )
  return batch_size // rows


def on_mesh(function: Callable, mesh: jax.sharding.Mesh) -> Callable:
  """The function, called with the mesh in context.

  Without it the model cannot pin its activations (`models.placement`): results
  are the same, but devices fetch each other's rows. Wrap the result of
  `jax.jit` in it.
  """

  @functools.wraps(function)
  def call(*args, **kwargs):
    with jax.set_mesh(mesh):
      return function(*args, **kwargs)

  return call
