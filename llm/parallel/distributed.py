"""Several processes of one run, one per host."""

import os
from typing import Mapping

import jax

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
