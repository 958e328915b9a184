"""`launch.py --sweep=FILE`: many runs of one config, then their report.

A sweep file defines

  config = 'configs/quickstart.py:smoke'  # as after --config=
  parallel = 1                            # optional: processes at a time

  def sweep():
    yield from grid.product({'optim.lr': (1e-3, 3e-3), 'seed': range(3)})

and an `analyze.py` beside it may draw figures. Each run's task writes
`result.json` to its workdir (`llm.runs.outputs.write_result`).
"""

import copy
import os
import shlex
import sys
import time
import types
from typing import Callable, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llm import config_args
from llm.errors import UserError
from llm.sweeps import executors, grid, report

_REDRAW_S = 0.25
_STYLES = {
  executors.RUNNING: 'cyan',
  executors.DONE: 'green',
  executors.SKIPPED: 'dim',
  executors.FAILED: 'bold red',
}


def run(
  path: str, workdir: str | None, *, launcher: str, report_only: bool
) -> int:
  """Runs what is not done yet and reports on all of it.

  Args:
    path: the sweep file.
    workdir: where results go; by default the folder `results` beside the
      sweep file. Runs are in `runs/<id>` below it.
    launcher: the script that each run is started with, such as launch.py.
    report_only: start nothing; rebuild the report from `results.csv`.

  Returns:
    The exit status: 1 where a run failed, else 0.

  Raises:
    UserError: a sweep file or an override that is refused; nothing has been
      started then.
  """
  folder = os.path.dirname(path)
  out_dir = workdir or os.path.join(folder, 'results')
  module = _load(path)
  console = Console()
  failed: list[executors.Run] = []
  runs = plan(module, out_dir, launcher)
  csv_path = os.path.join(out_dir, 'results.csv')
  if not report_only:
    _execute(runs, getattr(module, 'parallel', 1), out_dir, console)
    failed = [run for run in runs if run.state == executors.FAILED]
    for run in failed:
      _print_failure(run, console)
    rows = report.gather(runs)
    if not rows:
      return 1
    report.write_csv(csv_path, rows)
  report.rebuild(folder, out_dir)
  found = {row['run'] for row in report.read_csv(csv_path)}
  for run in runs:
    if run.id not in found:
      console.print(
        f'not in results.csv: {run.id}', markup=False, soft_wrap=True
      )
  console.print(f'results: {out_dir}', highlight=False)
  return 1 if failed else 0


def plan(
  module: types.ModuleType, out_dir: str, launcher: str
) -> list[executors.Run]:
  """Returns the runs that a sweep file asks for, all of them checked.

  Raises:
    UserError: no runs, one of them twice, or an override that the config
      refuses.
  """
  config = config_args.load_config(module.config)
  runs: dict[str, executors.Run] = {}
  for overrides in module.sweep():
    name = grid.run_id(module.config, overrides)
    if name in runs:
      raise UserError(f'sweep() yields the same run twice: {overrides}')
    flags = [config_args.format_override(*item) for item in overrides.items()]
    config_args.override_config(copy.deepcopy(config), flags)
    workdir = os.path.join(out_dir, 'runs', name)
    command = [sys.executable, launcher, f'--config={module.config}', *flags]
    runs[name] = executors.Run(
      name, dict(overrides), workdir, [*command, f'--workdir={workdir}']
    )
  if not runs:
    raise UserError('sweep() yields no run: yield one dict of overrides each')
  return list(runs.values())


def _load(path: str) -> types.ModuleType:
  module = config_args.load_module(path, '--sweep')
  if not isinstance(getattr(module, 'config', None), str):
    raise UserError(f'{path}: needs config = "configs/NAME.py"')
  if not callable(getattr(module, 'sweep', None)):
    raise UserError(f'{path}: needs a function sweep() that yields overrides')
  parallel = getattr(module, 'parallel', 1)
  if not isinstance(parallel, int) or parallel < 1:
    raise UserError(f'{path}: parallel={parallel!r} must be a count from 1 up')
  return module


def _execute(
  runs: Sequence[executors.Run], parallel: int, out_dir: str, console: Console
) -> None:
  def on_wait():
    console.print(f'waiting: {out_dir} is in use by runs of another sweep')

  with executors.locked(os.path.join(out_dir, 'runs'), on_wait):
    if not console.is_terminal:
      executors.run_local(runs, parallel, _line_printer(console))
      return
    with Live(console=console, auto_refresh=False) as live:
      executors.run_local(runs, parallel, _table_drawer(runs, live, console))


def _line_printer(console: Console) -> Callable[[executors.Run | None], None]:
  """For logs and pipes: one line each time a run starts or ends."""

  def on_change(run):
    if run is not None:
      seconds = f' {run.wall_s:.1f}s' if run.wall_s else ''
      console.print(
        f'{run.state}{seconds}: {run.id}',
        markup=False,
        highlight=False,
        soft_wrap=True,
      )

  return on_change


def _table_drawer(
  runs: Sequence[executors.Run], live: Live, console: Console
) -> Callable[[executors.Run | None], None]:
  """For terminals: a table of all runs, redrawn in place."""
  drawn = 0.0

  def on_change(run):
    nonlocal drawn
    if run is None and time.monotonic() - drawn < _REDRAW_S:
      return
    drawn = time.monotonic()
    live.update(_table(runs, console.height - 6), refresh=True)

  return on_change


def _table(runs: Sequence[executors.Run], height: int) -> Table:
  """The runs in order; where they are too many, those nearest to the front."""
  counts = {
    state: sum(run.state == state for run in runs)
    for state in (executors.WAITING, *_STYLES)
  }
  table = Table(
    title=', '.join(f'{n} {state}' for state, n in counts.items() if n)
  )
  table.add_column('run', overflow='fold')
  table.add_column('state')
  table.add_column('time', justify='right')
  table.add_column('last line of its log', no_wrap=True, overflow='ellipsis')
  front = next(
    (i for i, run in enumerate(runs) if run.state == executors.RUNNING), 0
  )
  height = max(height, 5)
  start = max(0, min(front - height // 2, len(runs) - height))
  for run in runs[start : start + height]:
    live_log = run.state in (executors.RUNNING, executors.FAILED)
    last = executors.tail(run.log_path, 1) if live_log else []
    table.add_row(
      Text(run.id),
      Text(run.state, style=_STYLES.get(run.state, '')),
      f'{run.wall_s:.1f}s' if run.wall_s else '',
      Text(''.join(last)),
    )
  return table


def _print_failure(run: executors.Run, console: Console) -> None:
  console.print(
    f'\nfailed: {run.id} ({run.why}); the end of {run.log_path}:',
    *(f'  {line}' for line in executors.tail(run.log_path)),
    f'again: {shlex.join(run.command)}',
    sep='\n',
    markup=False,
    highlight=False,
    soft_wrap=True,
  )
