"""Table and figure of the cache's gain and cost, from results.csv alone."""

import os
from typing import Sequence

import matplotlib.pyplot as plt
import numpy as np

from experiments import readme
from llm.evals.intervals import mean_interval
from llm.sweeps import report

FOLDER = os.path.dirname(os.path.abspath(__file__))
NAMES = {
  'llama_2_7b': 'Llama-2-7B',
  'llama_3_8b': 'Llama-3-8B',
  'qwen3_8b': 'Qwen3-8B',
  'gemma_3_12b': 'Gemma-3-12B',
}
_QUOTED = 4.5  # the speed-up that is usually quoted
_WITH, _WITHOUT = '#c44e52', '#4c72b0'


def analyze(csv_path: str, out_dir: str) -> None:
  """Writes the parts of README.md and HISTORY.md, and cost.png."""
  rows = report.read_csv(csv_path)
  readme.write_section(FOLDER, out_dir, section(rows), details(rows))
  _draw(rows, os.path.join(out_dir, 'cost.png'))


def section(rows: Sequence[report.Record]) -> str:
  """Returns the README's part: the claim's numbers and the cost."""
  answers = part(rows, 'answer')
  equal = sum(row['equal'] for row in answers)
  distinct = min(row['distinct'] for row in answers)
  return '\n'.join(
    (
      readme.goal_table(_goals(rows)),
      f'Control: {equal} of {len(answers)} completions are the same with and '
      f'without the cache, token by token; each has at least {distinct} '
      'different tokens.\n',
      readme.cost_line(rows),
    )
  )


def details(rows: Sequence[report.Record]) -> str:
  """Returns the tables of HISTORY.md."""
  return '\n'.join(
    (
      _answer_table(part(rows, 'answer')),
      _used_table(rows),
      _price_table(part(rows, 'price')[0]),
    )
  )


def part(rows: Sequence[report.Record], name: str) -> list[report.Record]:
  """Returns the rows of one part of the experiment."""
  return [row for row in rows if row['config.part'] == name]


def exponents(rows: Sequence[report.Record], column: str) -> list[float]:
  """Fits seconds = c * tokens**e by least squares of logarithms.

  Returns:
    e of each seed.
  """
  return [
    np.polyfit(np.log(tokens), np.log(values), 1)[0]
    for tokens, values in _series(rows, column).values()
  ]


def line(rows: Sequence[report.Record]) -> tuple[float, float, float]:
  """Fits token_ms = a + b * tokens to means over seeds.

  Returns:
    (a, b, R**2: the share of the variance that the line explains).
  """
  tokens, values = _means(rows, 'token_ms')
  slope, base = np.polyfit(tokens, values, 1)
  rest = values - (base + slope * tokens)
  return base, slope, 1.0 - np.var(rest) / np.var(values)


def _series(rows, column):
  """{seed: (tokens[n], values[n])}, in order of tokens."""
  series = {}
  for seed in sorted({row['config.seed'] for row in rows}):
    own = [row for row in rows if row['config.seed'] == seed]
    own.sort(key=lambda row: row['config.tokens'])
    series[seed] = (
      np.array([row['config.tokens'] for row in own]),
      np.array([row[column] for row in own]),
    )
  return series


def _means(rows, column):
  """(tokens[n], means over seeds [n])."""
  tokens = sorted({row['config.tokens'] for row in rows})
  means = [
    np.mean([row[column] for row in rows if row['config.tokens'] == n])
    for n in tokens
  ]
  return np.array(tokens), np.array(means)


def _goals(rows) -> list[readme.Goal]:
  answers = part(rows, 'answer')
  longest = max(row['config.tokens'] for row in answers)
  last = [row for row in answers if row['config.tokens'] == longest]
  grown = part(rows, 'allocated')
  fits = {
    column: mean_interval(exponents(answers, column))
    for column in ('cached_s', 'uncached_s')
  }
  growth = {
    name: mean_interval([100 * row[name] for row in grown])
    for name in ('growth', 'control_growth')
  }
  speedup = mean_interval([row['speedup'] for row in last])
  fit = line(part(rows, 'used'))[2]
  with_, without = fits['cached_s'], fits['uncached_s']
  lines = (
    ('exponent with the cache', '0.8 to 1.2', with_, 0.8 <= with_[0] <= 1.2),
    ('exponent without', '1.6 to 2.2', without, 1.6 <= without[0] <= 2.2),
    (
      f'speed-up at {longest} tokens',
      f'≥ {_QUOTED}',
      speedup,
      speedup[0] >= _QUOTED,
    ),
    (
      'time per token with 16 times the slots, %',
      '< +10',
      growth['growth'],
      growth['growth'][0] < 10,
    ),
    (
      'the same where all slots are looked at (control), %',
      '> +10',
      growth['control_growth'],
      growth['control_growth'][0] > 10,
    ),
    (
      'time per token over used length: R² of a line',
      '≥ 0.95',
      (fit, float('nan')),
      fit >= 0.95,
    ),
  )
  return [
    readme.Goal(name, goal, _pair(*value), bool(reached))
    for name, goal, value, reached in lines
  ]


