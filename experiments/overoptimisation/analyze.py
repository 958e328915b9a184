"""Tables and figure of over-optimisation, from results.csv alone."""

import os
import statistics
from typing import NamedTuple, Sequence

import matplotlib.pyplot as plt
import numpy as np

from experiments import readme
from experiments.overoptimisation import curves
from experiments.overoptimisation.measure import (
  COIN,
  GOLD,
  SHORT_KL_COEFS,
  SHORT_PAIRS,
  SIZES,
)
from llm.evals.intervals import mean_interval
from llm.sweeps import report

FOLDER = os.path.dirname(os.path.abspath(__file__))
FALL_GOAL = 0.2  # of the peak
R2_GOAL = 0.9
SETBACK_GOAL = 0.05  # of the proxy's highest
GOLD_GOAL = 0.05  # of the peak
COIN_GOAL = 0.1  # of the peak with right labels
FOLLOWS_GOAL = 0.1  # of gold
WAYS = {
  ('short', 'rl'): '5 tokens, best policy',
  ('short', 'best'): '5 tokens, best of n',
  ('long', 'rl'): '20 tokens, RLOO',
  ('long', 'best'): '20 tokens, best of n',
}
_RL, _BEST = ('long', 'rl'), ('long', 'best')


class Curve(NamedTuple):
  """A policy's way from the reference, float[W] each."""

  kl: np.ndarray
  proxy: np.ndarray
  gold: np.ndarray


def analyze(csv_path: str, out_dir: str) -> None:
  """Writes the parts of README.md and HISTORY.md, and curves.png."""
  rows = report.read_csv(csv_path)
  readme.write_section(FOLDER, out_dir, section(rows), details(rows))
  _draw(rows, os.path.join(out_dir, 'curves.png'))


def section(rows: Sequence[report.Record]) -> str:
  """Returns the README's part: the claim's numbers and the cost."""
  peaks_5, best_5, peaks_20, best_20 = [_peak_goal(rows, way) for way in WAYS]
  *falls, setback_goal = _fall_goals(rows)
  gold, *coins, follows = _control_goals(rows)
  what = f'peak of gold from {_sizes()} pairs'
  each = '5 tokens, best policy; best of n; 20 tokens, RLOO; best of n'
  goals = (
    readme.join(f'5 tokens, {what}: best policy; best of n', (peaks_5, best_5)),
    readme.join(f'20 tokens, {what}: RLOO; best of n', (peaks_20, best_20)),
    readme.join(
      '20 tokens, RLOO: least fall of gold from its peak, % of it; most of the '
      'proxy',
      (min(falls, key=lambda goal: float(goal.measured)), setback_goal),
    ),
    readme.join(
      f'lowest R² of a fit: {each}', [_lowest_fit_goal(rows, w) for w in WAYS]
    ),
    readme.join(
      f'peak with random labels over that with right ones (control): {each}',
      coins,
    ),
    readme.join(
      'RLOO (controls): fall on gold itself, % of the peak; distance from the '
      'best policy, gold',
      (gold, follows),
    ),
  )
  return f'{readme.goal_table(goals)}\n{readme.cost_line(rows)}'


def details(rows: Sequence[report.Record]) -> str:
  """Returns the tables of HISTORY.md, each goal by itself first."""
  goals = (
    *(_peak_goal(rows, way) for way in WAYS),
    *(_rise_goal(rows, way) for way in WAYS),
    *_fall_goals(rows),
    *(_fit_goal(rows, way) for way in WAYS),
    *_control_goals(rows),
  )
  return '\n'.join(
    (
      readme.goal_table(goals),
      *(_curve_table(rows, way) for way in WAYS),
      _follows_table(_worlds(rows, 'short')),
    )
  )


def curve(row: report.Record, name: str) -> Curve:
  """A curve of one row, such as 'rl_30'."""
  columns = []
  for column in Curve._fields:
    prefix = f'{name}.{column}.'
    points = {k: v for k, v in row.items() if k.startswith(prefix)}
    values = [points[k] for k in sorted(points)]
    columns.append(np.array([v for v in values if v is not None]))
  return Curve(*columns)


def curves_of(
  rows: Sequence[report.Record], way: tuple[str, str], judge: int | str
) -> list[Curve]:
  """The curves of all worlds, by their seeds."""
  part, name = way
  return [curve(row, f'{name}_{judge}') for row in _worlds(rows, part)]


def peaks(rows, way, judge) -> list[float]:
  """The highest gold of each world's curve."""
  return [curves.fall(c.gold).peak for c in curves_of(rows, way, judge)]


def fall_share(found: Sequence[Curve]) -> float:
  """By how much gold ends below its peak: of means, a share of the peak."""
  falls = [curves.fall(c.gold) for c in found]
  peak = statistics.fmean(f.peak for f in falls)
  return 1.0 - statistics.fmean(f.end for f in falls) / peak


