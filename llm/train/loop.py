"""The loop of every training run: batches in, rows of metrics out.

Only the host's side is here: when to log, evaluate, save and stop. Which model
and which data it is, the caller's functions know.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import time
from typing import Any

import jax

from llm.errors import RunError
from llm.train.state import TrainState, step_key

Row = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Schedule:
  """When things happen, in steps; 0 is never, but for the end of the run.

  Attributes:
    steps: of the whole run.
    log_every: a row of metrics is fetched and given to `on_row`; there is one
      for each evaluation and each save, too.
    eval_every: `evaluate` is called.
    save_every: `save` is called.
    max_bad_steps: steps in a row without a finite gradient that end the run.
    eval_first: `evaluate` is called before the first step, too.
  """

  steps: int
  log_every: int = 1
  eval_every: int = 0
  save_every: int = 0
  max_bad_steps: int = 10
  eval_first: bool = False

  def logs(self, step: int) -> bool:
    """True where the step's metrics become a row."""
    shown = self.evaluates(step) or self.saves(step)
    return step % self.log_every == 0 or shown

  def evaluates(self, step: int) -> bool:
    """True after the last step and every `eval_every`."""
    return step == self.steps or _divides(self.eval_every, step)

  def saves(self, step: int) -> bool:
    """True after the last step and every `save_every`."""
    return step == self.steps or _divides(self.save_every, step)


def fit(
  state: TrainState,
  train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
  draw: Callable[[TrainState], tuple[Any, Mapping[str, float]]],
  schedule: Schedule,
  *,
  frozen: Any = None,
  on_row: Callable[[Row], None],
  evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
  save: Callable[[TrainState, Mapping[str, float]], None] | None = None,
  is_best: Callable[[Mapping[str, float]], bool] = lambda scores: False,
  should_stop: Callable[[], bool] = lambda: False,
  may_save: Callable[[], bool] = lambda: True,
) -> TrainState:
  """Trains from `state.step` to `schedule.steps`.

  A step's metrics are fetched while the next one runs, so the device never
  waits for the host to write them.

  Args:
    state: where to go on; donated.
    train_step: jitted, as `make_train_step` returns it.
    draw: gives the next batch, on the devices, and numbers about it that join
      the row; `tokens` is one of them.
    schedule: see `Schedule`.
    frozen: passed on to `train_step`.
    on_row: gets one dict per logged step: `step`, its `loss`, the `tokens` of
      all steps since the row before and their `tokens_per_s`, the step's other
      metrics, those of `draw` and `evaluate`, and the seconds that the host
      spent on data, evaluation and saving since the row before (`data_s`,
      `eval_s`, `save_s`). An evaluation before the first step has a row of its
      own, with `step` 0 and no loss.
    evaluate: metrics of the state, under the names that the row shall have.
    save: keeps the state; gets what `evaluate` said of this very state, {}
      where it was not asked. Within a streak of bad steps nothing is saved but
      at its end.
    is_best: of what `evaluate` said: whether to save the state for it.
    should_stop: asked after each step; True saves and returns early.
    may_save: asked where `draw` raises: whether what is done so far can be
      saved before the error goes on.

  Returns:
    The last state.

  Raises:
    RunError: `max_bad_steps` steps in a row had no finite gradient, now or
      before `state` was saved: its parameters are those before the first of
      them.
  """
  next_key = jax.jit(step_key)
  log = _Log(on_row, int(state.bad_streak))
  step = saved = int(state.step)
  if step < schedule.steps and log.bad_streak >= schedule.max_bad_steps:
    _give_up(log.bad_streak, step, schedule)
  if evaluate is not None and schedule.eval_first and step == 0:
    with log.timing('eval_s', apart=True):
      scores = evaluate(state)
    log.begin(scores)
  while step < schedule.steps:
    try:
      with log.timing('data_s'):
        batch, about = draw(state)
    except Exception:  # a function of the user's may have failed in any way
      log.flush()
      if (
        save is not None and step > saved and not log.bad_streak and may_save()
      ):
        save(state, {})
      raise
    state, metrics = train_step(state, batch, next_key(state), frozen)
    step += 1
    log.flush()  # the step before, while this one runs
    stopping = should_stop()
    log.hold(step, metrics, about, shown=schedule.logs(step) or stopping)
    if log.bad_streak + 1 >= schedule.max_bad_steps:
      log.fetch()  # this step may be the last one
    scores = {}
    if evaluate is not None and schedule.evaluates(step):
      log.fetch()  # so that the time of evaluation is not the step's
      with log.timing('eval_s', apart=True):
        scores = evaluate(state)
      log.add(scores)
    due = schedule.saves(step) or stopping
    if scores:
      with log.timing('save_s', apart=True):
        due = is_best(scores) or due
    if due:
      log.flush()
    ended = log.bad_streak >= schedule.max_bad_steps
    # Within a streak nothing is new but its length: older states would go.
    if save is not None and (due and not log.bad_streak or stopping or ended):
      log.flush()
      with log.timing('save_s', apart=True):
        save(state, scores)
      saved = step
    if ended:
      _give_up(log.bad_streak, step, schedule)
    if stopping:
      break
  log.flush()
  return state


