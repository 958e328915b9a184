"""Tables and figure of training on real text, from results.csv alone."""

import os
from typing import Sequence

import matplotlib.pyplot as plt

from experiments import readme
from llm.evals.intervals import mean_interval
from llm.sweeps import report

FOLDER = os.path.dirname(os.path.abspath(__file__))
LOSS_GOAL, SECONDS_GOAL, EOS_GOAL = 1.88, 300, 0.95
BYTE_RUNS = {
  'adamw': 'AdamW',
  'muon': 'Muon',
  'shuffled': 'AdamW, shuffled bytes',
}
NAMES = {
  'stories': 'pretrained, before fine-tuning',
  'pretrained': 'fine-tuned from it',
  'fresh': 'fine-tuned from random weights',
}
_COLORS = {
  'adamw': '#c44e52',
  'muon': '#4c72b0',
  'shuffled': '#8c8c8c',
  'pretrained': '#c44e52',
  'fresh': '#8c8c8c',
}


def analyze(csv_path: str, out_dir: str) -> None:
  """Writes the parts of README.md and HISTORY.md, and learning.png."""
  rows = report.read_csv(csv_path)
  readme.write_section(FOLDER, out_dir, section(rows), details(rows))
  _draw(rows, os.path.join(out_dir, 'learning.png'))


def section(rows: Sequence[report.Record]) -> str:
  """Returns the README's part: the claim's numbers and the cost."""
  loss, seconds, shuffled, step, ended, ended_before, fresh = _goals(rows)
  what = 'completions that end by themselves, %: after fine-tuning; before'
  goals = (
    loss,
    seconds,
    shuffled,
    step,
    readme.join(f'{what} (control)', (ended, ended_before)),
    fresh,
  )
  return f'{readme.goal_table(goals)}\n{readme.cost_line(rows)}'


def details(rows: Sequence[report.Record]) -> str:
  """Returns the tables of HISTORY.md, each goal by itself first."""
  return '\n'.join(
    (
      readme.goal_table(_goals(rows)),
      _bytes_table(rows),
      _instructions_table(rows),
    )
  )


def byte_runs(rows: Sequence[report.Record], name: str) -> list[report.Record]:
  """Returns the runs on bytes: 'adamw', 'muon' or 'shuffled'."""
  fields = ('muon', 'shuffled')
  return [
    row
    for row in rows
    if row['config.part'] == 'bytes'
    and all(
      bool(row.get(f'config.bytes.{field}')) == (field == name)
      for field in fields
    )
  ]


def tuning_runs(rows: Sequence[report.Record]) -> list[report.Record]:
  """Returns the runs on instructions."""
  return [row for row in rows if row['config.part'] == 'instructions']


def curve(row: report.Record, prefix: str) -> list[tuple[int, float]]:
  """Held-out losses of a run as (step, nats), in order."""
  points = [
    (int(name.removeprefix(prefix)), value)
    for name, value in row.items()
    if name.startswith(prefix) and value is not None
  ]
  return sorted(points)


def largest_rise(row: report.Record) -> float:
  """The greatest change from one point of the first epoch to the next.

  Below 0 the held-out loss falls monotonically.
  """
  losses = [
    loss
    for step, loss in curve(row, 'pretrained.curve.')
    if step <= row['steps_per_epoch']
  ]
  return max(after - before for before, after in zip(losses, losses[1:]))


def _goals(rows) -> list[readme.Goal]:
  real, tuned = byte_runs(rows, 'adamw'), tuning_runs(rows)
  shuffled = byte_runs(rows, 'shuffled')
  loss = mean_interval([row['eval_loss'] for row in real])
  seconds = mean_interval([row['seconds'] for row in real])
  above = [row['eval_loss'] - row['entropy'] for row in shuffled]
  rises = [largest_rise(row) for row in tuned]
  return [
    readme.Goal(
      'held-out loss on Shakespeare, nats per byte',
      f'≤ {LOSS_GOAL}',
      _pair(loss, 3),
      loss[0] <= LOSS_GOAL,
    ),
    readme.Goal(
      'seconds for it, everything included',
      f'≤ {SECONDS_GOAL}',
      _pair(seconds, 0),
      seconds[0] <= SECONDS_GOAL,
    ),
    readme.Goal(
      'the same loss on shuffled bytes, above their entropy (control)',
      '≥ 0',
      _pair(mean_interval(above), 3),
      min(above) >= 0,
    ),
    readme.Goal(
      'largest step of the completion loss in the first epoch, nats',
      '< 0 in each run',
      f'{max(rises):.3f}',
      max(rises) < 0,
    ),
    readme.Goal(
      'completions that end by themselves, %',
      f'≥ {100 * EOS_GOAL:.0f}',
      _percent(tuned, 'pretrained.eos_share'),
      _mean(tuned, 'pretrained.eos_share') >= EOS_GOAL,
    ),
    readme.Goal(
      'the same before fine-tuning (control), %',
      f'< {100 * EOS_GOAL:.0f}',
      _percent(tuned, 'stories.eos_share'),
      _mean(tuned, 'stories.eos_share') < EOS_GOAL,
    ),
    readme.Goal(
      'completion loss from random weights, above that from stories (control)',
      '> 0 in each run',
      _pair(mean_interval(_gaps(tuned)), 3),
      min(_gaps(tuned)) > 0,
    ),
  ]