def setback(found: Sequence[Curve]) -> float:
  """The most that a proxy lies below its highest so far, a share of that."""
  shares = []
  for c in found:
    highest = np.maximum.accumulate(c.proxy)
    shares.append(np.max(highest - c.proxy) / highest[-1])
  return float(max(shares))


def fits(found: Sequence[Curve], way: tuple[str, str]) -> list[curves.Fit]:
  """The form of Gao et al. that belongs to the way, fitted to each curve."""
  fit = curves.fit_rl if way[1] == 'rl' else curves.fit_best_of_n
  return [fit(c.kl, c.gold) for c in found]


def mean_curve(found: Sequence[Curve]) -> Curve:
  """The mean of the worlds' curves, point by point."""
  return Curve(*(np.mean(column, axis=0) for column in zip(*found)))


def _worlds(rows, part: str) -> list[report.Record]:
  found = [row for row in rows if row['config.part'] == part]
  return sorted(found, key=lambda row: row['config.seed'])


def _peak_goal(rows, way) -> readme.Goal:
  means = [statistics.fmean(peaks(rows, way, size)) for size in SIZES]
  return readme.Goal(
    f'{WAYS[way]}: peak of gold from {_sizes()} pairs',
    'each above the one before',
    _list(means),
    all(np.diff(means) > 0),
  )


def _rise_goal(rows, way) -> readme.Goal:
  few, many = (peaks(rows, way, size) for size in (SIZES[0], SIZES[-1]))
  mean, half = mean_interval(list(np.subtract(many, few)))
  return readme.Goal(
    f'{WAYS[way]}: peak from {SIZES[-1]} pairs less that from {SIZES[0]}',
    '> 0 with its interval',
    f'{mean:.2f} ± {half:.2f}',
    mean - half > 0,
  )


def _fall_goals(rows) -> list[readme.Goal]:
  found = [curves_of(rows, _RL, size) for size in SIZES]
  lines = []
  for size, group in zip(SIZES, found, strict=True):
    share = fall_share(group)
    lines.append(
      readme.Goal(
        f'{WAYS[_RL]}, {size} pairs: fall of gold from its peak, % of it',
        f'≥ {100 * FALL_GOAL:.0f}',
        f'{100 * share:.0f}',
        share >= FALL_GOAL,
      )
    )
  worst = max(map(setback, found))
  what = 'most that a proxy lies below its highest so far, % of it'
  return [
    *lines,
    readme.Goal(
      f'{WAYS[_RL]}: {what}',
      f'≤ {100 * SETBACK_GOAL:.0f}',
      f'{100 * worst:.1f}',
      worst <= SETBACK_GOAL,
    ),
  ]


def _mean_r2(rows, way) -> list[float]:
  """By number of pairs."""
  return [
    statistics.fmean(fit.r2 for fit in fits(curves_of(rows, way, size), way))
    for size in SIZES
  ]


def _lowest_fit_goal(rows, way) -> readme.Goal:
  low = min(_mean_r2(rows, way))
  return readme.Goal(WAYS[way], f'≥ {R2_GOAL}', f'{low:.2f}', low >= R2_GOAL)


def _fit_goal(rows, way) -> readme.Goal:
  means = _mean_r2(rows, way)
  form = 'd (α - β ln d)' if way[1] == 'rl' else 'd (α - β d)'
  return readme.Goal(
    f'{WAYS[way]}: R² of {form} from {_sizes()} pairs',
    f'≥ {R2_GOAL} each',
    _list(means),
    min(means) >= R2_GOAL,
  )


def _control_goals(rows) -> list[readme.Goal]:
  share = fall_share(curves_of(rows, _RL, GOLD))
  lines = [
    readme.Goal(
      f'{WAYS[_RL]} on gold itself: fall from the peak, % of it (control)',
      f'≤ {100 * GOLD_GOAL:.0f}',
      f'{100 * share:.1f}',
      share <= GOLD_GOAL,
    )
  ]
  for way in WAYS:
    coin, right = (
      mean_curve(curves_of(rows, way, judge)).gold.max()
      for judge in (COIN, SIZES[-1])
    )
    share = coin / right
    lines.append(
      readme.Goal(
        f'{WAYS[way]}, random labels: peak of the mean curve over that with '
        'right ones (control)',
        f'≤ {COIN_GOAL}',
        f'{share:.3f}',
        share <= COIN_GOAL,
      )
    )
  apart = [
    abs(row[f'follows_{coef}.gold'] - row[f'follows_{coef}.aim_gold'])
    for row in _worlds(rows, 'short')
    for coef in SHORT_KL_COEFS
  ]
  what = '5 tokens: most that RLOO ends away from the best policy, gold'
  reached = max(apart) <= FOLLOWS_GOAL
  goal = readme.Goal(what, f'≤ {FOLLOWS_GOAL}', f'{max(apart):.3f}', reached)
  return [*lines, goal]


