"""The run that every kind of training shares, from the first state to export.

What differs between the kinds (data, loss, evaluation) comes in as a `Recipe`
of functions.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import os
import sys
import time
from typing import Any

import jax
import numpy as np

from llm.checkpoints.train_state import Checkpoints
from llm.errors import RunError, UserError
from llm.host import terminal
from llm.parallel.distributed import any_process, is_writer
from llm.parallel.mesh import on_mesh
from llm.parallel.sharding import state_shardings
from llm.runs import exports, outputs, report, samples, writers
from llm.runs.checks import BEST
from llm.runs.train_model import ModelSpec, TrainModel, trained_shapes
from llm.train import loop
from llm.train.optim import make_optimizer
from llm.train.schedules import make_schedule
from llm.train.signals import stop_on_signal
from llm.train.state import TrainState, init_state
from llm.train.step import LossFn, make_train_step

# Fields that may differ when a run goes on, for they change no parameter (or,
# as train.steps, only what is still to come).
_FREE = {
  'train': (
    'steps',
    'log_every',
    'eval_every',
    'eval_first',
    'checkpoint_every',
    'keep',
    'best',
    'export',
    'max_bad_steps',
    'microbatch_size',
    'remat',
  ),
  'data': ('path', 'eval_path'),  # the contents count: Recipe.identity
  'lora': ('export', 'path'),  # the contents count: Blueprint.weights
  'teacher': ('path',),  # the weights count: Recipe.identity
}
_FREE_GROUPS = ('mesh', 'sample', 'log', 'export', 'model', 'tokenizer')


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What one kind of training adds.

  Attributes:
    loss_fn: see `llm.train.step`.
    draw: the next batch on the devices, and numbers about it for the row.
    data_state: JSON-able position in the data, after the last `draw`.
    seek: sets it.
    evaluate: trained tree -> metrics named `eval_…`, or None.
    identity: JSON-able; with another one a checkpoint is refused.
    language_model: trained tree -> the part of it that is a language model,
      for exports and samples.
    reward_head: trained tree -> {'kernel': [1, D]}: the export is a model that
      scores texts. None: there is no such head.
    may_stop: False where the data's state is not whole; a signal waits then.
    completions: those of the newest rollout, rated, as rows of `answers.jsonl`
      (`rl_groups.shown_completions`); None: there are no rollouts.
  """

  loss_fn: LossFn
  draw: Callable[[TrainState], tuple[Any, Mapping[str, float]]]
  data_state: Callable[[], dict[str, Any]]
  seek: Callable[[dict[str, Any]], None]
  evaluate: Callable[[Any], dict[str, float]] | None
  identity: dict[str, Any]
  language_model: Callable[[Any], Any] = lambda params: params
  reward_head: Callable[[Any], Any] | None = None
  may_stop: Callable[[], bool] = lambda: True
  completions: Callable[[], list[dict[str, Any]]] | None = None


def check_run(
  config,
  workdir: str,
  spec: ModelSpec,
  identity: dict[str, Any],
  *,
  shapes: Any = None,
  reward_head: bool = False,
) -> None:
  """Refuses, before the weights are read, what would end the run later on.

  Args:
    config: of `training_fields`.
    workdir: of the run.
    spec: the model.
    identity: as the `Recipe` will have it.
    shapes: of what will be trained; None: `trained_shapes`.
    reward_head: the `Recipe` will have one.

  Raises:
    UserError: a field, an export folder or the workdir's checkpoint does not
      fit this run.
  """
  writers.check_fields(config.log)
  samples.check_fields(config.sample, spec)
  exports.check_fields(config, spec, workdir, reward_head)
  if shapes is None:
    shapes = trained_shapes(config, spec)
  make_optimizer(config.optim, config.train.steps, shapes)
  with _open_checkpoints(config, workdir, spec, identity) as checkpoints:
    done = checkpoints.newest_step() or 0
  if done > config.train.steps:
    raise UserError(
      f'train.steps={config.train.steps}: the run in {workdir} has done {done} '
      'already; use as many or more, or another workdir'
    )


def train(
  config,
  workdir: str,
  train_model: TrainModel,
  recipe: Recipe,
  microbatches: int,
) -> dict[str, float]:
  """Trains, from the newest checkpoint where there is one, and exports.

  Args:
    config: of `training_fields`.
    workdir: gets `checkpoints/`, `metrics.jsonl`, `loss.png`, `result.json`,
      and where they are asked for `samples.jsonl` and `answers.jsonl`.
    train_model: the model.
    recipe: the kind of training.
    microbatches: parts of a batch.

  Returns:
    The row of `result.json`.

  Raises:
    UserError: a field is wrong, or the workdir holds another run.
    RunError: the run diverges or cannot be saved.
    SystemExit: a signal asked for the end; the state was saved.
  """
  began = time.perf_counter()
  tx = make_optimizer(config.optim, config.train.steps, train_model.params)
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      _open_checkpoints(config, workdir, train_model.spec, recipe.identity)
    )
    state, abstract = _first_state(
      config, workdir, train_model, tx, recipe, checkpoints
    )
    on_row, console = _open_rows(stack, config, workdir, int(state.step))
    stop = stack.enter_context(stop_on_signal())

    def should_stop():
      checkpoints.check()  # a save that failed ends the run at once
      return any_process(bool(stop)) and recipe.may_stop()

    def may_save():
      # Of several processes the others would not come to save.
      whole = jax.process_count() == 1 and recipe.may_stop()
      if whole:
        terminal.log(
          'a batch could not be made; the steps before it are saved, and the '
          'same command goes on from there'
        )
      return whole

    state = loop.fit(
      state,
      compile_step(config, train_model, tx, recipe, microbatches, abstract),
      _whole_draw(recipe),
      _schedule(config.train),
      frozen=train_model.frozen,
      on_row=on_row,
      evaluate=_make_evaluate(config, workdir, train_model, recipe, console),
      save=lambda s, scores: checkpoints.save(
        int(s.step), s, recipe.data_state(), scores
      ),
      is_best=checkpoints.is_best,
      should_stop=should_stop,
      may_save=may_save,
    )
    checkpoints.wait()
    if any_process(bool(stop)):
      _end(stop.received or 'SIGTERM', int(state.step))
    if config.train.export == 'best':
      state = _best_state(config, workdir, abstract, checkpoints)
  try:
    seconds = time.perf_counter() - began
    return _finish(config, workdir, train_model, recipe, state, seconds)
  except OSError as error:
    raise RunError(
      f'{error.filename or workdir}: {error.strerror or error}; the trained '
      'state is saved: mend this and start the same command again'
    ) from error


