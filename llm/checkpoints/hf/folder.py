"""The files of a Hugging Face model folder: which they are, and their JSON."""

from collections.abc import Callable
import glob
import json
import os
import re

from llm.checkpoints import torch_files
from llm.checkpoints.tensor_files import TensorInfo, read_header
from llm.errors import UserError

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
TORCH, TORCH_INDEX = 'pytorch_model.bin', 'pytorch_model.bin.index.json'
Header = tuple[dict[str, TensorInfo], list[str]]
_MAX_LISTED = 5


def read_json(path: str) -> dict:
  """A file that holds one JSON object."""
  try:
    with open(path, encoding='utf-8') as file:
      value = json.load(file)
  except FileNotFoundError:
    raise UserError(f'{path}: no such file: is this a model folder?') from None
  except OSError as error:
    raise UserError(
      f'{path}: cannot be read ({error.strerror}): check what it is and its '
      'permissions'
    ) from None
  except json.JSONDecodeError as error:
    raise UserError(
      f'{path}: not valid JSON ({error}): fix it at line {error.lineno}, or '
      'download it again'
    ) from None
  except (ValueError, RecursionError) as error:
    raise UserError(
      f'{path}: not valid JSON ({error}): download it again'
    ) from None
  if not isinstance(value, dict):
    raise UserError(
      f'{path}: holds a {type(value).__name__}, not an object: download it '
      'again'
    )
  return value


def write_json(path: str, name: str, value: dict) -> None:
  """Writes a file whole under another name, then renames it."""
  target = os.path.join(path, name)
  with open(f'{target}.tmp', 'w', encoding='utf-8') as file:
    json.dump(value, file, indent=2, sort_keys=True)
    file.write('\n')
  os.replace(f'{target}.tmp', target)


def weight_files(path: str) -> list[str]:
  """The files of a save, by their names."""
  names = (SINGLE, INDEX, 'model-[0-9]*-of-[0-9]*.safetensors')
  return [
    file
    for name in names
    for file in glob.glob(os.path.join(glob.escape(path), name))
  ]


def read_headers(path: str) -> tuple[dict[str, TensorInfo], list[str]]:
  """Every tensor of the folder, and what is wrong with its files.

  Raises:
    UserError: there are no weights, or no index that says where they are.
  """
  single, index = os.path.join(path, SINGLE), os.path.join(path, INDEX)
  if os.path.exists(single):
    return read_header(single)
  if os.path.exists(index):
    return _indexed(path, index, read_header)
  shards = _shards(path, 'model', 'safetensors')
  if shards:
    return _joined(shards, read_header)
  single, index = os.path.join(path, TORCH), os.path.join(path, TORCH_INDEX)
  if os.path.exists(single):
    return torch_files.read_header(single)
  if os.path.exists(index):
    return _indexed(path, index, torch_files.read_header)
  shards = _shards(path, 'pytorch_model', 'bin')
  if shards:
    return _joined(shards, torch_files.read_header)
  raise UserError(
    f'{path}: none of {SINGLE}, {INDEX}, {TORCH} and {TORCH_INDEX}, nor shards '
    f'of these names (it has {_weights_like(path)}): download the weights of '
    'the model, or convert it to safetensors'
  )


def _shards(path: str, stem: str, suffix: str) -> list[str]:
  """Shards without an index, in order; [] where there are none.

  Raises:
    UserError: one is missing, or two saves lie in the folder.
  """
  pattern = re.compile(rf'{stem}-(\d+)-of-(\d+)\.{suffix}')
  found = [m for n in sorted(os.listdir(path)) if (m := pattern.fullmatch(n))]
  totals = {int(match[2]) for match in found}
  if len(totals) > 1:
    raise UserError(
      f'{path}: has shards of {" and of ".join(map(str, sorted(totals)))}'
      ' files and no index that says which: remove those of the other save'
    )
  numbers = [int(match[1]) for match in found]
  for number in range(1, max(totals, default=0) + 1):
    if number not in numbers:
      raise UserError(
        f'{path}: shard {number} of {max(totals)} is missing: download it'
      )
  return [os.path.join(path, match[0]) for match in found]


def _joined(
  files: list[str], read: Callable[[str], Header]
) -> tuple[dict[str, TensorInfo], list[str]]:
  """The tensors of shards without an index; each may be in one of them."""
  infos, problems = {}, []
  for file in files:
    found, wrong = read(file)
    problems += wrong
    problems += [
      f'{name}: is in {infos[name].file} and in {file}: remove one of the two'
      for name in found
      if name in infos
    ]
    infos |= found
  return infos, problems


def _weights_like(path: str) -> str:
  """The files of a folder that look like weights, for messages."""
  suffixes = ('.safetensors', '.bin', '.pt', '.pth', '.gguf', '.msgpack', '.h5')
  names = [n for n in sorted(os.listdir(path)) if n.endswith(suffixes)]
  more = len(names) - _MAX_LISTED
  return ', '.join(names[:_MAX_LISTED]) + f' and {more} more' * (more > 0) or (
    'no weights'
  )


def _indexed(
  path: str, index: str, read: Callable[[str], Header]
) -> tuple[dict[str, TensorInfo], list[str]]:
  """The tensors of shards with an index."""
  weight_map = read_json(index).get('weight_map')
  if not isinstance(weight_map, dict) or not all(
    isinstance(name, str) for name in weight_map.values()
  ):
    raise UserError(f'{index}: has no valid weight_map: download it again')
  for name in weight_map.values():
    if os.path.isabs(name) or os.pardir in name.split('/'):
      raise UserError(
        f'{index}: names {name!r}, which is outside of the folder: download '
        'it again'
      )
  infos, problems = {}, []
  for name in sorted(set(weight_map.values())):
    file = os.path.join(path, name)
    if not os.path.exists(file):
      problems.append(
        f'{file}: named by {os.path.basename(index)} but missing: download it'
      )
      continue
    found, wrong = read(file)
    infos.update(found)
    problems += wrong
    if found:
      problems += [
        f'{tensor}: {os.path.basename(index)} says it is in {file}, and it is '
        'not: download both again'
        for tensor, where in weight_map.items()
        if where == name and tensor not in found
      ]
  return infos, problems


def listed(path: str, problems: list[str]) -> str:
  """One message for one or several problems; very many are cut short."""
  if len(problems) == 1:
    return problems[0]
  shown = [f'\n  {problem}' for problem in problems[:_MAX_LISTED]]
  more = len(problems) - len(shown)
  tail = f'\n  and {more} more' if more else ''
  return f'{path}: {len(problems)} problems:{"".join(shown)}{tail}'
