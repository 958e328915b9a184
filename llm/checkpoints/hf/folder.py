"""The files of a Hugging Face model folder: which they are, and their JSON."""

import glob
import json
import os

from llm.checkpoints.tensor_files import TensorInfo, read_header
from llm.errors import UserError

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
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
  if not os.path.exists(index):
    raise UserError(
      f'{path}: neither {SINGLE} nor {INDEX}: download the safetensors files '
      'of the model, or convert it to them'
    )
  weight_map = read_json(index).get('weight_map')
  if not isinstance(weight_map, dict) or not all(
    isinstance(name, str) for name in weight_map.values()
  ):
    raise UserError(f'{index}: has no valid weight_map: download it again')
  infos, problems = {}, []
  for name in sorted(set(weight_map.values())):
    file = os.path.join(path, name)
    if not os.path.exists(file):
      problems.append(f'{file}: named by {INDEX} but missing: download it')
      continue
    found, wrong = read_header(file)
    infos.update(found)
    problems += wrong
    if found:
      problems += [
        f'{tensor}: {INDEX} says it is in {file}, and it is not: download '
        'both again'
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