def _curve_table(rows, way) -> str:
  lines = []
  judges = (*SIZES, COIN) if way == _BEST else (*SIZES, COIN, GOLD)
  for judge in judges:
    found = curves_of(rows, way, judge)
    falls = [curves.fall(c.gold) for c in found]
    at_peak = [c.proxy[f.place] for c, f in zip(found, falls, strict=True)]
    fitted = fits(found, way)
    alpha, beta, r2 = zip(*fitted)
    lines.append(
      (
        'random labels' if judge == COIN else str(judge),
        _interval([f.peak for f in falls]),
        _mean([c.kl[f.place] for c, f in zip(found, falls, strict=True)]),
        _interval([f.end for f in falls]),
        _mean([c.kl[-1] for c in found]),
        f'{_mean(at_peak)}, {_mean([c.proxy[-1] for c in found])}',
        f'{_mean(alpha)}, {_mean(beta)}',
        f'{_mean(r2)} ({min(r2):.2f} to {max(r2):.2f})',
      )
    )
  header = (f'{WAYS[way]}: pairs', 'peak of gold', 'its KL, nats', 'end')
  more = ('its KL, nats', 'proxy at both', 'α, β', 'R²')
  return readme.table((*header, *more), lines)


def _follows_table(rows) -> str:
  lines = []
  for coef in SHORT_KL_COEFS:
    values = [
      readme.mean(rows, f'follows_{coef}.{name}')
      for name in ('kl', 'aim_kl', 'gold', 'aim_gold')
    ]
    lines.append((str(coef), *values))
  header = (f'5 tokens, proxy from {SHORT_PAIRS} pairs: KL coefficient',)
  header += ('KL of RLOO, nats', 'of the best policy')
  return readme.table((*header, 'gold of RLOO', 'of the best policy'), lines)


def _sizes() -> str:
  return ', '.join(map(str, SIZES))


def _list(values) -> str:
  return ', '.join(f'{value:.2f}' for value in values)


def _mean(values) -> str:
  return f'{statistics.fmean(values):.2f}'


def _interval(values) -> str:
  mean, half = mean_interval(list(values))
  return f'{mean:.2f} ± {half:.2f}'


def _draw(rows, path: str) -> None:
  figure, axes = plt.subplots(2, 3, figsize=(12, 7.5), layout='constrained')
  colors = plt.get_cmap('viridis')(np.linspace(0.0, 0.9, len(SIZES)))
  for way, axis in zip(WAYS, axes[:, :2].ravel(), strict=True):
    _draw_way(axis, rows, way, colors)
  for part, axis in zip(('short', 'long'), axes[:, 2], strict=True):
    _draw_peaks(axis, rows, part)
  axes[1, 0].plot([], [], 'k--', lw=0.8, label='proxy')
  figure.legend(
    *axes[1, 0].get_legend_handles_labels(),
    loc='outside lower center',
    ncols=4,
    frameon=False,
  )
  for axis in axes.ravel():
    axis.spines[['top', 'right']].set_visible(False)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def _draw_way(axis, rows, way, colors) -> None:
  """Means of all worlds: gold as lines, proxies as dashes."""
  lowest = 0.0
  judges = [*zip(SIZES, colors, strict=True), (COIN, '#c44e52')]
  if way == _RL:
    judges.append((GOLD, 'k'))
  for judge, color in judges:
    mean = mean_curve(curves_of(rows, way, judge))
    d = np.sqrt(np.maximum(mean.kl, 0.0))
    label = {COIN: 'gold, random labels', GOLD: 'gold, itself optimised'}.get(
      judge, f'gold, {judge} pairs'
    )
    axis.plot(d, mean.gold, color=color, label=label)
    if judge in SIZES:
      axis.plot(d, mean.proxy, '--', lw=0.8, color=color)
      lowest = min(lowest, mean.gold.min())
  top = mean_curve(curves_of(rows, way, SIZES[0])).proxy.max()
  axis.axhline(0.0, color='#cccccc', lw=0.8, zorder=0)
  axis.set(title=WAYS[way], xlabel='√KL to the reference', ylabel='reward')
  axis.set_ylim(max(lowest, -4.0) - 0.3, min(top, 5.0) + 0.5)


def _draw_peaks(axis, rows, part: str) -> None:
  for (other, name), color in zip(WAYS, 2 * ('#4c72b0', '#dd8452')):
    if other != part:
      continue
    values = [peaks(rows, (part, name), size) for size in SIZES]
    intervals = [mean_interval(group) for group in values]
    label = WAYS[part, name].partition(', ')[2]
    axis.errorbar(
      SIZES,
      *zip(*intervals),
      fmt='.-',
      lw=1,
      capsize=2,
      color=color,
      label=label,
    )
  axis.set_xscale('log')
  axis.set_xticks(SIZES, map(str, SIZES))
  axis.minorticks_off()
  axis.legend(frameon=False, fontsize=8)
  title = '5 tokens' if part == 'short' else '20 tokens'
  axis.set(title=title, xlabel='pairs', ylabel='peak of gold')
