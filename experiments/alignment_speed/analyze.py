"""Tables and figure of the comparison, from results.csv alone."""

import os
from typing import Sequence

import matplotlib.pyplot as plt

from experiments import readme
from llm.evals.intervals import mean_interval
from llm.sweeps import report

FOLDER = os.path.dirname(os.path.abspath(__file__))
# Set before the first run: by kind, the least ratio and the one aimed at.
GOALS = {'dpo': (1.2, 1.5), 'dpo_precomputed': (1.2, 1.5), 'grpo': (2.0, 3.0)}
MOST_APART = {'loss_apart': 1e-4, 'reward_apart': 0.02}
KINDS = {
  'dpo': 'DPO, reference in the step',
  'dpo_precomputed': 'DPO, reference precomputed',
  'grpo': 'GRPO with its rollout',
}
SYSTEMS = {
  'ours': 'llm-jax',
  'trl': 'TRL, AdamW',
  'trl_fused': 'TRL, fused AdamW',
}
_COLORS = dict(zip(SYSTEMS, ('#c44e52', '#4c72b0', '#8da9d0')))


def analyze(csv_path: str, out_dir: str) -> None:
  """Writes the parts of README.md and HISTORY.md, and speed.png."""
  rows = report.read_csv(csv_path)
  readme.write_section(FOLDER, out_dir, section(rows), details(rows))
  _draw(rows, os.path.join(out_dir, 'speed.png'))


def section(rows: Sequence[report.Record]) -> str:
  """Returns the README's part: the claim's numbers and the cost."""
  versions = ', '.join(
    f'{name} {rows[0][f"versions.{name}"]}'
    for name in ('jax', 'torch', 'transformers', 'trl')
    if rows[0].get(f'versions.{name}')
  )
  return '\n'.join(
    (
      _goal_table(rows),
      _control_line(rows),
      f'{readme.cost_line(rows)}Versions: {versions}.\n',
    )
  )


def details(rows: Sequence[report.Record]) -> str:
  """Returns the tables of HISTORY.md."""
  return '\n'.join((_step_table(rows), _control_table(rows)))


def of_kind(rows, kind: str) -> list[report.Record]:
  """The rows of one comparison."""
  return [row for row in rows if row['config.kind'] == kind]


def _goal_table(rows) -> str:
  lines = []
  for kind, name in KINDS.items():
    group = [
      row for row in of_kind(rows, kind) if row.get('ratio.median') is not None
    ]
    if not group:
      continue
    value, _ = mean_interval([row['ratio.median'] for row in group])
    least = min(row['ratio.least'] for row in group)
    most = max(row['ratio.most'] for row in group)
    goal, aim = GOALS[kind]
    lines.append(
      [
        name,
        f'≥ {goal} (aim {aim})',
        readme.mean(group, 'ratio.median'),
        f'{least:.2f} to {most:.2f}',
        'yes' if value >= goal else 'no',
      ]
    )
  header = ('a step', 'goal', 'llm-jax / TRL', 'least to most', 'reached')
  return readme.table(header, lines)


def _step_table(rows) -> str:
  lines = []
  for kind, name in KINDS.items():
    group = of_kind(rows, kind)
    if group:
      cells = [
        readme.mean(group, f'{system}.step_s')
        if group[0].get(f'{system}.step_s') is not None
        else ''
        for system in SYSTEMS
      ]
      lines.append([name, *cells])
  return readme.table(('seconds of a step', *SYSTEMS.values()), lines)


def _apart(rows, column: str) -> float:
  return max(row.get(f'control.{column}') or 0.0 for row in rows)


def _control_line(rows) -> str:
  losses, rewards = (_apart(rows, column) for column in MOST_APART)
  most = [f'{value:.0e}' for value in MOST_APART.values()]
  return (
    f'Control: the losses of all systems are at most {losses:.1e} apart (goal: '
    f'{most[0]}), the mean rewards of their rollouts {rewards:.1e} (goal: '
    f'{most[1]}).\n'
  )


def _control_table(rows) -> str:
  lines = []
  for kind, name in KINDS.items():
    group = of_kind(rows, kind)
    if not group:
      continue
    column = 'reward_apart' if kind == 'grpo' else 'loss_apart'
    what = 'reward' if kind == 'grpo' else 'loss'
    lines.append(
      [
        f'{name}: {what}',
        readme.mean(group, 'control.first', 4),
        readme.mean(group, 'control.last', 4),
        f'{_apart(group, column):.1e}',
        f'≤ {MOST_APART[column]:.0e}',
      ]
    )
  header = ('control', 'first step', 'last', 'systems apart', 'goal')
  return readme.table(header, lines)


def _draw(rows, path: str) -> None:
  kinds = [kind for kind in KINDS if of_kind(rows, kind)]
  figure, axes = plt.subplots(
    1, len(kinds), figsize=(3 * len(kinds), 3.5), layout='constrained'
  )
  for axis, kind in zip([axes] if len(kinds) == 1 else axes, kinds):
    group = of_kind(rows, kind)
    for place, system in enumerate(SYSTEMS):
      if group[0].get(f'{system}.step_s') is None:
        continue
      value, _ = mean_interval([row[f'{system}.step_s'] for row in group])
      axis.bar(place, value, color=_COLORS[system], label=SYSTEMS[system])
      axis.vlines(
        place,
        min(row[f'{system}.least_s'] for row in group),
        max(row[f'{system}.most_s'] for row in group),
        color='black',
      )
    axis.set_title(KINDS[kind], fontsize=9)
    axis.set_xticks([])
    axis.spines[['top', 'right']].set_visible(False)
  figure.axes[0].set_ylabel('seconds of a step')
  handles = figure.axes[0].get_legend_handles_labels()
  figure.legend(
    *handles, frameon=False, fontsize=8, ncols=3, loc='outside lower center'
  )
  figure.savefig(path, dpi=150)
  plt.close(figure)
