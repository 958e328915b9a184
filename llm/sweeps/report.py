"""What a sweep found: results.csv, a table of means, the figures.

`gather` reads the folders of the runs; all the rest works from the csv alone.
"""

import csv
import json
import math
import os
from typing import Any, Iterable, Mapping, Sequence

from llm import config_args
from llm.errors import UserError
from llm.evals.intervals import mean_interval

Record = dict[str, Any]


def gather(runs: Iterable[Any]) -> list[Record]:
  """Returns one row for each finished run, in the order of the sweep.

  A row has the run's name as `run`, its overrides as `config.<field>`, its
  `result.json` with nested objects as dotted names, then the process's seconds
  as `wall_s`.

  Args:
    runs: `executors.Run`s; those without a `DONE` file are left out.

  Raises:
    UserError: a result has the name of one of those columns.
  """
  rows = []
  for run in runs:
    if not os.path.exists(run.done_path):
      continue
    with open(run.result_path, encoding='utf-8') as file:
      result = _flatten(json.load(file))
    with open(run.done_path) as file:
      wall_s = float(file.read())
    row = {'run': run.id} | {f'config.{k}': v for k, v in run.overrides.items()}
    taken = result.keys() & (row.keys() | {'wall_s'})
    if taken:
      raise UserError(
        f'{run.result_path}: {min(taken)!r} is the name of another column; '
        'call it something else'
      )
    rows.append(row | result | {'wall_s': wall_s})
  return rows


def rebuild(folder: str, out_dir: str) -> None:
  """Makes the table and the figures of an experiment from its csv alone.

  Args:
    folder: the experiment's; the figures are those of its `analyze.py`, whose
      `analyze(csv_path, out_dir)` is called where that file exists.
    out_dir: has `results.csv`; `table.md` and the figures go there too. The
      table has a row for each setting but the seed, with means over seeds.

  Raises:
    UserError: no csv, or an analyze.py without that function.
  """
  csv_path = os.path.join(out_dir, 'results.csv')
  rows = read_csv(csv_path)
  by = [
    name
    for name in (rows[0] if rows else ())
    if name.startswith('config.') and name.split('.')[-1] != 'seed'
  ]
  with open(os.path.join(out_dir, 'table.md'), 'w', encoding='utf-8') as file:
    file.write(markdown_table(summarize(rows, by)))
  path = os.path.join(folder, 'analyze.py')
  if not os.path.exists(path):
    return
  import matplotlib

  matplotlib.use('Agg')  # figures are files: no display is needed
  module = config_args.load_module(path, 'analysis')
  if not callable(getattr(module, 'analyze', None)):
    raise UserError(f'{path}: defines no analyze(csv_path, out_dir)')
  module.analyze(csv_path, out_dir)


def write_csv(path: str, rows: Sequence[Record]) -> None:
  """Writes rows; a column that a row lacks is empty there."""
  columns = {name: None for row in rows for name in row}
  columns['wall_s'] = columns.pop('wall_s', None)  # last, whatever came first
  with open(f'{path}.partial', 'w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, list(columns), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
  os.replace(f'{path}.partial', path)


def read_csv(path: str) -> list[Record]:
  """Reads rows back: numbers as int or float, empty as None, the rest as text.

  Raises:
    UserError: there is no such file.
  """
  if not os.path.exists(path):
    raise UserError(f'{path}: no results yet; run the sweep without --report')
  with open(path, newline='', encoding='utf-8') as file:
    return [
      {name: _parse(text) for name, text in row.items()}
      for row in csv.DictReader(file)
    ]


def summarize(rows: Sequence[Record], by: Sequence[str]) -> list[Record]:
  """Groups rows by some columns and takes means of all that are numbers.

  Args:
    rows: as `read_csv` returns them.
    by: columns whose values make a group, in the order of the result.

  Returns:
    One row for each group, in order of first appearance: the `by` columns, `n`
    (rows in it), then for each result that is a number in every row a pair
    `(mean, half-width of the 95% interval)`.
  """
  groups: dict[tuple, list[Record]] = {}
  for row in rows:
    groups.setdefault(tuple(row.get(name) for name in by), []).append(row)
  names = {name: None for row in rows for name in row}
  numeric = [
    name
    for name in names
    if name not in (*by, 'run')
    and not name.startswith('config.')
    and all(_is_number(row.get(name)) for row in rows)
  ]
  return [
    dict(zip(by, key))
    | {'n': len(group)}
    | {name: mean_interval([r[name] for r in group]) for name in numeric}
    for key, group in groups.items()
  ]


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns rows as a markdown table; pairs are written `mean ± half-width`."""
  columns = list({name: None for row in rows for name in row})
  lines = [columns, ['---'] * len(columns)]
  lines += [[_cell(row.get(name)) for name in columns] for row in rows]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _cell(value: Any) -> str:
  if isinstance(value, tuple):
    mean, half = value
    return _cell(mean) + ('' if math.isnan(half) else f' ± {half:.2g}')
  if isinstance(value, float):
    return f'{value:.4g}'
  return '' if value is None else str(value).replace('|', r'\|')


def _flatten(value: Mapping[str, Any], prefix: str = '') -> Record:
  flat = {}
  for name, item in value.items():
    if isinstance(item, dict):
      flat |= _flatten(item, f'{prefix}{name}.')
    else:
      flat[prefix + name] = item
  return flat


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _parse(text: str) -> Any:
  if text == '':
    return None
  if text in ('True', 'False'):
    return text == 'True'
  for kind in (int, float):
    try:
      return kind(text)
    except ValueError:
      pass
  return text
