"""Table and figure of the comparison, from results.csv alone."""

import os
from typing import Sequence

import matplotlib.pyplot as plt

from experiments import readme
from llm.evals.intervals import mean_interval
from llm.sweeps import report

FOLDER = os.path.dirname(os.path.abspath(__file__))
# (batch size, phase, other system, least ratio), set before the first run.
GOALS = (
  (1, 'decode', 'transformers', 2.0),
  (1, 'decode', 'llama_cpp', 0.9),
  (8, 'decode', 'transformers', 2.0),
  (1, 'prefill', 'transformers', 1.0),
)
NAMES = {
  'ours': 'llm-jax',
  'transformers_dynamic': 'transformers, dynamic cache',
  'transformers_static': 'transformers, static cache',
  'llama_cpp': 'llama.cpp',
}
_COLORS = dict(zip(NAMES, ('#c44e52', '#4c72b0', '#8da9d0', '#55a868')))


def analyze(csv_path: str, out_dir: str) -> None:
  """Writes the parts of README.md and HISTORY.md, and speed.png."""
  rows = report.read_csv(csv_path)
  readme.write_section(FOLDER, out_dir, section(rows), details(rows))
  _draw(rows, os.path.join(out_dir, 'speed.png'))


def section(rows: Sequence[report.Record]) -> str:
  """Returns the README's part: the claim's numbers and the cost."""
  tokens = min(row['tokens.equal'] for row in rows)
  of = rows[0]['tokens.of']
  versions = ', '.join(
    f'{name} {rows[0][f"versions.{name}"]}'
    for name in ('jax', 'torch', 'transformers', 'llama_cpp_python')
    if rows[0].get(f'versions.{name}')
  )
  return '\n'.join(
    (
      _goal_table(rows),
      f'Control: in every run, the completions of all systems agree in their '
      f'first {tokens} of {of} tokens (goal: {of}); a row has at least '
      f'{min(row["tokens.distinct"] for row in rows)} different tokens.\n',
      f'{readme.cost_line(rows)}Versions: {versions}.\n',
    )
  )


def details(rows: Sequence[report.Record]) -> str:
  """Returns the table of HISTORY.md."""
  return _speed_table(rows)


def _goal_table(rows) -> str:
  lines = []
  for batch, phase, other, goal in GOALS:
    key = f'ratio.{phase}_vs_{other}'
    group = _group(rows, batch, key)
    line = [f'{phase}, B={batch}', f'llm-jax / {_short(other)}', f'≥ {goal}']
    if not group:
      lines.append([*line, 'not measured', '', ''])
      continue
    value, _ = mean_interval([row[key] for row in group])
    least = min(row[f'{key}_least'] for row in group)
    most = max(row[f'{key}_most'] for row in group)
    shown = 'yes' if value >= goal else 'no'
    spread = f'{least:.2f} to {most:.2f}'
    lines.append([*line, readme.mean(group, key), spread, shown])
  header = ('phase', 'ratio', 'goal', 'measured', 'least to most', 'reached')
  return readme.table(header, lines)


def _speed_table(rows) -> str:
  lines = []
  for batch in sorted({row['config.batch_size'] for row in rows}):
    for system, name in NAMES.items():
      group = _group(rows, batch, f'{system}.decode_tokens_per_s')
      if group:
        known = _group(group, batch, f'{system}.bandwidth_share')
        shares = [row[f'{system}.bandwidth_share'] for row in known]
        mean = f'{mean_interval(shares)[0]:.0%}' if shares else 'unknown'
        lines.append(
          [
            str(batch),
            name,
            readme.mean(group, f'{system}.prefill_tokens_per_s', 0),
            readme.mean(group, f'{system}.decode_tokens_per_s', 1),
            mean,
          ]
        )
  header = (
    'B',
    'system',
    'prefill tokens/s',
    'decode tokens/s',
    'share of bandwidth in decode',
  )
  measured = readme.mean(rows, 'bandwidth_gb_s', 1)
  note = f'\nMemory bandwidth, measured in the same runs: {measured} GB/s.\n'
  return readme.table(header, lines) + note


def _group(rows, batch, column):
  return [
    row
    for row in rows
    if row['config.batch_size'] == batch and row.get(column) is not None
  ]


def _short(other: str) -> str:
  return 'llama.cpp' if other == 'llama_cpp' else other


def _draw(rows, path: str) -> None:
  figure, axes = plt.subplots(
    1, 3, figsize=(10, 3), width_ratios=(4, 3, 4), layout='constrained'
  )
  panels = ((1, 'decode'), (8, 'decode'), (1, 'prefill'))
  for axis, (batch, phase) in zip(axes, panels):
    column = f'{phase}_tokens_per_s'
    systems = [s for s in NAMES if _group(rows, batch, f'{s}.{column}')]
    for place, system in enumerate(systems):
      group = _group(rows, batch, f'{system}.{column}')
      values = [row[f'{system}.{column}'] for row in group]
      value = mean_interval(values)[0]
      least = min(row[f'{system}.{phase}_least'] for row in group)
      most = max(row[f'{system}.{phase}_most'] for row in group)
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
      range(len(systems)),
      [NAMES[s].replace(', ', ',\n') for s in systems],
      fontsize=7,
    )
    axis.set_title(f'{phase}, {batch} {"row" if batch == 1 else "rows"}')
    axis.margins(y=0.15)
    axis.spines[['top', 'right']].set_visible(False)
  axes[0].set_ylabel('tokens per second')
  figure.savefig(path, dpi=120)
  plt.close(figure)
