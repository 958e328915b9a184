"""Tables and figure of the exact frontier, from results.csv alone."""

import itertools
import os
import statistics
from typing import Sequence

import matplotlib.pyplot as plt
import numpy as np

from experiments import readme
from experiments.exact_frontier.measure import (
  BETA,
  BETAS,
  FLIPPED,
  GROUP_COEFS,
  KL_COEF,
  KL_COEFS,
  NOISE,
  OTHER_BETAS,
  PAIR_LOSSES,
  SAMPLES,
)
from llm.evals.intervals import mean_interval
from llm.sweeps import report

FOLDER = os.path.dirname(os.path.abspath(__file__))
RATIO_GOALS = {
  'dpo': 0.94,
  'rloo': 0.99,
  'ppo': 0.97,
  'grpo_corrected': 0.97,
  'grpo': 0.97,
}
BEST_GOAL = (0.93, 0.97)
CONTROL_GOAL = 0.05  # of the gain with right labels, or the true reward
ERRORS_GOAL = 2.0
NOISE_GOALS = {'robust_dpo': 'sure', 'cdpo': 'few'}  # where each is to lead
SETTINGS = {
  'dpo': BETAS,
  'dpo_few': BETAS,
  'rloo': KL_COEFS,
  'ppo': KL_COEFS,
  'grpo': GROUP_COEFS,
  'grpo_corrected': GROUP_COEFS,
  'fixed_grpo': GROUP_COEFS,
  'fixed_grpo_corrected': GROUP_COEFS,
  'best_of': SAMPLES,
}
NAMES = {
  'dpo': 'DPO',
  'dpo_few': 'DPO, 20,000 pairs',
  'cdpo': 'cDPO',
  'robust_dpo': 'robust DPO',
  'rpo': 'RPO',
  'rloo': 'RLOO',
  'ppo': 'PPO',
  'grpo': "GRPO, its paper's KL",
  'grpo_corrected': 'GRPO, KL times ratio',
  'fixed_grpo': "fixed point of GRPO, its paper's KL",
  'fixed_grpo_corrected': 'fixed point of GRPO, KL times ratio',
  'best_of': 'best of n',
}
_COLORS = {
  'dpo': '#c44e52',
  'dpo_few': '#937860',
  'cdpo': '#dd8452',
  'robust_dpo': '#4c72b0',
  'rloo': '#4c72b0',
  'ppo': '#55a868',
  'grpo': '#8172b3',
  'grpo_corrected': '#ccb974',
  'fixed_grpo': '#c8bfe0',
  'fixed_grpo_corrected': '#e6dcb4',
  'best_of': '#8c8c8c',
}
_NOISE_LINES = {'sure': '-', 'few': '--'}


def analyze(csv_path: str, out_dir: str) -> None:
  """Writes the parts of README.md and HISTORY.md, and frontier.png."""
  rows = report.read_csv(csv_path)
  readme.write_section(FOLDER, out_dir, section(rows), details(rows))
  _draw(rows, os.path.join(out_dir, 'frontier.png'))


def section(rows: Sequence[report.Record]) -> str:
  """Returns the README's part: the claim's numbers and the cost."""
  dpo, rloo, ppo, corrected, grpo = _ratio_goals(rows)
  shares = ', '.join(f'{100 * f:.0f}' for f in FLIPPED)
  what = 'lowest share of the frontier'
  goals = (
    readme.join(f'{what}: DPO; RLOO; PPO', (dpo, rloo, ppo)),
    readme.join(f"{what}: GRPO, KL × ratio; its paper's KL", (corrected, grpo)),
    _best_goal(rows),
    readme.join(
      f'{shares}% wrong labels, lead over DPO in standard errors: robust DPO '
      '("sure" labels); cDPO ("few")',
      _noise_goals(rows),
    ),
    readme.join(
      'change of the chosen log-probability, nats: DPO; RPO',
      _likelihood_goals(part(rows, 'likelihood')),
    ),
    readme.join(
      'share of the gain (controls): DPO on random labels; RLOO on permuted '
      'rewards',
      _control_goals(rows),
    ),
  )
  return f'{readme.goal_table(goals)}\n{readme.cost_line(rows)}'


