"""Tables and figure of the comparison, from results.csv alone."""

import os
from typing import Sequence

import matplotlib.pyplot as plt

from experiments import readme
from llm.evals.intervals import mean_interval
from llm.sweeps import report

FOLDER = os.path.dirname(os.path.abspath(__file__))
# Set before the first run.
LEAST_RATIO, AIMED_RATIO = 1.0, 1.3
MOST_HOST_MS = 2.0
MOST_APART = 1e-4
NAMES = {
  'ours': 'llm-jax',
  'transformers': 'transformers, AdamW',
  'transformers_fused': 'transformers, fused AdamW',
}
_COLORS = dict(zip(NAMES, ('#c44e52', '#4c72b0', '#8da9d0')))
_SPLIT = {
  'step_ms': 'a step of the run, without saving',
  'data_ms': 'of it, the host gets the batch',
  'compute_ms': 'of it, the rest: the compiled step',
  'save_blocks_ms': 'a checkpoint: the run waits',
  'host_ms': 'a step that computes nothing: the host alone',
}


def analyze(csv_path: str, out_dir: str) -> None:
  """Writes the parts of README.md and HISTORY.md, and speed.png."""
  rows = report.read_csv(csv_path)
  readme.write_section(FOLDER, out_dir, section(rows), details(rows))
  _draw(rows, os.path.join(out_dir, 'speed.png'))


def section(rows: Sequence[report.Record]) -> str:
  """Returns the README's part: the claim's numbers and the cost."""
  apart = max(row['losses.apart'] for row in rows)
  versions = ', '.join(
    f'{name} {rows[0][f"versions.{name}"]}'
    for name in ('jax', 'torch', 'transformers')
    if rows[0].get(f'versions.{name}')
  )
  return '\n'.join(
    (
      _goal_table(rows),
      f'Control: over the first {rows[0]["losses.steps"]} steps the losses of '
      f'all systems are at most {apart:.1e} apart (goal: {MOST_APART:.0e}); '
      f'they go from {readme.mean(rows, "losses.first", 3)} to '
      f'{readme.mean(rows, "losses.last", 3)}.\n',
      f'{readme.cost_line(rows)}Versions: {versions}.\n',
    )
  )


def details(rows: Sequence[report.Record]) -> str:
  """Returns the tables of HISTORY.md."""
  return '\n'.join((_speed_table(rows), _split_table(rows)))


def _goal_table(rows) -> str:
  lines = []
  group = [row for row in rows if row.get('ratio.median') is not None]
  if group:
    value, _ = mean_interval([row['ratio.median'] for row in group])
    least = min(row['ratio.least'] for row in group)
    most = max(row['ratio.most'] for row in group)
    for goal in (LEAST_RATIO, AIMED_RATIO):
      lines.append(
        [
          'tokens/s, llm-jax / transformers',
          f'≥ {goal}',
          readme.mean(group, 'ratio.median'),
          f'{least:.2f} to {most:.2f}',
          'yes' if value >= goal else 'no',
        ]
      )
  values = [row['split.host_ms'] for row in rows]
  host, _ = mean_interval(values)
  lines.append(
    [
      'host, ms a step',
      f'≤ {MOST_HOST_MS}',
      readme.mean(rows, 'split.host_ms'),
      f'{min(values):.2f} to {max(values):.2f}',
      'yes' if host <= MOST_HOST_MS else 'no',
    ]
  )
  header = ('what', 'goal', 'measured', 'least to most', 'reached')
  return readme.table(header, lines)


def _speed_table(rows) -> str:
  lines = [
    [
      name,
      readme.mean(rows, f'{system}.tokens_per_s', 0),
      f'{min(row[f"{system}.least"] for row in rows):,.0f} to '
      f'{max(row[f"{system}.most"] for row in rows):,.0f}',
    ]
    for system, name in NAMES.items()
    if rows[0].get(f'{system}.tokens_per_s') is not None
  ]
  return readme.table(('system', 'tokens/s', 'least to most'), lines)


def _split_table(rows) -> str:
  lines = [
    [name, readme.mean(rows, f'split.{column}')]
    for column, name in _SPLIT.items()
  ]
  return readme.table(('llm-jax', 'ms'), lines)


def _draw(rows, path: str) -> None:
  figure, axis = plt.subplots(figsize=(5, 3.4), layout='constrained')
  systems = [s for s in NAMES if rows[0].get(f'{s}.tokens_per_s') is not None]
  for place, system in enumerate(systems):
    value, _ = mean_interval([row[f'{system}.tokens_per_s'] for row in rows])
    least = min(row[f'{system}.least'] for row in rows)
    most = max(row[f'{system}.most'] for row in rows)
    axis.bar(place, value, color=_COLORS[system])
    axis.vlines(place, least, most, color='black')
    axis.annotate(
      f'{value:,.0f}',
      (place, most),
      (0, 4),
      textcoords='offset points',
      ha='center',
    )
  axis.set_xticks(
    range(len(systems)), [NAMES[s].replace(', ', ',\n') for s in systems]
  )
  axis.set_ylabel('tokens per second')
  axis.spines[['top', 'right']].set_visible(False)
  figure.savefig(path, dpi=150)
  plt.close(figure)
