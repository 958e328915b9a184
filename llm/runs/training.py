"""The run that every kind of training shares, from the first state to export.

What differs between the kinds (data, loss, evaluation) comes in as a `Recipe`.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import os
import sys
import time
from typing import Any

import jax
import numpy as np

from llm.errors import RunError
from llm.host import terminal
from llm.parallel.distributed import any_process, is_writer
from llm.parallel.mesh import on_mesh
from llm.parallel.sharding import state_shardings
from llm.runs import exports, outputs, report, samples, writers
from llm.runs.batches import Batches
from llm.runs.identity import open_checkpoints
from llm.runs.job import Job
from llm.runs.train_model import TrainModel
from llm.text.chat_options import read_options
from llm.train import loop
from llm.train.schedules import make_schedule
from llm.train.signals import stop_on_signal
from llm.train.state import TrainState, init_state
from llm.train.step import LossFn, make_train_step


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What one kind of training adds.

  Attributes:
    loss_fn: see `llm.train.step`.
    batches: where the batches come from.
    evaluate: trained tree -> metrics named `eval_…`, or None.
    contents: fingerprints of what the run reads, by name, as JSON can hold
      them; a checkpoint with others is refused.
    counts: what became of the rows, see `Examples.counts`.
    language_model: trained tree -> the part of it that is a language model,
      for exports and samples.
    reward_head: trained tree -> {'kernel': [1, D]}: the export is a model that
      scores texts. None: there is no such head.
    may_stop: False while the state of `batches` cannot be saved; a signal then
      waits.
    completions: those of the newest rollout, rated, as rows of `answers.jsonl`
      (`rl.groups.shown_completions`); None: there are no rollouts.
  """

  loss_fn: LossFn
  batches: Batches
  evaluate: Callable[[Any], dict[str, float]] | None
  contents: dict[str, Any]
  counts: dict[str, Any]
  language_model: Callable[[Any], Any] = lambda params: params
  reward_head: Callable[[Any], Any] | None = None
  may_stop: Callable[[], bool] = lambda: True
  completions: Callable[[], list[dict[str, Any]]] | None = None


def train(
  job: Job, train_model: TrainModel, recipe: Recipe
) -> dict[str, float]:
  """Trains, from the newest checkpoint where there is one, and exports.

  Args:
    job: of `open_job`. The workdir gets `checkpoints/`, `metrics.jsonl`,
      `loss.png`, `result.json`, and where the config has them `samples.jsonl`
      and `answers.jsonl`.
    train_model: the model; its `params` are what is trained.
    recipe: the kind of training.

  Returns:
    The contents of `result.json`.

  Raises:
    UserError: a field is wrong, or the workdir holds another run.
    RunError: the run diverges or cannot be saved.
    SystemExit: a signal asked for the end; the state was saved.
  """
  began = time.perf_counter()
  config, workdir = job.config, job.workdir
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      open_checkpoints(config, workdir, job.spec, recipe.contents)
    )
    state, abstract = _first_state(job, train_model, recipe, checkpoints)
    on_metrics, console = _open_log(stack, config, workdir, int(state.step))
    stop = stack.enter_context(stop_on_signal())
    state = loop.fit(
      state,
      compile_step(job, train_model, recipe, abstract),
      _make_next_batch(recipe.batches),
      _schedule(config.train),
      loop.Hooks(
        on_metrics,
        evaluate=_make_evaluate(job, train_model, recipe, console),
        save=lambda s, scores: checkpoints.save(
          int(s.step), s, recipe.batches.get_state(), scores
        ),
        is_best=checkpoints.is_best,
        should_stop=_make_should_stop(recipe, checkpoints, stop),
        may_save=lambda: _may_save(recipe),
      ),
      frozen=train_model.frozen,
    )
    checkpoints.wait()
    if any_process(bool(stop)):
      _end(stop.received or 'SIGTERM', int(state.step))
    if config.train.export == 'best':
      state = _best_state(config, workdir, abstract, checkpoints)
  try:
    seconds = time.perf_counter() - began
    return _finish(job, train_model, recipe, state, seconds)
  except OSError as error:
    raise RunError(
      f'{error.filename or workdir}: {error.strerror or error}; the trained '
      'state is saved: fix this and start the same command again'
    ) from error


def compile_step(job: Job, train_model: TrainModel, recipe: Recipe, abstract):
  """The jitted step of a run, on its mesh.

  Args:
    job: of `open_job`.
    train_model: the model.
    recipe: the kind of training.
    abstract: the state or its shapes, with the sharding of each leaf.

  Returns:
    `step(state, batch, rng, frozen)`, see `make_train_step`; the state is
    donated.
  """
  step = make_train_step(
    recipe.loss_fn,
    job.tx,
    microbatches=job.microbatches,
    clip_norm=job.config.optim.clip_norm,
    ema_decay=job.config.train.ema_decay,
  )
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
  return on_mesh(step, train_model.mesh)