def _give_up(bad_streak, step, schedule):
  raise RunError(
    f'the last {bad_streak} steps up to step {step} had no finite gradient '
    f'(train.max_bad_steps={schedule.max_bad_steps}); the parameters are those '
    'before them: start anew, in another workdir, with a smaller optim.lr, a '
    'longer optim.warmup_steps or tighter clipping (optim.clip_norm)'
  )


class _Log:
  """Rows on their way from the device to `on_row`, at most one at a time.

  The metrics of each step are fetched, one step late, whether they are shown
  or not: so a streak of bad steps is seen however seldom rows are.
  """

  def __init__(self, on_row: Callable[[Row], None], bad_streak: int):
    self.bad_streak = bad_streak
    self._on_row = on_row
    self._held = None  # (step, metrics on the device, batch, has it a row)
    self._row = None
    self._tokens = 0  # that no row has yet
    self._seconds = {}  # that no row has yet
    self._apart = 0.0  # of them, what is no part of a step
    self._last = time.perf_counter()  # when the row before was complete

  @contextlib.contextmanager
  def timing(self, name: str, apart: bool = False) -> Iterator[None]:
    """Adds the seconds of its block to the row's `name`."""
    began = time.perf_counter()
    yield
    spent = time.perf_counter() - began
    self._seconds[name] = self._seconds.get(name, 0.0) + spent
    self._apart += spent if apart else 0.0

  def begin(self, scores: Mapping[str, float]) -> None:
    """Hands over the row of the evaluation before the first step."""
    self._on_row({'step': 0, **scores, **self._take_seconds()})

  def hold(
    self, step: int, metrics: Mapping, about: Mapping, *, shown: bool
  ) -> None:
    """Keeps a step's metrics until they are fetched; `shown` makes a row."""
    seconds = self._take_seconds() if shown else {}
    self._held = (step, metrics, {**about, **seconds}, shown)

  def fetch(self) -> None:
    """Waits for the step that is held and makes its row, if it has one."""
    if self._held is None:
      return
    step, metrics, about, shown = self._held
    self._held = None
    self._tokens += about.pop('tokens')
    if not shown:
      self.bad_streak = int(metrics['bad_streak'])
      return
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    self.bad_streak = int(metrics.pop('bad_streak'))
    now = time.perf_counter()
    elapsed = now - self._last - self._apart
    self._last, self._apart = now, 0.0
    self._row = {
      'step': step,
      'loss': metrics.pop('loss'),
      'tokens': self._tokens,
      'tokens_per_s': self._tokens / elapsed,
      **metrics,
      **about,
    }
    self._tokens = 0

  def add(self, scores: Mapping[str, float]) -> None:
    """Joins `scores` to the row that was fetched last."""
    self._row |= {**scores, **self._take_seconds()}

  def flush(self) -> None:
    """Hands the row over."""
    self.fetch()
    if self._row is not None:
      self._on_row(self._row)
      self._row = None

  def _take_seconds(self) -> dict[str, float]:
    seconds, self._seconds = self._seconds, {}
    return seconds


def _divides(every: int, step: int) -> bool:
  return every > 0 and step % every == 0