def _gaps(rows) -> list[float]:
  return [row['fresh.eval_loss'] - row['pretrained.eval_loss'] for row in rows]


def _bytes_table(rows) -> str:
  lines = []
  for name, text in BYTE_RUNS.items():
    group = byte_runs(rows, name)
    if group:
      lines.append(
        (
          text,
          readme.mean(group, 'eval_loss', 3),
          readme.mean(group, 'seconds', 0),
          readme.mean(group, 'tokens_per_s', 0),
        )
      )
  first = byte_runs(rows, 'adamw')[0]
  for n, loss in curve(first, 'ngrams.'):
    lines.append((f'counting, {n}-grams', f'{loss:.3f}', '', ''))
  header = ('Shakespeare, held out', 'nats per byte', 'seconds', 'tokens/s')
  return readme.table(header, lines)


def _instructions_table(rows) -> str:
  group = tuning_runs(rows)
  first = group[0]
  lines = []
  for key, text in NAMES.items():
    loss = f'{key}.eval_loss' if key != 'stories' else 'pretrained.curve.0'
    lines.append(
      (
        text,
        readme.mean(group, loss, 3),
        _percent(group, f'{key}.eos_share'),
        readme.mean(group, f'{key}.answer_tokens', 1),
        _percent(group, f'{key}.equal_share'),
        readme.mean(group, f'{key}.seconds', 0),
      )
    )
  header = (
    'instructions, held out',
    'nats per token',
    'ended by EOS, %',
    'tokens of a completion',
    'as in the data, %',
    'seconds',
  )
  return (
    readme.table(header, lines)
    + f'\nThe held-out completions have {first["fresh.wanted_tokens"]:.1f} '
    f'tokens, the longest {first["fresh.longest_wanted"]}. A token '
    f'covers {first["text.bytes_per_token"]:.1f} bytes of the instructions; '
    f'{100 * first["text.single_bytes"]:.0f}% of the tokens are single bytes. '
    'Pretraining ends with a held-out loss of '
    f'{readme.mean(group, "stories.eval_loss", 3)} nats per token on stories, '
    f'of {first["stories.tokens"] / 1e6:.1f}M tokens.\n'
  )


def _mean(rows, name: str) -> float:
  return mean_interval([row[name] for row in rows])[0]


def _percent(rows, name: str) -> str:
  values = [100 * row[name] for row in rows]
  return _pair(mean_interval(values), 1)


def _pair(interval: tuple[float, float], digits: int) -> str:
  value, half = interval
  text = f'{value:,.{digits}f}'
  return text if half != half else f'{text} ± {half:,.{digits}f}'


def _draw(rows, path: str) -> None:
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout='constrained')
  _draw_bytes(axes[0], rows)
  _draw_tuning(axes[1], tuning_runs(rows))
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
    axis.set_xlabel('step')
    axis.legend(frameon=False, fontsize=8)
  figure.savefig(path, dpi=150)
  plt.close(figure)


def _draw_bytes(axis, rows) -> None:
  for name, text in BYTE_RUNS.items():
    for i, row in enumerate(byte_runs(rows, name)):
      label = None if i else text
      axis.plot(*zip(*curve(row, 'curve.')), color=_COLORS[name], label=label)
  first = byte_runs(rows, 'adamw')[0]
  for n, loss in curve(first, 'ngrams.'):
    axis.axhline(loss, color='k', lw=0.5, ls=':')
    axis.annotate(
      f'{n}-gram',
      (1, loss),
      xycoords=('axes fraction', 'data'),
      fontsize=7,
      ha='right',
      va='bottom',
    )
  axis.set(title='bytes of Shakespeare', ylabel='held-out nats per byte')


def _draw_tuning(axis, rows) -> None:
  for name, text in (('pretrained', 'from stories'), ('fresh', 'from nothing')):
    for i, row in enumerate(rows):
      points = curve(row, f'{name}.curve.')
      label = None if i else text
      axis.plot(*zip(*points), '.-', color=_COLORS[name], label=label)
  axis.axvline(rows[0]['steps_per_epoch'], color='k', lw=0.5, ls=':')
  axis.annotate(
    'one epoch',
    (rows[0]['steps_per_epoch'], 0.02),
    xycoords=('data', 'axes fraction'),
    xytext=(3, 0),
    textcoords='offset points',
    fontsize=7,
  )
  axis.set(title='instructions', ylabel='held-out nats per token')
