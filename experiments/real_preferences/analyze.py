"""Tables and figure of real preferences, from results.csv alone."""

import math
import os
from typing import Sequence

import matplotlib.pyplot as plt

from experiments import readme
from experiments.real_preferences import measure
from llm.evals.intervals import mean_interval, wilson_interval
from llm.sweeps import report

FOLDER = os.path.dirname(os.path.abspath(__file__))
GOALS = {'rasbt': 0.6, 'harmless': 0.5}  # for the interval's lower end
NAMES = {'rasbt': 'rasbt_preference', 'harmless': 'hh_rlhf_harmless'}
RUNS = {
  'reward': 'reward model',
  'control': 'reward model, shuffled labels (control)',
  'dpo': 'DPO',
}
_COLORS = {'reward': '#c44e52', 'control': '#8c8c8c', 'dpo': '#4c72b0'}
# What `load_pairs` leaves out, in words.
_LEFT_OUT = {
  'equal': 'equal answers',
  'empty': 'an empty answer',
  'emptied': 'a prompt that fills the row',
}


def analyze(csv_path: str, out_dir: str) -> None:
  """Writes the parts of README.md and HISTORY.md, and accuracy.png."""
  rows = report.read_csv(csv_path)
  readme.write_section(FOLDER, out_dir, section(rows), details(rows))
  _draw(rows, os.path.join(out_dir, 'accuracy.png'))


def section(rows: Sequence[report.Record]) -> str:
  """Returns the README's part: the claim's numbers and the cost."""
  *ends, rasbt_labels, harmless_labels, rasbt_margin, harmless_margin = _goals(
    rows
  )
  sets = '; '.join(NAMES.values())
  goals = (
    *ends,
    readme.join(
      f'accuracy with shuffled labels, % (control): {sets}',
      (rasbt_labels, harmless_labels),
    ),
    readme.join(
      f"least held-out margin of DPO's runs: {sets}",
      (rasbt_margin, harmless_margin),
    ),
  )
  return f'{readme.goal_table(goals)}\n{readme.cost_line(rows)}'


def details(rows: Sequence[report.Record]) -> str:
  """Returns the tables of HISTORY.md, each goal by itself first."""
  return '\n'.join(
    (
      readme.goal_table(_goals(rows)),
      _accuracy_table(rows),
      _dpo_table(rows),
      _pairs_table(rows) + _base_line(rows),
    )
  )


def pooled(
  rows: Sequence[report.Record], data: str, run: str
) -> tuple[float, float, float, int]:
  """Accuracy over the held-out pairs of all seeds.

  Returns:
    share, lower and upper end of its interval (95%, Wilson), pairs.
  """
  return _interval(rows, data, f'{data}.{run}.eval_reward_accuracy')


def ruler(
  rows: Sequence[report.Record], data: str
) -> tuple[str, tuple[float, float, float, int]]:
  """The better of two rules, that the longer or the shorter answer is better.

  Returns:
    its name and its `pooled` accuracy.
  """
  share, low, high, count = _interval(rows, data, f'{data}.held_out.longer')
  if share >= 0.5:
    return 'the longer answer (control)', (share, low, high, count)
  shorter = (1 - share, 1 - high, 1 - low, count)
  return 'the shorter answer (control)', shorter


def _interval(rows, data, name):
  counts = [row[f'{data}.held_out.pairs'] for row in rows]
  total = sum(counts)
  right = sum(row[name] * n for row, n in zip(rows, counts, strict=True))
  return right / total, *wilson_interval(right / total, total), total


def _goals(rows) -> list[readme.Goal]:
  goals = []
  for run in ('reward', 'dpo'):
    for data, goal in GOALS.items():
      share, low, high, _ = pooled(rows, data, run)
      goals.append(
        readme.Goal(
          f'{RUNS[run]}, {NAMES[data]}: lower end of the held-out accuracy, %',
          f'> {100 * goal:.0f}',
          f'{100 * low:.1f}',
          low > goal,
        )
      )
  for data in GOALS:
    values = [row[f'{data}.control.eval_reward_accuracy'] for row in rows]
    mean, half = mean_interval(values)
    goals.append(
      readme.Goal(
        f'shuffled labels, {NAMES[data]}: accuracy over the seeds (control), %',
        'has 50 in its interval',
        _pair((100 * mean, 100 * half), 1),
        math.isnan(half) or abs(mean - 0.5) <= half,
      )
    )
  for data in GOALS:
    margins = [row[f'{data}.dpo.eval_reward_margin'] for row in rows]
    goals.append(
      readme.Goal(
        f'DPO, {NAMES[data]}: least held-out margin of a run',
        '> 0',
        f'{min(margins):.3f}',
        min(margins) > 0,
      )
    )
  return goals