def compile_step(config, train_model, tx, recipe, microbatches, abstract):
  """The jitted step of a run, on its mesh.

  Args:
    config: of the run.
    train_model: the model.
    tx: the optimizer.
    recipe: the kind of training.
    microbatches: parts of a batch.
    abstract: the state or its shapes, with the sharding of each leaf.

  Returns:
    `step(state, batch, rng, frozen)`, see `make_train_step`; the state is
    donated.
  """
  step = make_train_step(
    recipe.loss_fn,
    tx,
    microbatches=microbatches,
    clip_norm=config.optim.clip_norm,
    ema_decay=config.train.ema_decay,
  )
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
  return on_mesh(step, train_model.mesh)


def _whole_draw(recipe: Recipe):
  """`recipe.draw`; where it raises, the data's state is that before it."""

  def draw(state):
    before = recipe.data_state()
    try:
      return recipe.draw(state)
    except Exception:
      recipe.seek(before)
      raise

  return draw


def averaged(state: TrainState) -> Any:
  """What is evaluated and exported: the moving average, if there is one."""
  return state.params if state.ema is None else state.ema


def run_identity(
  config, spec: ModelSpec, identity: dict[str, Any]
) -> dict[str, Any]:
  """All that decides the result of a run, as JSON can hold it."""
  fields = config.to_dict()
  kept = {}
  for name, value in fields.items():
    if name in _FREE_GROUPS:
      continue
    if isinstance(value, dict):
      free = _FREE.get(name, ())
      value = {k: v for k, v in value.items() if k not in free}
    kept[name] = value
  model = dataclasses.asdict(spec.config)
  model['weights'] = spec.weights
  model['scan_layers'] = config.model.scan_layers
  return {'model': model, 'config': kept, **identity}


def _open_checkpoints(config, workdir, spec, identity) -> Checkpoints:
  best = config.train.best
  return Checkpoints(
    os.path.join(workdir, 'checkpoints'),
    keep=config.train.keep,
    best=(best, BEST[best]) if best else None,
    identity=run_identity(config, spec, identity),
  )


def _schedule(train) -> loop.Schedule:
  return loop.Schedule(
    steps=train.steps,
    log_every=train.log_every,
    eval_every=train.eval_every,
    save_every=train.checkpoint_every,
    max_bad_steps=train.max_bad_steps,
    eval_first=train.eval_first,
  )


def _open_rows(stack, config, workdir, start):
  """(what takes the loop's rows, the console beside the bar)."""
  write = stack.enter_context(writers.open_writers(config, workdir))
  bar = stack.enter_context(terminal.progress_bar('steps'))
  steps = config.train.steps
  task = bar.add_task('training', total=steps, completed=start)
  rate = make_schedule(config.optim, steps)

  def on_row(row):
    if 'loss' in row:
      row['lr'] = float(rate(row['step'] - 1))
    if is_writer():
      write(row)
      report.log_evaluation(row, bar.console)
    if 'loss' in row:
      text = f'loss {row["loss"]:.3f}'
      bar.update(task, completed=row['step'], description=text)

  return on_row, bar.console


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
    'command goes on from there'
  )
  sys.exit(143 if signal == 'SIGTERM' else 130)


def _make_evaluate(config, workdir, train_model, recipe, console):
  """Scores and samples of a state; None where there is nothing to tell."""
  if not any((recipe.evaluate, recipe.completions, config.sample.prompts)):
    return None

  def evaluate(state):
    params = averaged(state)
    if recipe.completions is not None:
      rows = [{'step': int(state.step), **row} for row in recipe.completions()]
      samples.append_rows(workdir, 'answers.jsonl', rows)
    scores = recipe.evaluate(params) if recipe.evaluate else {}
    if config.sample.prompts:
      rows = samples.write_samples(
        config.sample,
        train_model,
        recipe.language_model(params),
        int(state.step),
        workdir,
      )
      report.log_samples(rows, console)
    return scores

  return evaluate


def _first_state(config, workdir, train_model, tx, recipe, checkpoints):
  """(state, its shapes and places): the newest checkpoint's, or a fresh one."""
  key = jax.random.fold_in(jax.random.key(config.seed), 2)
  ema = config.train.ema_decay > 0.0
  make = lambda params: init_state(params, tx, key, ema=ema)
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
  recipe.seek(restored.data_state)
  if step < config.train.steps:
    terminal.log(f'goes on from the checkpoint of step {step}')
  else:
    terminal.log(f'all {step} steps are done: nothing to train')
  return restored.state, abstract


def _finish(
  config, workdir, train_model, recipe, state, seconds
) -> dict[str, float]:
  """Exports, and writes what a person looks at first."""
  params = averaged(state)
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
  if is_writer():
    outputs.write_result(workdir, result)
    report.draw(rows, os.path.join(workdir, 'loss.png'))
    report.print_completions(workdir)
    report.print_result(result, workdir)
  return result
