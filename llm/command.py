"""Runs one task, or a sweep of them.

  llm-jax --config=generate --config.prompt="Once upon"
  llm-jax --config=quickstart:smoke --workdir=runs/quick
  llm-jax --config=my_configs/sft.py --workdir=runs/mine
  llm-jax --sweep=experiments/kv_cache/sweep.py
  llm-jax --sweep=experiments/kv_cache/sweep.py --report

A name is that of a config of llm-jax, a path that of your own file. Any field
of the config can be set by its full name: --config.a.b=value. In a checkout,
`python launch.py` is the same as llm-jax.
"""

import errno
import os
import sys
import warnings

from absl import flags

from llm import config_args
from llm.errors import RunError, UserError

# What the user named and can fix: a traceback would only hide it.
_BAD_PATH = (
  FileNotFoundError,
  IsADirectoryError,
  NotADirectoryError,
  PermissionError,
)


def main(argv: list[str]) -> int:
  """Does what the command line says.

  Args:
    argv: the path of the script that was started, then its arguments. A sweep
      starts its runs with the same script.

  Returns:
    The exit status; docs/running.md says what each means.
  """
  warnings.formatwarning = _one_line
  try:
    return _run(argv)
  except UserError as error:
    return _refuse(str(error))
  except _BAD_PATH as error:
    return _refuse(f'{error.filename}: {error.strerror}')
  except RunError as error:
    return _refuse(str(error), status=1)
  except OSError as error:
    if error.errno != errno.ENOSPC:
      raise
    where = f'{error.filename}: ' if error.filename else ''
    return _refuse(f'{where}{error.strerror}; make room there', status=1)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 130


def _run(argv: list[str]) -> int:
  values, overrides = _parse_flags(argv)
  if values.help:
    print(__doc__ + _describe(values))
    return 0
  if values.report and not values.sweep:
    raise UserError('--report rebuilds a sweep: add --sweep=.../sweep.py')
  if values.sweep:
    if values.config or overrides:
      extra = overrides[0] if overrides else f'--config={values.config}'
      raise UserError(
        f'{extra}: a sweep names its own config; change {values.sweep}'
      )
    from llm.sweeps import sweep

    return sweep.run(
      values.sweep,
      values.workdir,
      launcher=os.path.abspath(argv[0]),
      report_only=values.report,
    )
  if not values.config:
    raise UserError(
      'no --config: name one, such as --config=generate (--help shows more)'
    )
  config = config_args.load_config(values.config)
  config_args.override_config(config, overrides)
  from llm.tasks import run

  run.run_task(config, values.workdir)
  return 0


def _parse_flags(argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
  """Splits the command line into its own flags and `--config.*`."""
  values = flags.FlagValues()
  values.set_gnu_getopt()
  flags.DEFINE_string(
    'config',
    None,
    'name or file of a config, or NAME:ARG, FILE:ARG',
    flag_values=values,
  )
  flags.DEFINE_string(
    'workdir', None, 'folder for what the run writes', flag_values=values
  )
  flags.DEFINE_string(
    'sweep', None, 'sweep file to run instead of a config', flag_values=values
  )
  flags.DEFINE_boolean(
    'report', False, 'only rebuild the results of --sweep', flag_values=values
  )
  flags.DEFINE_boolean('help', False, 'show this text', flag_values=values)
  try:
    overrides = values(argv, known_only=True)[1:]
  except flags.Error as error:
    raise UserError(str(error)) from None
  for arg in overrides:
    name = arg.lstrip('-').split('=')[0]
    if arg.startswith('-') and not name.startswith(('config.', 'noconfig.')):
      remedy = config_args.hint(name, values, '--')
      raise UserError(f'unknown flag {arg.split("=")[0]}{remedy}')
  if overrides and not values.config and not values.sweep:
    raise UserError(f'{overrides[0]} needs --config=FILE')
  return values, overrides


def _describe(values: flags.FlagValues) -> str:
  lines = [f'  --{name:<9}{values[name].help}' for name in sorted(values)]
  if values.config:
    config = config_args.load_config(values.config)
    lines.append(f'\nFields of {values.config}:\n\n{config}')
  return '\nFlags:\n' + '\n'.join(lines)


def _one_line(message: Warning, *_, **__) -> str:
  """A warning in one line, without the source line that it comes from."""
  return f'warning: {" ".join(str(message).split())}\n'


def _refuse(message: str, status: int = 2) -> int:
  print('error:', ' '.join(message.split()), file=sys.stderr)
  return status
