"""Where a run's metrics go: metrics.jsonl always, other places on request.

`metrics.jsonl` is what counts: TensorBoard and Weights & Biases get a copy,
and where one of them fails, the run continues without it.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import os
import time
from typing import Any
import uuid
import warnings

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from llm.errors import RunError, UserError
from llm.runs import outputs
from llm.runs.checks import check_log

# Scalars by name, `step` among them.
Metrics = Mapping[str, Any]


@contextlib.contextmanager
def open_writers(
  config: ml_collections.ConfigDict, workdir: str
) -> Iterator[Callable[[Metrics], None]]:
  """Opens what `config.log` names; gives a function that writes metrics.

  Metrics are a dict of scalars with `step`. Their JSON line is on disk when the
  function returns (15 us); the copies follow in the background. In a run of
  several processes only the first should write, and only it opens copies.

  Args:
    config: with `log.tensorboard` (events go to `WORKDIR/tensorboard`) and
      `log.wandb.{project,name,mode}` (off where the project is None); all of
      it goes to Weights & Biases as the run's config.
    workdir: of the run.

  Raises:
    UserError: a package is not installed, a field is wrong or Weights & Biases
      cannot be reached; before anything is written.
    RunError: by the function: `metrics.jsonl` cannot be written.
  """
  check_log(config.log)
  copies = {}
  if jax.process_index() == 0:
    if config.log.tensorboard:
      copies['TensorBoard'] = _TensorBoard(os.path.join(workdir, 'tensorboard'))
    if config.log.wandb.project is not None:
      copies['Weights & Biases'] = _WandB(config, workdir)

  def attempt(name: str, method: str, *args) -> None:
    try:
      getattr(copies[name], method)(*args)
    except Exception as error:  # whatever it is, the run is worth more
      del copies[name]
      warnings.warn(
        f'{name} failed and gets no more metrics; metrics.jsonl has all of '
        f'them: {type(error).__name__}: {error}',
        RuntimeWarning,
        stacklevel=3,
      )

  def write(metrics: Metrics) -> None:
    try:
      outputs.append_metrics(workdir, metrics)
    except OSError as error:
      raise RunError(
        f'{os.path.join(workdir, "metrics.jsonl")}: {error.strerror}; fix '
        'this and start the same command again'
      ) from error
    for name in list(copies):
      attempt(name, 'write', int(metrics['step']), _scalars(metrics))

  try:
    yield write
  finally:
    for name in list(copies):
      attempt(name, 'close')


def truncate_rows(workdir: str, step: int) -> None:
  """Cuts the rows after `step` from the files that a run adds rows to.

  A run that resumes from a checkpoint writes them again. A file is cut whole or
  not at all. Its last line may be incomplete if the run was killed while
  writing it; that line is cut too.

  Raises:
    UserError: another line is no JSON object.
  """
  for name in ('metrics.jsonl', 'samples.jsonl', 'answers.jsonl'):
    _truncate(os.path.join(workdir, name), step)


def _truncate(path: str, step: int) -> None:
  try:
    with open(path, 'rb') as file:
      content = file.read()
  except FileNotFoundError:
    return
  kept = []
  lines = content.removesuffix(b'\n').split(b'\n') if content else []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      keep = row.get('step', 0) <= step
    except (ValueError, AttributeError):
      if number < len(lines):
        raise UserError(
          f'{path}, line {number}: not a row of this run; remove it'
        ) from None
      keep = False
    if keep:
      kept.append(line + b'\n')
  new = b''.join(kept)
  if new != content:
    partial = f'{path}.partial'
    with open(partial, 'wb') as file:
      file.write(new)
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)


class _TensorBoard:
  """Scalars as events; 40 us a row, written by a thread of its own."""

  def __init__(self, folder: str):
    # Of `tensorboard` itself: no other framework is imported.
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer import event_file_writer

    self._event, self._summary = event_pb2, summary_pb2
    self._file = event_file_writer.EventFileWriter(folder, flush_secs=10)
    self._began = False

  def write(self, step: int, scalars: dict[str, float]) -> None:
    if not self._began:
      # Hides what a run that was killed had written from this step on.
      start = self._event.SessionLog(status=self._event.SessionLog.START)
      self._add(step, session_log=start)
      self._began = True
    value = self._summary.Summary.Value
    values = [value(tag=k, simple_value=v) for k, v in scalars.items()]
    self._add(step, summary=self._summary.Summary(value=values))

  def close(self) -> None:
    self._file.close()

  def _add(self, step: int, **content) -> None:
    self._file.add_event(
      self._event.Event(step=step, wall_time=time.time(), **content)
    )


class _WandB:
  """A run of Weights & Biases, the same one after a resume."""

  def __init__(self, config: ml_collections.ConfigDict, workdir: str):
    import wandb

    fields = config.log.wandb
    try:
      self._run = wandb.init(
        project=fields.project,
        name=fields.name,
        mode=fields.mode,
        dir=workdir,
        id=_run_id(workdir),
        resume='allow',
        config=config.to_dict(),
      )
    except Exception as error:
      raise UserError(
        f'log.wandb.project={fields.project!r}: {error}; log in with '
        '`wandb login`, or set log.wandb.mode=offline'
      ) from error
    # Not W&B's own counter: it drops rows that a resumed run writes again.
    self._run.define_metric('*', step_metric='step')

  def write(self, step: int, scalars: dict[str, float]) -> None:
    self._run.log({'step': step, **scalars})

  def close(self) -> None:
    self._run.finish()


def _run_id(workdir: str) -> str:
  path = os.path.join(workdir, 'wandb_id')
  try:
    with open(path, encoding='utf-8') as file:
      return file.read().strip()
  except FileNotFoundError:
    name = uuid.uuid4().hex
    with open(path, 'w', encoding='utf-8') as file:
      file.write(name)
    return name


def _scalars(metrics: Metrics) -> dict[str, float]:
  """The numbers, without the step."""
  return {
    name: float(value)
    for name, value in metrics.items()
    if name != 'step'
    and np.ndim(value) == 0
    and jnp.issubdtype(np.asarray(value).dtype, np.number)
  }