def details(rows: Sequence[report.Record]) -> str:
  """Returns the tables of HISTORY.md, each goal by itself first."""
  goals = (
    *_ratio_goals(rows),
    _best_goal(rows),
    *_noise_goals(rows),
    *_likelihood_goals(part(rows, 'likelihood')),
    *_control_goals(rows),
  )
  return '\n'.join(
    (
      readme.goal_table(goals),
      _policy_table(rows),
      _best_table(part(rows, 'exact')),
      _noise_table(part(rows, 'noise')),
      _betas_table(rows),
      _likelihood_table(part(rows, 'likelihood')),
      _worlds_line(part(rows, 'exact')),
    )
  )


def part(rows: Sequence[report.Record], name: str) -> list[report.Record]:
  """Returns the rows of one part, a world each, in the order of their seeds."""
  found = [row for row in rows if row['config.part'] == name]
  return sorted(found, key=lambda row: row['config.seed'])


def policies(rows: Sequence[report.Record], name: str) -> list[report.Record]:
  """Returns the rows that have an algorithm's columns."""
  if name == 'best_of' or name.startswith('fixed'):
    return part(rows, 'exact')
  return part(rows, 'dpo' if name.startswith('dpo') else 'rl')


def extremes(
  rows: Sequence[report.Record], name: str, settings: Sequence[float]
) -> tuple[float, float]:
  """Smallest and largest share of the frontier, of means over the worlds."""
  group = policies(rows, name)
  means = [
    statistics.fmean(row[f'{name}_{setting}.ratio'] for row in group)
    for setting in settings
  ]
  return min(means), max(means)


def lead(
  rows: Sequence[report.Record], name: str, labels: str, flipped: float
) -> np.ndarray:
  """By how much a loss beats DPO where labels are wrong, in each world."""
  return np.array(
    [
      row[f'{labels}.{name}_{flipped}.ratio']
      - row[f'{labels}.dpo_{flipped}.ratio']
      for row in part(rows, 'noise')
    ]
  )


def standard_errors(values: Sequence[float]) -> float:
  """A mean in units of its standard error."""
  error = statistics.stdev(values) / len(values) ** 0.5
  return statistics.fmean(values) / error


def _ratio_goals(rows) -> list[readme.Goal]:
  """In the order of RATIO_GOALS."""
  goals = []
  for name, goal in RATIO_GOALS.items():
    settings = SETTINGS[name]
    low, _ = extremes(rows, name, settings)
    parameter = 'β' if name == 'dpo' else 'coefficient'
    what = (
      f'{NAMES[name]}, {parameter} {settings[0]} to {settings[-1]}: lowest '
      'share of the frontier'
    )
    goals.append(readme.Goal(what, f'≥ {goal}', f'{low:.3f}', low >= goal))
  return goals


def _best_goal(rows) -> readme.Goal:
  low, high = extremes(rows, 'best_of', SAMPLES)
  return readme.Goal(
    f'best of n, n = 2 to {SAMPLES[-1]}: share of the frontier',
    ' to '.join(map(str, BEST_GOAL)),
    f'{low:.3f} to {high:.3f}',
    BEST_GOAL[0] <= low and high <= BEST_GOAL[1],
  )


def _noise_goals(rows) -> list[readme.Goal]:
  goals = []
  shares = ', '.join(f'{100 * f:.0f}' for f in FLIPPED)
  for name, labels in NOISE_GOALS.items():
    errors = [standard_errors(lead(rows, name, labels, f)) for f in FLIPPED]
    goals.append(
      readme.Goal(
        f'{NAMES[name]} less DPO, "{labels}", {shares}% wrong labels: '
        'standard errors',
        f'≥ {ERRORS_GOAL:.0f}',
        ', '.join(f'{e:+.1f}' for e in errors),
        min(errors) >= ERRORS_GOAL,
      )
    )
  return goals


def _likelihood_goals(rows) -> list[readme.Goal]:
  falls = [row['dpo.chosen'] for row in rows]
  rises = [row['rpo.chosen'] for row in rows]
  what = 'change of the chosen log-probability under'
  return [
    readme.Goal(
      f'{what} DPO, nats',
      '< 0 in each world',
      _interval(falls, 2),
      max(falls) < 0,
    ),
    readme.Goal(
      f'{what} RPO, nats',
      '> 0 in each world',
      _interval(rises, 2),
      min(rises) > 0,
    ),
  ]


