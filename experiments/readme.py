"""The part of an experiment's README that is made from its results.csv."""

import os
from typing import Any, Sequence

from llm.sweeps import report

BEGIN, END = '<!-- results -->', '<!-- end of results -->'


def write_section(folder: str, out_dir: str, text: str) -> None:
  """Writes the part, where out_dir is the experiment's own `results`.

  Results that go elsewhere (`--workdir`), such as a trial of toy size, leave
  the README as it is and have the text in `summary.md`.

  Args:
    folder: the experiment's, with a README.md that has the two marks.
    out_dir: where the results are.
    text: markdown.
  """
  own = os.path.join(folder, 'results')
  if not os.path.exists(own) or not os.path.samefile(own, out_dir):
    path = os.path.join(out_dir, 'summary.md')
    with open(path, 'w', encoding='utf-8') as file:
      file.write(text)
    return
  path = os.path.join(folder, 'README.md')
  with open(path, encoding='utf-8') as file:
    before, _, rest = file.read().partition(BEGIN)
  after = rest.partition(END)[2]
  with open(path, 'w', encoding='utf-8') as file:
    file.write(f'{before}{BEGIN}\n{text}{END}{after}')


def read_section(folder: str) -> str:
  """Returns what is between the marks of the folder's README."""
  with open(os.path.join(folder, 'README.md'), encoding='utf-8') as file:
    rest = file.read().partition(f'{BEGIN}\n')[2]
  return rest.partition(END)[0]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a markdown table of ready text."""
  lines = [header, ['---'] * len(header), *rows]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def mean(rows: Sequence[report.Row], name: str, digits: int = 2) -> str:
  """Returns the mean of a column with its 95% interval, as text."""
  value, half = report.mean_interval([row[name] for row in rows])
  text = f'{value:,.{digits}f}'
  return text if len(rows) < 2 else f'{text} ± {half:,.{digits}f}'


def cost_line(rows: Sequence[report.Row]) -> str:
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
