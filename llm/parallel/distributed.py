"""Several processes of one run, one per host."""

import os
from typing import Any, Mapping

import jax
from jax.experimental import multihost_utils
import numpy as np

from llm.errors import UserError

# What the launchers that JAX knows set in each of several processes.
_COUNTS = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
_OWN = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


def initialize(environ: Mapping[str, str] = os.environ) -> bool:
  """Joins the other processes of the run, if the environment names any.

  Either `JAX_COORDINATOR_ADDRESS` (host:port), `JAX_NUM_PROCESSES` and
  `JAX_PROCESS_ID` are set, or the process was started by Slurm's srun, Open
  MPI's mpirun or on a slice of several TPU hosts, which JAX detects. Without
  either, or the second time, nothing happens. To be called before JAX looks
  for devices.

  Returns:
    True if the run has several processes.

  Raises:
    UserError: only some of the three variables are set, or they are wrong.
  """
  if jax.distributed.is_initialized():
    return jax.process_count() > 1
  if any(name in environ for name in _OWN):
    address, count, process = _own_settings(environ)
    if count > 1:
      jax.distributed.initialize(address, count, process)
    return count > 1
  hosts = environ.get('TPU_WORKER_HOSTNAMES', '')
  several = any(int(environ.get(name) or 1) > 1 for name in _COUNTS)
  if several or ',' in hosts:
    jax.distributed.initialize()
    return True
  return False


def is_writer() -> bool:
  """True in the one process that writes logs, metrics and exports."""
  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """True in all processes if `flag` is True in any of them.

  Every process has to call it, at the same place: each waits for the others.
  """
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(np.array(flag)).any())


def to_host(tree: Any) -> Any:
  """The whole arrays of a tree, as NumPy arrays in every process.

  Every process has to call it. An array that is split over processes is
  gathered on each device for a moment, one array after the other.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)

  def fetch(x):
    if x.is_fully_addressable:
      return jax.device_get(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(fetch, tree)


def _own_settings(environ) -> tuple[str, int, int]:
  missing = [name for name in _OWN if name not in environ]
  if missing:
    raise UserError(
      f'{", ".join(missing)} not set: a run of several processes needs '
      f'{", ".join(_OWN)}; a run of one needs none of them'
    )
  address, count, process = (environ[name] for name in _OWN)
  numbers = count.isdecimal() and process.isdecimal()
  if not numbers or not int(process) < int(count):
    raise UserError(
      f'JAX_PROCESS_ID={process!r}, JAX_NUM_PROCESSES={count!r}: use a number '
      'of processes and, in each of them, its own number, counted from 0'
    )
  return address, int(count), int(process)
