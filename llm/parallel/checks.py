"""What the fields of `config.mesh` and the batch sizes may be, whatever the
devices are; nothing here needs JAX.
"""

from typing import Any

from llm.errors import UserError

AXES = ('data', 'fsdp', 'tensor')


def check_mesh(config: Any) -> None:
  """Refuses axes other than whole numbers of at least 1 and a single -1.

  Args:
    config: `data`, `fsdp`, `tensor`: devices along each axis.
  """
  sizes = {name: getattr(config, name) for name in AXES}
  for name, size in sizes.items():
    whole = isinstance(size, int) and not isinstance(size, bool)
    if not whole or (size < 1 and size != -1):
      raise UserError(
        f'mesh.{name}={size!r}: use a number of devices of at least 1, or -1 '
        'for those that the other axes leave'
      )
  if list(sizes.values()).count(-1) > 1:
    said = ', '.join(f'mesh.{name}={size}' for name, size in sizes.items())
    raise UserError(f'{said}: only one axis can be -1, give the others')


def check_microbatch(batch_size: int, microbatch_size: int | None) -> None:
  """Refuses a microbatch that does not divide the batch.

  Args:
    batch_size: rows of one optimizer step over all devices.
    microbatch_size: rows of one forward and backward pass over all devices;
      None or 0: the whole batch.
  """
  if batch_size < 1:
    raise UserError(f'train.batch_size={batch_size}: use at least 1 row')
  if microbatch_size is not None and microbatch_size < 0:
    raise UserError(
      f'train.microbatch_size={microbatch_size}: use a number of rows, or 0 '
      'for the whole batch'
    )
  if microbatch_size and batch_size % microbatch_size:
    raise UserError(
      f'train.microbatch_size={microbatch_size}: it must divide '
      f'train.batch_size={batch_size}'
    )
