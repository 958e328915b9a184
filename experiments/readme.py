"""The parts of README.md and HISTORY.md that are made from results.csv."""

import os
from typing import Any, NamedTuple, Sequence

from llm.evals.intervals import mean_interval
from llm.sweeps import report

BEGIN, END = '<!-- results -->', '<!-- end of results -->'


def write_section(
  folder: str, out_dir: str, text: str, details: str = ''
) -> None:
  """Writes both parts, if out_dir is the experiment's own `results`.

  Results that go elsewhere (`--workdir`), such as a trial of toy size, leave
  the files as they are; both parts are then in `summary.md`.

  Args:
    folder: the experiment's, with the two marks in README.md, and in HISTORY.md
      if there are details.
    out_dir: where the results are.
    text: markdown of README.md: the claim's numbers, in at most six rows.
    details: markdown of HISTORY.md: all other tables.
  """
  parts = {'README.md': text} | ({'HISTORY.md': details} if details else {})
  own = os.path.join(folder, 'results')
  if not os.path.exists(own) or not os.path.samefile(own, out_dir):
    path = os.path.join(out_dir, 'summary.md')
    with open(path, 'w', encoding='utf-8') as file:
      file.write('\n'.join(parts.values()))
    return
  for name, part in parts.items():
    path = os.path.join(folder, name)
    with open(path, encoding='utf-8') as file:
      before, _, rest = file.read().partition(BEGIN)
    after = rest.partition(END)[2]
    with open(path, 'w', encoding='utf-8') as file:
      file.write(f'{before}{BEGIN}\n{part}{END}{after}')


def read_section(folder: str, name: str = 'README.md') -> str:
  """Returns what is between the marks of a file in the folder."""
  with open(os.path.join(folder, name), encoding='utf-8') as file:
    rest = file.read().partition(f'{BEGIN}\n')[2]
  return rest.partition(END)[0]


class Goal(NamedTuple):
  """A number that must show, in words; `reached` is one bool or several."""

  what: str
  goal: str
  measured: str
  reached: bool | tuple[bool, ...]


def goal_table(goals: Sequence[Goal]) -> str:
  """Returns a markdown table with one row for each goal."""
  lines = []
  for *cells, reached in goals:
    each = reached if isinstance(reached, tuple) else (reached,)
    each = each[:1] if len(set(each)) == 1 else each
    words = ['yes' if one else 'no' for one in each]
    lines.append((*cells, '; '.join(words)))
  return table(('number', 'goal', 'measured', 'reached'), lines)


def join(what: str, goals: Sequence[Goal]) -> Goal:
  """Returns several goals as one row, in the same order in each cell.

  A goal that all of them share stands there once.
  """
  each = [one.goal for one in goals]
  return Goal(
    what,
    each[0] if len(set(each)) == 1 else '; '.join(each),
    '; '.join(one.measured for one in goals),
    tuple(one.reached for one in goals),
  )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a markdown table of ready text."""
  lines = [header, ['---'] * len(header), *rows]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def mean(rows: Sequence[report.Record], name: str, digits: int = 2) -> str:
  """Returns the mean of a column with its 95% interval, as text."""
  value, half = mean_interval([row[name] for row in rows])
  text = f'{value:,.{digits}f}'
  return text if len(rows) < 2 else f'{text} ± {half:,.{digits}f}'


def cost_line(rows: Sequence[report.Record]) -> str:
  """Says on what machine the runs ran and how long that took."""
  cores = sorted({row['machine.cores'] for row in rows})
  loads = [row['machine.load'] for row in rows]
  minutes = sum(row['wall_s'] for row in rows) / 60
  return (
    f'{_count(len(rows), "run")}, {minutes:.1f} minutes in all, each on '
    f'{" or ".join(map(str, cores))} {"core" if cores == [1] else "cores"} of '
    f'{_name(rows[0]["machine.cpu"])}. Load of the machine before the runs: '
    f'{min(loads):.1f} to {max(loads):.1f}.\n'
  )


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}' + ('' if number == 1 else 's')


def _name(cpu: Any) -> str:
  return f'"{cpu}"'
