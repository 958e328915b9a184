"""What a training run shows: lines, a table and a figure."""

import json
import math
import os
from typing import Any

from llm.host import terminal

_SPEED_ROWS = 50  # rows at the end that tokens_per_s is the median of


def read_rows(workdir: str) -> list[dict[str, Any]]:
  """The rows of `metrics.jsonl`, in order; a null is not a number."""
  path = os.path.join(workdir, 'metrics.jsonl')
  if not os.path.exists(path):
    return []
  with open(path, encoding='utf-8') as file:
    rows = [json.loads(line) for line in file]
  return [
    {k: math.nan if v is None else v for k, v in row.items()} for row in rows
  ]


def log_evaluation(row: dict[str, Any], console) -> None:
  """One line for a row that has an evaluation."""
  scores = _scores(row)
  if not scores:
    return
  trained = f'loss {row["loss"]:.4f}; ' if 'loss' in row else ''
  text = ', '.join(
    f'{name.removeprefix("eval_")} {value:.4g}'
    for name, value in scores.items()
  )
  console.print(
    f'step {row["step"]:,}: {trained}held out: {text}',
    highlight=False,
    soft_wrap=True,
  )


def log_samples(rows: list[dict[str, Any]], console) -> None:
  """The first text of a set of samples, in one line."""
  text = terminal.printable(rows[0]['prompt'] + rows[0]['text'])
  text = ' '.join(text.split())
  console.print(text[:200], style='dim', markup=False, soft_wrap=True)


def print_completions(workdir: str) -> None:
  """A table of the newest rated completions of `answers.jsonl`, if any."""
  path = os.path.join(workdir, 'answers.jsonl')
  if not os.path.exists(path):
    return
  with open(path, encoding='utf-8') as file:
    rows = [json.loads(line) for line in file]
  rows = [row for row in rows if row['step'] == rows[-1]['step']]
  lines = [(_short(row['prompt']), _short(row['text']), row) for row in rows]
  terminal.print_columns(
    ('prompt', 'completion', 'reward'),
    [
      (prompt, text + ('' if row['finished'] else ' …'), _number(row['reward']))
      for prompt, text, row in lines
    ],
  )


def _short(text: str, size: int = 60) -> str:
  """The end of a text in one line."""
  text = ' '.join(terminal.printable(text).split())
  return text if len(text) <= size else f'…{text[-size:]}'


def _number(value: float | None) -> str:
  return 'unrated' if value is None else f'{value:.3g}'


def summarise(rows: list[dict[str, Any]]) -> dict[str, float]:
  """The run in numbers: its first and last loss, its speed and evaluations."""
  evaluated = [row for row in rows if _scores(row)]
  rows = [row for row in rows if 'loss' in row]
  if not rows:
    return {}
  last = rows[-_SPEED_ROWS:]
  speeds = sorted(row['tokens_per_s'] for row in last)
  result = {
    'steps': rows[-1]['step'],
    'first_loss': rows[0]['loss'],
    'loss': rows[-1]['loss'],
    'tokens': sum(row['tokens'] for row in rows),
    'tokens_per_s': speeds[len(speeds) // 2],
  }
  if 'reward_mean' in rows[0] and 'reward_mean' in rows[-1]:
    result['first_reward_mean'] = rows[0]['reward_mean']
    result['reward_mean'] = rows[-1]['reward_mean']
  losses = [row.get('eval_loss', math.nan) for row in evaluated]
  losses = [loss for loss in losses if math.isfinite(loss)]
  if losses:
    result['best_eval_loss'] = min(losses)
  if evaluated:
    result |= _scores(evaluated[-1])
  return result


def data_counts(counts: dict[str, Any]) -> dict[str, Any]:
  """What became of a run's rows, for `result.json`.

  Args:
    counts: see `Examples.counts`; 'unread' is {file: {column: rows}}.
  """
  unread: dict[str, int] = {}
  for columns in counts.get('unread', {}).values():
    for column, rows in columns.items():
      unread[column] = unread.get(column, 0) + rows
  return {k: v for k, v in counts.items() if k != 'unread'} | {'unread': unread}


def _scores(row: dict[str, Any]) -> dict[str, float]:
  """What an evaluation gave, without its time."""
  return {
    k: v for k, v in row.items() if k.startswith('eval_') and k != 'eval_s'
  }


def print_result(result: dict[str, Any], workdir: str) -> None:
  """The table at the end of a run."""
  lines = []
  for name, value in result.items():
    if isinstance(value, dict):
      continue  # the counts of the data were said at the start
    if isinstance(value, float):
      value = f'{value:,.4f}' if abs(value) < 100 else f'{value:,.0f}'
    lines.append((name, f'{value:,}' if isinstance(value, int) else str(value)))
  lines.append(('figure', os.path.join(workdir, 'loss.png')))
  terminal.print_table(lines)


def plot_loss(rows: list[dict[str, Any]], path: str) -> None:
  """Plots the loss over the steps and, where there is one, the reward above it.

  Both with their values on held-out rows.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  names = ['loss']
  if any('reward_mean' in row for row in rows):
    names.insert(0, 'reward_mean')
  figure, panels = pyplot.subplots(
    len(names),
    figsize=(6, 1 + 2.5 * len(names)),
    layout='constrained',
    sharex=True,
    squeeze=False,
  )
  for name, axes in zip(names, panels[:, 0], strict=True):
    values = _plot_metric(axes, rows, name)
    finite = [x for x in values if math.isfinite(x)]
    if name == 'loss' and finite and 0 < 10 * min(finite) < max(finite):
      axes.set_yscale('log')
  panels[-1, 0].set_xlabel('step')
  figure.savefig(path, dpi=150)
  pyplot.close(figure)


def _plot_metric(axes, rows, name: str) -> list[float]:
  """One panel; returns the values that it shows."""
  trained = [row for row in rows if name in row]
  steps = [row['step'] for row in trained]
  values = [row[name] for row in trained]
  axes.plot(steps, values, lw=0.6, alpha=0.4, color='tab:blue')
  axes.plot(steps, _smooth(values), color='tab:blue', label='training')
  held = f'eval_{name}'
  scored = [(row['step'], row[held]) for row in rows if held in row]
  if scored:
    axes.plot(*zip(*scored), 'o-', color='tab:orange', label='held out')
  rollouts = any('reward_mean' in row for row in rows)
  unit = '' if rollouts else ' (nats per token)'
  axes.set_ylabel('reward' if name == 'reward_mean' else f'loss{unit}')
  axes.legend(frameon=False)
  axes.spines[['top', 'right']].set_visible(False)
  return values


def _smooth(values: list[float]) -> list[float]:
  """Exponential moving average over about a twentieth of the run."""
  keep = 1.0 - min(1.0, 20.0 / max(len(values), 1))
  out, total, weight = [], 0.0, 0.0
  for value in values:
    if math.isfinite(value):
      total = keep * total + (1.0 - keep) * value
      weight = keep * weight + (1.0 - keep)
    out.append(total / weight if weight else math.nan)
  return out
