"""Reading config files and the flags that change them.

A config file defines `get_config(arg=None)` and returns an
`ml_collections.ConfigDict`. It is a path, or the name of a config of this
project (`--config=quickstart`, found by `find_config`). Bundles of settings
are chosen after a colon (`--config=quickstart:smoke,seed=3`, read by
`parse_arg`), single fields by their full name (`--config.sampling.top_p=0.9`,
read by `override_config`). Every name is checked: a typo is refused with the
nearest name that exists.
"""

import difflib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import types
from typing import Any, Iterable, Sequence

from absl import flags
import ml_collections
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from llm.errors import UserError

# The types a flag can set, in words for messages.
_KIND_NAMES = {
  bool: 'true or false',
  int: 'a whole number',
  float: 'a number',
  str: 'a text',
  tuple: "a tuple, such as '(1, 2)'",
  ml_collections.ConfigDict: """a dict, such as '{"key": 1}'""",
}
_TRUE, _FALSE = ('true', '1', 'yes'), ('false', '0', 'no')


def nearest(name: str, names: Iterable[str]) -> str | None:
  """Returns the one of `names` that `name` was most likely meant to be.

  The last part of a dotted name counts as much as the whole, so that `top_p`
  finds `sampling.top_p`. Ties go to the first in alphabetical order.
  """

  def likeness(other: str) -> float:
    pairs = ((name, other), (name.split('.')[-1], other.split('.')[-1]))
    return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

  return max(sorted(names), key=likeness, default=None)


def hint(name: str, names: Iterable[str], prefix: str = '') -> str:
  """Returns '; did you mean X?', or nothing where there are no names."""
  guess = nearest(name, names)
  return f'; did you mean {prefix}{guess}?' if guess else ''


def parse_arg(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
  """Reads the part of `--config=FILE:ARG` after the colon.

  Trace: `parse_arg('smoke,seed=3', smoke=False, seed=0)` gives
  `SimpleNamespace(smoke=True, seed=3)`.

  Args:
    arg: comma-separated `key=value`, or `key` alone for a bool; or None.
    **defaults: every key that is allowed, with its default. The type of the
      default (bool, int, float or str) is the type of the value.

  Returns:
    A namespace with one attribute for each default.

  Raises:
    UserError: an unknown key, or a value of another type.
  """
  values = dict(defaults)
  for item in arg.split(',') if arg else ():
    key, equals, text = item.strip().partition('=')
    if key not in defaults:
      remedy = hint(key, defaults) or '; this config takes none'
      raise UserError(f'unknown config argument {key!r} in ":{arg}"{remedy}')
    kind = type(defaults[key])
    try:
      values[key] = _parse_value(kind, text if equals else 'true')
    except ValueError:
      raise UserError(
        f'config argument {item.strip()!r} in ":{arg}": {key} takes '
        f'{_KIND_NAMES[kind]} (by default {defaults[key]!r})'
      ) from None
    if not equals and kind is not bool:
      raise UserError(
        f'config argument {key!r} in ":{arg}" needs a value: {key}=...'
      )
  return types.SimpleNamespace(**values)


def load_module(path: str, what: str) -> types.ModuleType:
  """Runs a Python file by path.

  Raises:
    UserError: there is no such file. What the file itself raises passes
      through, with its traceback.
  """
  if not os.path.isfile(path):
    raise UserError(f'{what} {path!r}: no such file')
  stem = re.sub(r'\W', '_', os.path.abspath(path))
  spec = importlib.util.spec_from_file_location(f'_file{stem}', path)
  if spec is None:
    raise UserError(f'{what} {path!r}: not a Python file (*.py)')
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses look their module up there
  spec.loader.exec_module(module)
  return module


def find_config(name: str) -> str:
  """The file of a config: that of this project with the name, or a path.

  Raises:
    UserError: there is neither.
  """
  # In an installation they lie inside of the package, in a checkout beside it.
  package = pathlib.Path(__file__).parent
  folder = package / 'configs'
  folder = folder if folder.is_dir() else package.parent / 'configs'
  ours = {path.stem: str(path) for path in folder.glob('*.py')}
  if name in ours:
    return ours[name]
  if os.path.isfile(name):
    return name
  remedy = hint(pathlib.Path(name).stem, ours, '--config=')
  raise UserError(
    f'--config {name!r}: no such file, nor a config of llm-jax{remedy}'
  )


def load_config(spec: str) -> ml_collections.ConfigDict:
  """Returns the locked config of `FILE` or `FILE:ARG`.

  Args:
    spec: FILE is what `find_config` takes.

  Raises:
    UserError: no such file, no `get_config` in it, or an argument it refuses.
  """
  name, colon, arg = spec.partition(':')
  path = find_config(name)
  module = load_module(path, '--config')
  get_config = getattr(module, 'get_config', None)
  if get_config is None:
    raise UserError(f'--config {path!r}: the file defines no get_config(arg)')
  if colon and not inspect.signature(get_config).parameters:
    raise UserError(f'--config {spec!r}: its get_config takes no argument')
  config = get_config(arg) if colon else get_config()
  return config.lock()


def field_names(config: ml_collections.ConfigDict) -> list[str]:
  """Returns the dotted names of all fields, an empty sub-dict being one."""
  names = []
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict) and len(value):
      names.extend(f'{key}.{name}' for name in field_names(value))
    else:
      names.append(key)
  return names


