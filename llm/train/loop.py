"""The loop of every training run: batches in, metrics out.

This is the host's side only: when to log, evaluate, save and stop. The model
and the data are in the functions that the caller passes.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
from typing import Any

import jax

from llm.errors import RunError
from llm.train.metrics_log import Metrics, MetricsLog
from llm.train.state import TrainState, step_key


@dataclasses.dataclass(frozen=True)
class Schedule:
  """When things happen, in steps; 0 means only at the end of the run.

  Attributes:
    steps: of the whole run.
    log_every: a step's metrics go to `Hooks.on_metrics`; those of a step with
      an evaluation or a save always do.
    eval_every: `Hooks.evaluate` is called.
    save_every: `Hooks.save` is called.
    max_bad_steps: steps in a row without a finite gradient that end the run.
    eval_first: `Hooks.evaluate` is called before the first step, too.
  """

  steps: int
  log_every: int = 1
  eval_every: int = 0
  save_every: int = 0
  max_bad_steps: int = 10
  eval_first: bool = False

  def logs(self, step: int) -> bool:
    """True where the step's metrics are logged."""
    shown = self.evaluates(step) or self.saves(step)
    return step % self.log_every == 0 or shown

  def evaluates(self, step: int) -> bool:
    """True after the last step and every `eval_every`."""
    return step == self.steps or _divides(self.eval_every, step)

  def saves(self, step: int) -> bool:
    """True after the last step and every `save_every`."""
    return step == self.steps or _divides(self.save_every, step)


@dataclasses.dataclass(frozen=True)
class Hooks:
  """What the loop calls; everything but `on_metrics` may be left out.

  Attributes:
    on_metrics: gets one dict per logged step: `step`, its `loss`, the `tokens`
      of all steps since the last logged one and their `tokens_per_s`, the
      step's other metrics, the batch's numbers, the scores of `evaluate`, and
      the seconds that the host spent on data, evaluation and saving since the
      last logged step (`data_s`, `eval_s`, `save_s`). An evaluation before the
      first step has a dict of its own, with `step` 0 and no loss.
    evaluate: state -> scores, by the names that the metrics shall have.
    save: (state, scores) -> None. Keeps the state; the scores are those of
      `evaluate` on this very state, {} where it was not evaluated. Within a
      streak of bad steps nothing is saved but at its end.
    is_best: scores -> whether to save the state because of them.
    should_stop: called after each step; True saves and returns early.
    may_save: called where no batch could be made: whether to save what is done
      so far before the error is raised.
  """

  on_metrics: Callable[[Metrics], None]
  evaluate: Callable[[TrainState], Mapping[str, float]] | None = None
  save: Callable[[TrainState, Mapping[str, float]], None] | None = None
  is_best: Callable[[Mapping[str, float]], bool] = lambda scores: False
  should_stop: Callable[[], bool] = lambda: False
  may_save: Callable[[], bool] = lambda: True


def fit(
  state: TrainState,
  train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
  next_batch: Callable[[TrainState], tuple[Any, Mapping[str, float]]],
  schedule: Schedule,
  hooks: Hooks,
  frozen: Any = None,
) -> TrainState:
  """Trains from `state.step` to `schedule.steps`.

  A step's metrics are fetched while the next one runs, so the device never
  waits for the host to write them.

  Args:
    state: where to start; donated.
    train_step: jitted, as `make_train_step` returns it.
    next_batch: gives the next batch, on the devices, and numbers about it that
      join the metrics; `tokens` is one of them.
    schedule: when to log, evaluate and save.
    hooks: how.
    frozen: passed on to `train_step`.

  Returns:
    The last state.

  Raises:
    RunError: `max_bad_steps` steps in a row had no finite gradient, now or
      before `state` was saved: its parameters are those before the first of
      them.
  """
  next_key = jax.jit(step_key)
  log = MetricsLog(hooks.on_metrics, int(state.bad_streak))
  step = saved = int(state.step)
  if step < schedule.steps:
    _check_streak(log.bad_streak, step, schedule)
  if hooks.evaluate is not None and schedule.eval_first and step == 0:
    log.begin(_evaluate(hooks, state, log))
  while step < schedule.steps:
    with _saving_on_error(hooks, state, log, unsaved=step > saved):
      with log.timing('data_s'):
        batch, about = next_batch(state)
    state, metrics = train_step(state, batch, next_key(state), frozen)
    step += 1
    log.flush()  # the step before, while this one runs
    stopping = hooks.should_stop()
    log.hold(step, metrics, about, logged=schedule.logs(step) or stopping)
    if log.bad_streak + 1 >= schedule.max_bad_steps:
      log.fetch()  # this step may be the last one
    scores = {}
    if hooks.evaluate is not None and schedule.evaluates(step):
      log.fetch()  # so that the time of evaluation is not the step's
      scores = _evaluate(hooks, state, log)
      log.add(scores)
    due = schedule.saves(step) or stopping
    if scores:
      with log.timing('save_s', apart=True):
        due = hooks.is_best(scores) or due
    if due:
      log.flush()
    ended = log.bad_streak >= schedule.max_bad_steps
    # Within a streak only its length is new: older states would be dropped.
    if hooks.save is not None and (
      due and not log.bad_streak or stopping or ended
    ):
      log.flush()
      with log.timing('save_s', apart=True):
        hooks.save(state, scores)
      saved = step
    _check_streak(log.bad_streak, step, schedule)
    if stopping:
      break
  log.flush()
  return state


def _evaluate(hooks, state, log) -> Mapping[str, float]:
  with log.timing('eval_s', apart=True):
    return hooks.evaluate(state)


@contextlib.contextmanager
def _saving_on_error(hooks, state, log, *, unsaved: bool) -> Iterator[None]:
  """Where the block raises, saves the steps that are done; then raises."""
  try:
    yield
  except Exception:  # a function of the user's may have failed in any way
    log.flush()
    whole = unsaved and not log.bad_streak
    if hooks.save is not None and whole and hooks.may_save():
      hooks.save(state, {})
    raise


def _check_streak(bad_streak: int, step: int, schedule: Schedule) -> None:
  """Ends a run that keeps diverging."""
  if bad_streak < schedule.max_bad_steps:
    return
  raise RunError(
    f'the last {bad_streak} steps up to step {step} had no finite gradient '
    f'(train.max_bad_steps={schedule.max_bad_steps}); the parameters are those '
    'before them: start anew, in another workdir, with a smaller optim.lr, a '
    'longer optim.warmup_steps or tighter clipping (optim.clip_norm)'
  )


def _divides(every: int, step: int) -> bool:
  return every > 0 and step % every == 0
