"""Whether a run may write the folders of `export` and `lora.export`.

They are checked before anything is read: a run of days does not find at its
end that it may not write them. Nothing here needs JAX.
"""

import os

from llm.checkpoints.hf.folder import weight_files
from llm.errors import UserError
from llm.runs.checks import check_folder

_ADAPTERS = ('adapter_config.json', 'adapter_model.safetensors')


def check_exports(config, workdir: str) -> None:
  """Refuses folders that cannot be written at the end of the run.

  A folder may be new, empty, or hold an earlier export.

  Args:
    config: of the run.
    workdir: of the run.

  Raises:
    UserError: `export` or `lora.export` cannot be written, is in use, or holds
      something else.
  """
  fields = {'export': config.export, 'lora.export': config.lora.export}
  taken = {'the workdir': workdir, 'model.path': config.model.path}
  if 'teacher' in config:
    taken['teacher.path'] = config.teacher.path
  for field, path in fields.items():
    if path is None:
      continue
    if not path:
      raise UserError(f"{field}='': name a folder, or leave it unset")
    where = f'{field}={path!r}'
    for name, other in taken.items():
      if other is not None and os.path.realpath(other) == os.path.realpath(
        path
      ):
        raise UserError(f'{where}: is {name} too; name a folder of its own')
    taken[field] = path
    check_folder(where, path)
  if config.export is not None:
    if _others(config.export) and not weight_files(config.export):
      raise UserError(_foreign('export', config.export))
  if config.lora.export is not None:
    names = _others(config.lora.export)
    if names and not set(names) & set(_ADAPTERS):
      raise UserError(_foreign('lora.export', config.lora.export))


def _others(path: str) -> list[str]:
  """Files of a folder, without those that an interrupted export left."""
  names = sorted(os.listdir(path)) if os.path.isdir(path) else []
  return [name for name in names if not name.endswith('.tmp')]


def _foreign(field: str, path: str) -> str:
  return (
    f'{field}={path!r}: is not empty and holds no earlier export '
    f'({_others(path)[0]}, …); name a new folder'
  )
