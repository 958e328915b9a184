"""Tables and figure of arithmetic from rewards, from results.csv alone."""

import os
from typing import Sequence

import matplotlib.pyplot as plt

from experiments import readme
from llm.evals.intervals import mean_interval
from llm.sweeps import report

FOLDER = os.path.dirname(os.path.abspath(__file__))
BEFORE = (0.30, 0.50)  # pass@1 of the model that rewards begin with
PASS_GOAL, MINUTES_GOAL, RANDOM_GOAL = 0.90, 20, 0.02
GROWS, FLAT = 1.2, 0.15  # of the length of wrong completions, as a factor
NAMES = {
  'sft': 'fine-tuned',
  'exact': 'GRPO, reward of the right sum',
  'random': 'GRPO, random reward (control)',
  'grpo': 'GRPO',
  'dr_grpo': 'Dr.GRPO',
}
_COLORS = {
  'exact': '#c44e52',
  'random': '#8c8c8c',
  'grpo': '#c44e52',
  'dr_grpo': '#4c72b0',
}


def analyze(csv_path: str, out_dir: str) -> None:
  """Writes the parts of README.md and HISTORY.md, and rewards.png."""
  rows = report.read_csv(csv_path)
  readme.write_section(FOLDER, out_dir, section(rows))
  _draw(rows, os.path.join(out_dir, 'rewards.png'))


def section(rows: Sequence[report.Record]) -> str:
  """Returns the README's part: the claim's numbers and the cost."""
  *sums, grpo, dr_grpo, apart = _goals(rows)
  what = 'length of wrong completions over that before: GRPO; Dr.GRPO'
  goals = (*sums, readme.join(what, (grpo, dr_grpo)), apart)
  return f'{readme.goal_table(goals)}\n{readme.cost_line(rows)}'


def details(rows: Sequence[report.Record]) -> str:
  """Returns the tables of HISTORY.md, each goal by itself first."""
  return '\n'.join(
    (
      readme.goal_table(_goals(rows)),
      _addition_table(part(rows, 'addition')),
      _length_table(part(rows, 'length')),
    )
  )


def part(rows: Sequence[report.Record], name: str) -> list[report.Record]:
  """The runs of a part."""
  return [row for row in rows if row['config.part'] == name]


def curve(row: report.Record, run: str, name: str) -> list[tuple[int, float]]:
  """A metric of a run's training as (step, mean of the last steps)."""
  prefix = f'{run}.curve.{name}.'
  points = [
    (int(key.removeprefix(prefix)), value)
    for key, value in row.items()
    if key.startswith(prefix) and value is not None
  ]
  return sorted(points)


def growth(rows: Sequence[report.Record], run: str) -> list[float]:
  """Length of wrong completions after a run, over that before it."""
  return [row[f'{run}.length_wrong'] / row['sft.length_wrong'] for row in rows]


def _goals(rows) -> list[readme.Goal]:
  sums, lengths = part(rows, 'addition'), part(rows, 'length')
  before = [row['sft.pass_1'] for row in sums]
  after = [row['exact.pass_1'] for row in sums]
  minutes = [row['seconds'] / 60 for row in sums]
  lifted = [row['random.pass_1'] - row['sft.pass_1'] for row in sums]
  grpo, dr_grpo = growth(lengths, 'grpo'), growth(lengths, 'dr_grpo')
  apart = mean_interval([a - b for a, b in zip(grpo, dr_grpo)])
  flat = mean_interval(dr_grpo)
  low, high = BEFORE
  return [
    readme.Goal(
      'pass@1 on held-out sums after fine-tuning, %',
      f'{100 * low:.0f} to {100 * high:.0f} in each run',
      _percent(before),
      all(low <= value <= high for value in before),
    ),
    readme.Goal(
      'the same after GRPO, %',
      f'≥ {100 * PASS_GOAL:.0f} in each run',
      _percent(after),
      min(after) >= PASS_GOAL,
    ),
    readme.Goal(
      'minutes for both',
      f'≤ {MINUTES_GOAL} in each run',
      _pair(mean_interval(minutes), 1),
      max(minutes) <= MINUTES_GOAL,
    ),
    readme.Goal(
      'gain of pass@1 by a random reward (control), points',
      f'≤ {100 * RANDOM_GOAL:.0f}',
      _percent(lifted),
      max(lifted) <= RANDOM_GOAL,
    ),
    readme.Goal(
      'length of wrong completions, GRPO over before',
      f'≥ {GROWS}',
      _pair(mean_interval(grpo), 2),
      mean_interval(grpo)[0] >= GROWS,
    ),
    readme.Goal(
      'the same, Dr.GRPO',
      f'{1 - FLAT:.2f} to {1 + FLAT:.2f}',
      _pair(flat, 2),
      abs(flat[0] - 1) <= FLAT,
    ),
    readme.Goal(
      'GRPO less Dr.GRPO, pairs of equal seeds',
      '> 0 with its interval',
      _pair(apart, 2),
      apart[0] - apart[1] > 0,
    ),
  ]