def _pair(value: float, half: float) -> str:
  text = f'{value:.2f}'
  return text if np.isnan(half) else f'{text} ± {half:.2f}'


def _answer_table(rows) -> str:
  lines = []
  for tokens in sorted({row['config.tokens'] for row in rows}):
    group = [row for row in rows if row['config.tokens'] == tokens]
    names = ('cached_s', 'uncached_s', 'speedup')
    cells = [readme.mean(group, n, d) for n, d in zip(names, (3, 2, 1))]
    lines.append([str(tokens), *cells])
  header = ('completion tokens', 'with cache, s', 'without, s', 'speed-up')
  return readme.table(header, lines)


def _used_table(rows) -> str:
  base, slope, _ = line(part(rows, 'used'))
  lines = []
  for tokens in sorted({row['config.tokens'] for row in part(rows, 'used')}):
    group = [r for r in part(rows, 'used') if r['config.tokens'] == tokens]
    lines.append([str(tokens), readme.mean(group, 'token_ms', 2)])
  return (
    readme.table(('tokens in the cache', 'ms per token'), lines)
    + f'\nThe line: {base:.2f} ms + {1e3 * slope:.2f} µs for each token in the '
    'cache.\n'
  )


def _price_table(row) -> str:
  lines = []
  for key, name in NAMES.items():
    whole, all_global = row[f'{key}.128k'], row[f'{key}.128k_all_global']
    lines.append(
      (
        name,
        f'{row[f"{key}.token"]:,}',
        f'{row[f"{key}.windows"] / 2**20:,.0f}',
        f'{row[f"{key}.4k"] / 2**20:,.0f}',
        f'{whole / 2**30:,.2f}',
        f'{all_global / 2**30:,.2f}',
      )
    )
  header = (
    'bfloat16 cache of one request',
    'bytes per token',
    'windows, MiB',
    'at 4k, MiB',
    'at 128k, GiB',
    'at 128k if all layers were global, GiB',
  )
  return readme.table(header, lines)


def _draw(rows, path: str) -> None:
  figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout='constrained')
  _draw_answers(axes[0], part(rows, 'answer'))
  _draw_used(axes[1], part(rows, 'used'))
  _draw_allocated(axes[2], part(rows, 'allocated'))
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
  figure.savefig(path, dpi=150)
  plt.close(figure)


def _draw_answers(axis, rows) -> None:
  for column, color, name in (
    ('uncached_s', _WITHOUT, 'without cache'),
    ('cached_s', _WITH, 'with cache'),
  ):
    for tokens, values in _series(rows, column).values():
      axis.plot(tokens, values, 'o', color=color, alpha=0.5, markersize=4)
    tokens, means = _means(rows, column)
    exponent, scale = np.polyfit(np.log(tokens), np.log(means), 1)
    fitted = np.exp(scale) * tokens**exponent
    label = f'{name}: tokens$^{{{exponent:.2f}}}$'
    axis.plot(tokens, fitted, color=color, label=label)
  axis.set_xscale('log', base=2)
  axis.set_yscale('log')
  axis.set_xticks(tokens, [str(n) for n in tokens], fontsize=7)
  axis.set_xticks([], minor=True)
  axis.set(
    xlabel='tokens of the completion', ylabel='seconds', title='a completion'
  )
  axis.legend(frameon=False, fontsize=8)


def _draw_used(axis, rows) -> None:
  for tokens, values in _series(rows, 'token_ms').values():
    axis.plot(tokens, values, 'o', color=_WITH, alpha=0.5, markersize=4)
  base, slope, fit = line(rows)
  ends = np.array([0, max(row['config.tokens'] for row in rows)])
  label = f'line, R² = {fit:.3f}'
  axis.plot(ends, base + slope * ends, color=_WITH, label=label)
  axis.set_ylim(0)
  axis.set(
    xlabel='tokens in the cache', ylabel='ms per token', title='used length'
  )
  axis.legend(frameon=False, fontsize=8)


def _draw_allocated(axis, rows) -> None:
  places = {'small': 0, 'large': 1, 'control_small': 2.5, 'control_large': 3.5}
  for name, place in places.items():
    values = [row[f'{name}_ms'] for row in rows]
    color = _WITHOUT if name.startswith('control') else _WITH
    axis.bar(place, np.mean(values), color=color)
    axis.plot([place] * len(values), values, 'k.', markersize=4)
  axis.set_xticks(
    list(places.values()),
    ['512', '8192', '512', '8192\n(control: reads all)'],
    fontsize=8,
  )
  axis.set(
    xlabel='slots allocated', ylabel='ms per token', title='256 slots used'
  )