def _control_goals(rows) -> list[readme.Goal]:
  goals = []
  for name, control, what in (
    (f'dpo_{BETA}', 'coin', 'DPO on random labels'),
    (f'rloo_{KL_COEF}', 'permuted', 'RLOO with permuted rewards'),
  ):
    group = policies(rows, name.split('_')[0])
    shares = [row[f'{control}.gain'] / row[f'{name}.gain'] for row in group]
    goals.append(
      readme.Goal(
        f'{what}: gain over that with true ones (control)',
        f'< {CONTROL_GOAL}',
        _interval(shares, 3),
        mean_interval(shares)[0] < CONTROL_GOAL,
      )
    )
  return goals


def _policy_table(rows) -> str:
  lines = []
  for name in SETTINGS:
    if name == 'best_of':
      continue
    group = policies(rows, name)
    for setting in SETTINGS[name]:
      lines.append(
        (NAMES[name], str(setting), *_cells(group, f'{name}_{setting}'))
      )
  dpo, rl = part(rows, 'dpo'), part(rows, 'rl')
  lines.append(('DPO, random labels', str(BETA), *_cells(dpo, 'coin')))
  lines.append(
    ('RLOO, permuted rewards', str(KL_COEF), *_cells(rl, 'permuted'))
  )
  header = ('policy', 'β or coefficient', 'KL, nats', 'gain')
  return readme.table((*header, 'share of the frontier', 'least'), lines)


def _best_table(rows) -> str:
  lines = [
    (
      str(n),
      f'{rows[0][f"best_of_{n}.formula"]:.3f}',
      *_cells(rows, f'best_of_{n}', kl_digits=3),
    )
    for n in SAMPLES
  ]
  header = ('best of n', 'ln n - (n-1)/n', 'exact KL, nats', 'gain')
  return readme.table((*header, 'share of the frontier', 'least'), lines)


def _noise_table(rows) -> str:
  lines = []
  for labels, flipped, name in itertools.product(NOISE, FLIPPED, PAIR_LOSSES):
    values = lead(rows, name, labels, flipped)
    ahead = '' if name == 'dpo' else _interval(values, 3)
    cells = _cells(rows, f'{labels}.{name}_{flipped}')
    share = f'{100 * flipped:.0f}'
    lines.append((labels, share, NAMES[name], *cells[:3], ahead))
  header = ('labels', 'wrong, %', 'loss', 'KL, nats', 'gain')
  return readme.table((*header, 'share of the frontier', 'less DPO'), lines)


def behind_other_beta(
  rows: Sequence[report.Record], labels: str, flipped: float, beta: float
) -> list[float]:
  """Share of the loss that leads on these labels, less DPO's at this β.

  One number for each world in which DPO was trained at other β.
  """
  leader = next(name for name, home in NOISE_GOALS.items() if home == labels)
  led = {row['config.seed']: row for row in part(rows, 'noise')}
  return [
    led[row['config.seed']][f'{labels}.{leader}_{flipped}.ratio']
    - row[f'{labels}.dpo_{flipped}_{beta}.ratio']
    for row in part(rows, 'other_betas')
  ]


def _betas_table(rows) -> str:
  lines = []
  group = part(rows, 'other_betas')
  for labels, flipped in itertools.product(NOISE, FLIPPED):
    for beta in OTHER_BETAS[labels]:
      cells = _cells(group, f'{labels}.dpo_{flipped}_{beta}')
      ahead = _interval(behind_other_beta(rows, labels, flipped, beta), 3)
      share = f'{100 * flipped:.0f}'
      lines.append((labels, share, str(beta), *cells[:3], ahead))
  header = ('labels', 'wrong, %', 'β of DPO', 'KL, nats', 'gain')
  more = ('share of the frontier', 'robust DPO (sure) or cDPO (few) less it')
  return readme.table((*header, *more), lines)