def _addition_table(rows) -> str:
  lines = []
  for run in ('sft', 'exact', 'random'):
    lines.append(
      (
        NAMES[run],
        *(
          _percent([row[f'{run}.{name}'] for row in rows])
          for name in ('greedy', 'pass_1', 'pass_8')
        ),
        readme.mean(rows, f'{run}.seconds', 0),
      )
    )
  steps = ', '.join(f'{row["sft.steps"]:.0f}' for row in rows)
  header = ('additions', 'greedy, %', 'pass@1, %', 'pass@8, %', 'seconds')
  return (
    readme.table(header, lines)
    + f'\n{rows[0]["sft.parameters"]:,} parameters. Fine-tuning took {steps} '
    'steps. Groups of completions that differ in their rewards: '
    f'{_percent(_at(rows, "exact", "groups_with_signal", 0))}% in the first '
    f'steps, {_percent(_at(rows, "exact", "groups_with_signal", -1))}% in the '
    'last ones; entropy '
    f'{_pair(mean_interval(_at(rows, "exact", "entropy", 0)), 2)} and '
    f'{_pair(mean_interval(_at(rows, "exact", "entropy", -1)), 2)} nats '
    'per token.\n'
  )


def _length_table(rows) -> str:
  lines = []
  for run in ('sft', 'grpo', 'dr_grpo'):
    lines.append(
      (
        NAMES[run],
        _percent([row[f'{run}.pass_1'] for row in rows]),
        readme.mean(rows, f'{run}.length_wrong', 1),
        readme.mean(rows, f'{run}.length_right', 1),
        readme.mean(rows, f'{run}.length', 1),
        _percent([row[f'{run}.marks_tell'] for row in rows]),
        readme.mean(rows, f'{run}.seconds', 0),
      )
    )
  header = (
    'additions with a tail',
    'pass@1, %',
    'tokens of wrong completions',
    'of right ones',
    'of all',
    'marks tell, %',
    'seconds',
  )
  return readme.table(header, lines)


def _at(rows, run: str, name: str, index: int) -> list[float]:
  return [curve(row, run, name)[index][1] for row in rows]


def _percent(values: Sequence[float]) -> str:
  return _pair(mean_interval([100 * value for value in values]), 1)


def _pair(interval: tuple[float, float], digits: int) -> str:
  value, half = interval
  text = f'{value:,.{digits}f}'
  return text if half != half else f'{text} ± {half:,.{digits}f}'


def _draw(rows, path: str) -> None:
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout='constrained')
  panels = (
    ('addition', 'reward_mean', ('exact', 'random')),
    ('length', 'length_wrong', ('grpo', 'dr_grpo')),
  )
  for axis, (name, metric, runs) in zip(axes, panels):
    for run in runs:
      for i, row in enumerate(part(rows, name)):
        label = None if i else NAMES[run]
        points = zip(*curve(row, run, metric))
        axis.plot(*points, color=_COLORS[run], lw=1, label=label)
    axis.spines[['top', 'right']].set_visible(False)
    axis.set_xlabel('step')
    axis.legend(frameon=False, fontsize=8)
  axes[0].set(title='additions', ylabel='mean reward')
  axes[1].set(
    title='additions with a tail', ylabel='tokens of wrong completions'
  )
  figure.savefig(path, dpi=150)
  plt.close(figure)