def _accuracy_table(rows) -> str:
  lines = []
  for data, name in NAMES.items():
    for run, text in RUNS.items():
      values = [row[f'{data}.{run}.eval_reward_accuracy'] for row in rows]
      mean, half = mean_interval(values)
      lines.append(
        (
          name,
          text,
          _span(pooled(rows, data, run)),
          _pair((100 * mean, 100 * half), 1),
          readme.mean(rows, f'{data}.{run}.eval_loss', 3),
          readme.mean(rows, f'{data}.{run}.loss', 3),
        )
      )
    rule, interval = ruler(rows, data)
    lines.append((name, rule, _span(interval), '', '', ''))
  header = (
    'data',
    'rated by',
    'held-out accuracy, %',
    'over seeds, %',
    'held-out loss',
    'last training loss',
  )
  return readme.table(header, lines)


def _dpo_table(rows) -> str:
  """Log-probabilities of whole answers, after less before, by data set."""
  lines = []
  for data, name in NAMES.items():
    changes = [
      mean_interval(
        [row[f'{data}.dpo.eval_{kind}_reward'] / measure.BETA for row in rows]
      )
      for kind in ('chosen', 'rejected')
    ]
    lines.append(
      (
        name,
        readme.mean(rows, f'{data}.dpo.eval_reward_margin', 3),
        *(_pair(change, 1) for change in changes),
      )
    )
  header = (
    'DPO, held out',
    'margin of the rewards (0 before)',
    'change of log π(chosen), nats',
    'of log π(rejected)',
  )
  return readme.table(header, lines)


def _pairs_table(rows) -> str:
  """Held-out pairs of all seeds: those of the whole file."""
  lines = []
  for data, name in NAMES.items():
    counts = {
      key: sum(row[f'{data}.held_out.{key}'] for row in rows)
      for key in ('rows', 'pairs', 'truncated', *_LEFT_OUT)
    }
    lines.append((name, *(f'{count:,}' for count in counts.values())))
  header = ('data', 'rows', 'pairs', 'of them cut', *_LEFT_OUT.values())
  return readme.table(header, lines)


def _base_line(rows) -> str:
  return (
    f'\n{rows[0]["sft.parameters"]:,} parameters. The model that all of them '
    'begin with has a held-out loss of '
    f'{readme.mean(rows, "sft.eval_loss", 2)} nats per token of a chosen '
    'completion.\n'
  )


def _span(interval) -> str:
  share, low, high, count = interval
  return (
    f'{100 * share:.1f} ({100 * low:.1f} to {100 * high:.1f}), {count:,} pairs'
  )


def _pair(interval: tuple[float, float], digits: int) -> str:
  value, half = interval
  text = f'{value:,.{digits}f}'
  return text if math.isnan(half) else f'{text} ± {half:,.{digits}f}'


def _draw(rows, path: str) -> None:
  figure, axes = plt.subplots(1, 2, figsize=(10, 3), layout='constrained')
  for axis, (data, name) in zip(axes, NAMES.items(), strict=True):
    for place, run in enumerate(RUNS):
      _draw_interval(axis, place, pooled(rows, data, run), _COLORS[run])
      values = [row[f'{data}.{run}.eval_reward_accuracy'] for row in rows]
      axis.plot(
        [100 * value for value in values],
        [place + 0.2] * len(values),
        '|',
        color=_COLORS[run],
        ms=7,
      )
    rule, interval = ruler(rows, data)
    _draw_interval(axis, len(RUNS), interval, 'k')
    axis.axvline(50, color='k', lw=0.5, ls=':')
    axis.set(title=name, xlabel='held-out pairs ordered right, %')
    labels = [text.replace(' (control)', '') for text in (*RUNS.values(), rule)]
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.spines[['top', 'right']].set_visible(False)
  figure.savefig(path, dpi=150)
  plt.close(figure)


def _draw_interval(axis, place, interval, color) -> None:
  share, low, high = (100 * value for value in interval[:3])
  axis.errorbar(
    share,
    place,
    xerr=[[share - low], [high - share]],
    fmt='o',
    color=color,
    capsize=3,
    ms=5,
  )