def _first_state(job, train_model, recipe, checkpoints):
  """(state, its shapes and places): the newest checkpoint's, or a fresh one."""
  config, workdir = job.config, job.workdir
  key = jax.random.fold_in(jax.random.key(config.seed), 2)
  ema = config.train.ema_decay > 0.0
  make = lambda params: init_state(params, job.tx, key, ema=ema)
  shapes = jax.eval_shape(make, train_model.params)
  shardings = state_shardings(shapes, train_model.mesh)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )
  restored = checkpoints.restore(abstract)
  step = restored.step if restored else -1  # not even an evaluation first
  if is_writer():
    writers.truncate_rows(workdir, step)
  if restored is None:
    return jax.jit(make, out_shardings=shardings)(train_model.params), abstract
  recipe.batches.set_state(restored.data_state)
  if step < config.train.steps:
    terminal.log(f'resumes from the checkpoint of step {step}')
  else:
    terminal.log(f'all {step} steps are done: nothing to train')
  return restored.state, abstract


def _open_log(stack, config, workdir, start):
  """(what takes the loop's metrics, the console beside the bar)."""
  write = stack.enter_context(writers.open_writers(config, workdir))
  bar = stack.enter_context(terminal.progress_bar('steps'))
  steps = config.train.steps
  task = bar.add_task('training', total=steps, completed=start)
  learning_rate = make_schedule(config.optim, steps)

  def on_metrics(metrics):
    if 'loss' in metrics:
      metrics['lr'] = float(learning_rate(metrics['step'] - 1))
    if is_writer():
      write(metrics)
      report.log_evaluation(metrics, bar.console)
    if 'loss' in metrics:
      text = f'loss {metrics["loss"]:.3f}'
      bar.update(task, completed=metrics['step'], description=text)

  return on_metrics, bar.console


def _schedule(train) -> loop.Schedule:
  return loop.Schedule(
    steps=train.steps,
    log_every=train.log_every,
    eval_every=train.eval_every,
    save_every=train.checkpoint_every,
    max_bad_steps=train.max_bad_steps,
    eval_first=train.eval_first,
  )


def _make_next_batch(batches: Batches):
  """`next_batch`; where it raises, the state is that before the call."""

  def next_batch(state):
    before = batches.get_state()
    try:
      return batches.next_batch(state)
    except Exception:
      batches.set_state(before)
      raise

  return next_batch


def _make_evaluate(job, train_model, recipe, console):
  """Scores and samples of a state; None where there are neither."""
  config, workdir = job.config, job.workdir
  if not any((recipe.evaluate, recipe.completions, config.sample.prompts)):
    return None
  options = read_options(config.data, 'data.')

  def evaluate(state):
    params = _averaged(state)
    if recipe.completions is not None:
      rows = [{'step': int(state.step), **row} for row in recipe.completions()]
      samples.append_rows(workdir, 'answers.jsonl', rows)
    scores = recipe.evaluate(params) if recipe.evaluate else {}
    if config.sample.prompts:
      rows = samples.write_samples(
        config.sample,
        options,
        train_model,
        recipe.language_model(params),
        int(state.step),
        workdir,
      )
      report.log_samples(rows, console)
    return scores

  return evaluate


def _make_should_stop(recipe, checkpoints, stop):
  def should_stop():
    checkpoints.check()  # a save that failed ends the run at once
    return any_process(bool(stop)) and recipe.may_stop()

  return should_stop


def _may_save(recipe) -> bool:
  """Whether the steps that are done can be saved before an error ends a run."""
  # With several processes the others would not join the save.
  whole = jax.process_count() == 1 and recipe.may_stop()
  if whole:
    terminal.log(
      'a batch could not be made; the steps before it are saved, and the '
      'same command resumes from there'
    )
  return whole


def _averaged(state: TrainState) -> Any:
  """What is evaluated and exported: the moving average, if there is one."""
  return state.params if state.ema is None else state.ema


def _best_state(config, workdir, abstract, checkpoints) -> TrainState:
  best = checkpoints.best_step()
  if best is None:
    raise RunError(
      f'train.export=best: no checkpoint of {workdir} has a finite '
      f'train.best={config.train.best}; name a metric that the run evaluates '
      'and start the same command again'
    )
  return checkpoints.restore(abstract, best).state


def _end(signal: str, step: int) -> None:
  terminal.log(
    f'stopped by {signal} after step {step}, which was saved: the same '
    'command resumes from there'
  )
  sys.exit(143 if signal == 'SIGTERM' else 130)


def _finish(job, train_model, recipe, state, seconds) -> dict[str, float]:
  """Exports, and writes what a person looks at first."""
  config, workdir = job.config, job.workdir
  params = _averaged(state)
  head = recipe.reward_head and recipe.reward_head(params)
  exports.write(config, train_model, recipe.language_model(params), head)
  rows = report.read_rows(workdir)
  result = report.summarise(rows)
  result['parameters'] = int(
    sum(np.prod(x.shape) for x in jax.tree.leaves(params))
  )
  result['skipped'] = int(state.skipped)
  if config.train.export == 'best':
    result['exported_step'] = int(state.step)
  result['seconds'] = seconds
  result['data'] = report.data_counts(recipe.counts)
  if is_writer():
    outputs.write_result(workdir, result)
    report.plot_loss(rows, os.path.join(workdir, 'loss.png'))
    report.print_completions(workdir)
    report.print_result(result, workdir)
  return result