def check_field(config: ml_collections.ConfigDict, name: str) -> None:
  """Refuses a dotted name that is no single field of the config."""
  names = field_names(config)
  if name in names:
    return
  inside = [other for other in names if other.startswith(f'{name}.')]
  if inside:
    raise UserError(
      f'--config.{name} is a group of fields: set them one by one '
      f'(--config.{inside[0]}=...)'
    )
  raise UserError(
    f'unknown field --config.{name}{hint(name, names, "--config.")}'
  )


def override_config(
  config: ml_collections.ConfigDict, args: Sequence[str]
) -> None:
  """Applies flags `--config.field=value` to the config, in place.

  Args:
    config: a locked config.
    args: command-line arguments without the program's name; nothing but
      overrides of this config may be among them.

  Raises:
    UserError: an unknown field or flag, or a value of the wrong type.
  """
  for arg in args:
    match = re.match(r'--?(?:no)?config\.([^=]+)', arg)
    if match:
      check_field(config, match[1])
      _check_settable(config, match[1])
  values = flags.FlagValues()
  values.set_gnu_getopt()
  try:
    config_flags.DEFINE_config_dict(
      'config', config, flag_values=values, sys_argv=list(args)
    )
    rest = values(['launch.py', *args])
  except flags.IllegalFlagValueError as error:
    raise UserError(_wrong_value(config, str(error))) from None
  except flags.Error as error:
    raise UserError(str(error)) from None
  if len(rest) > 1:
    raise UserError(f'unexpected argument {rest[1]!r}: flags begin with --')


def format_override(name: str, value: Any) -> str:
  """Returns the flag that sets a field: the inverse of `override_config`."""
  if isinstance(value, bool):
    value = str(value).lower()
  elif isinstance(value, float):
    value = repr(float(value))  # NumPy's own repr names its type
  elif not isinstance(value, str):
    value = repr(value)
  return f'--config.{name}={value}'


def _check_settable(config: ml_collections.ConfigDict, name: str) -> None:
  kind = config_path.get_type(name, config)
  if kind not in _KIND_NAMES:
    raise UserError(
      f'--config.{name} holds a {kind.__name__}, which no flag can set: '
      'change the config file'
    )


def _wrong_value(config: ml_collections.ConfigDict, message: str) -> str:
  """Says which type a field takes, from absl's message about the flag."""
  match = re.match(r'flag --config\.([^=]+)=(.*?): ', message, re.DOTALL)
  if not match:
    return message
  name, text = match.groups()
  kind = config_path.get_type(name, config)
  now = config_path.get_value(name, config)
  is_now = 'it is unset' if now is None else f'its value is {now!r}'
  return (
    f'--config.{name}={text}: the field takes {_KIND_NAMES[kind]} ({is_now})'
  )


def _parse_value(kind: type, text: str) -> Any:
  if kind is bool:
    if text.lower() not in _TRUE + _FALSE:
      raise ValueError(text)
    return text.lower() in _TRUE
  return kind(text)