def _likelihood_table(rows) -> str:
  lines = []
  for name in ('dpo', 'rpo'):
    changes = [
      [row[f'{name}.{which}'] for row in rows]
      for which in ('chosen', 'rejected')
    ]
    margins = [chosen - rejected for chosen, rejected in zip(*changes)]
    columns = (_interval(values, 2) for values in (*changes, margins))
    lines.append((NAMES[name], *columns, _cells(rows, name)[2]))
  header = (f'β = {BETA}, pairs that differ in the last token', 'chosen, nats')
  more = ('rejected, nats', 'margin, nats', 'share of the frontier')
  return readme.table((*header, *more), lines)


def _worlds_line(rows) -> str:
  entropy = [row['entropy'] for row in rows]
  largest = [row['largest_reward'] for row in rows]
  return (
    f'In {len(rows)} worlds ("exact") the reference has an entropy of '
    f'{min(entropy):.1f} to {max(entropy):.1f} nats, the best string a reward '
    f'of {min(largest):.1f} to {max(largest):.1f}.\n'
  )


def _cells(rows, name: str, kl_digits: int = 2) -> tuple[str, str, str, str]:
  """KL, gain and share with intervals, and the least share, as text."""
  ratios = [row[f'{name}.ratio'] for row in rows]
  return (
    readme.mean(rows, f'{name}.kl', kl_digits),
    readme.mean(rows, f'{name}.gain', 2),
    readme.mean(rows, f'{name}.ratio', 3),
    f'{min(ratios):.3f}',
  )


def _interval(values: Sequence[float], digits: int) -> str:
  mean, half = mean_interval(list(values))
  return f'{mean:.{digits}f} ± {half:.{digits}f}'


def _draw(rows, path: str) -> None:
  figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout='constrained')
  _draw_frontier(axes[0], rows)
  _draw_shares(axes[1], rows)
  _draw_noise(axes[2], rows)
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
  axes[0].legend(frameon=False, fontsize=8)  # the second's colours, too
  axes[1].set_ylim(0.7, 1.02)
  axes[2].set_ylim(0.2, 1.02)
  axes[2].legend(frameon=False, fontsize=8, loc='lower left')
  figure.savefig(path, dpi=150)
  plt.close(figure)


def _draw_frontier(axis, rows) -> None:
  first = part(rows, 'exact')[0]
  curve = sorted(
    (float(name.removeprefix('frontier_')), value)
    for name, value in first.items()
    if name.startswith('frontier_') and value is not None
  )
  axis.plot(*zip((0.0, 0.0), *curve), color='k', lw=1, label='frontier')
  for name, settings in SETTINGS.items():
    row = policies(rows, name)[0]
    points = [
      (row[f'{name}_{s}.kl'], row[f'{name}_{s}.gain']) for s in settings
    ]
    axis.plot(*zip(*points), '.', color=_COLORS[name], label=NAMES[name])
  axis.set(title='one world', xlabel='KL to the reference, nats', ylabel='gain')


def _draw_shares(axis, rows) -> None:
  for name, settings in SETTINGS.items():
    group = policies(rows, name)
    points = []
    for setting in settings:
      key = f'{name}_{setting}'
      kl = statistics.fmean(row[f'{key}.kl'] for row in group)
      ratios = [row[f'{key}.ratio'] for row in group]
      points.append((kl, *mean_interval(ratios)))
    x, y, half = zip(*sorted(points))
    axis.errorbar(
      x, y, half, fmt='.-', lw=1, color=_COLORS[name], label=NAMES[name]
    )
  axis.axhline(1.0, color='k', lw=1)
  axis.set(
    title='mean of all worlds',
    xlabel='KL to the reference, nats',
    ylabel="share of the frontier's gain",
  )


def _draw_noise(axis, rows) -> None:
  group = part(rows, 'noise')
  x = [100 * flipped for flipped in FLIPPED]
  for name, labels in itertools.product(PAIR_LOSSES, NOISE):
    intervals = [
      mean_interval([row[f'{labels}.{name}_{f}.ratio'] for row in group])
      for f in FLIPPED
    ]
    axis.errorbar(
      x,
      *zip(*intervals),
      fmt='.',
      lw=1,
      ls=_NOISE_LINES[labels],
      color=_COLORS[name],
      label=f'{NAMES[name]}, {labels}',
    )
  axis.set(title='wrong labels', xlabel='wrong labels, %', xticks=x)
  axis.set_ylabel("share of the frontier's gain")
