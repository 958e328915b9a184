"""Checkpoints of a training run: saved in the background, restored intact.

A folder per step. Orbax writes the arrays to `STEP.saving`; then a manifest
with the checksums seals it (llm/checkpoints/sealed.py), and only then it is
renamed to `STEP`: a save that was killed never has a step's name. What to keep
is decided here and not by Orbax's CheckpointManager, which skips a save of a
step that it has seen (google/orbax#605), deletes older steps before the new
one is sealed, and counts damaged ones among those that it keeps.
"""

from collections.abc import Callable
from concurrent import futures
import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
from typing import Any, Mapping
import warnings

import jax
import orbax.checkpoint as ocp

from llm.checkpoints import leaves, sealed, silence
from llm.errors import RunError, UserError
from llm.parallel.distributed import any_process

# `.replaced` is a step between its old and its new folder's renaming.
_SAVING, _REPLACED, _TRASH = '.saving', '.replaced', '.trash'
_FOLDER = re.compile(r'(\d+)(\.replaced)?')
_MODES = ('min', 'max')
_MOST_DIFFERENCES = 6


@dataclasses.dataclass(frozen=True)
class Restored:
  """One checkpoint.

  Attributes:
    step: as it was saved.
    state: pytree of arrays, placed as the abstract state asked.
    data_state: of the data iterator.
    metrics: what was known of the model at that step.
  """

  step: int
  state: Any
  data_state: dict[str, Any]
  metrics: dict[str, Any]


class Checkpoints:
  """The checkpoints in one folder of a local or mounted file system.

  One save at a time runs in the background. If it fails, the next call of any
  method, `check` too, raises a `RunError` with the cause, once; the older
  checkpoints are untouched then, since they go only after the new one is
  sealed. Close it, or use it as a context manager, to wait for the last save.

  Args:
    folder: made where it does not exist.
    keep: how many of the newest to keep, at least 1.
    best: None, or (name of a metric, 'min' or 'max'): the best checkpoint by
      it is kept besides; those without the metric, or where it is not finite,
      take no part.
    identity: JSON-able nested dict of what makes a run this run, such as the
      model's shape and the kind of training; a checkpoint with another one is
      refused.

  Raises:
    UserError: a wrong argument, or the folder cannot be made or written.
  """

  def __init__(
    self,
    folder: str,
    *,
    keep: int = 3,
    best: tuple[str, str] | None = None,
    identity: Mapping[str, Any],
  ):
    if keep < 1:
      raise UserError(f'keep={keep}: at least 1 checkpoint must be kept')
    if best and best[1] not in _MODES:
      raise UserError(f'best={best!r}: the second must be one of {_MODES}')
    self._folder = os.path.abspath(folder)
    try:
      os.makedirs(self._folder, exist_ok=True)
    except OSError as error:
      raise UserError(
        f'checkpoint folder {self._folder}: {error.strerror}'
      ) from error
    self._keep = keep
    self._best = best
    self._identity = json.loads(sealed.to_json(identity))
    self._damaged = set()
    self._pending = None
    silence.silence_orbax()
    self._saver = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(state=ocp.StandardCheckpointHandler())
    )
    self._thread = futures.ThreadPoolExecutor(1, 'checkpoint')

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, error, traceback) -> None:
    if error is None:
      self.close()
      return
    try:
      self._close(self._join)  # not all processes may come here
    except RunError as failed:
      # The body's own error says why the run stopped.
      warnings.warn(str(failed), RuntimeWarning, stacklevel=2)

  def steps(self) -> list[int]:
    """The steps that have a checkpoint, damaged ones too, oldest first."""
    return sorted(self._paths())

  def newest_step(self) -> int | None:
    """The step that `restore` would read if no file's content is damaged.

    Raises:
      UserError: it has another identity.
    """
    self.wait()
    records = self._records()
    if not records:
      return None
    step = max(records)
    found = records[step]['identity']
    self._refuse_other(self._paths()[step], found, self._identity, 'run')
    return step

  def best_step(self) -> int | None:
    """The step of the best checkpoint by the metric; the first of equals."""
    self.wait()
    return self._best_of(self._records())

  def is_best(self, metrics: Mapping[str, Any]) -> bool:
    """True where a state with these metrics would be the best one."""
    if self._best is None or self._best[0] not in metrics:
      return False
    self.wait()
    records = self._records()
    new = max(records, default=0) + 1
    return self._best_of(records | {new: {'metrics': metrics}}) == new

  def restore(
    self, abstract_state: Any, step: int | None = None
  ) -> Restored | None:
    """Reads the newest intact checkpoint, or that of `step`.

    Every file is compared with the manifest first; a damaged checkpoint is
    passed over with a warning that names it, the file and the reason.

    Args:
      abstract_state: the state's pytree of `jax.ShapeDtypeStruct` (or arrays):
        shapes, dtypes, and with `sharding` where each leaf is put, whatever
        mesh it was saved from; without one, the default device.
      step: a certain one; it must be intact then.

    Returns:
      None where no save was ever finished.

    Raises:
      UserError: no checkpoint is intact, or the one chosen has another
        identity or other arrays than `abstract_state`.
    """
    self.wait()
    paths = self._paths()
    if step is not None:
      paths = {step: self._path(step)}
    reasons = []
    for number in sorted(paths, reverse=True):
      try:
        record = sealed.verify(paths[number])
      except sealed.DamagedError as error:
        self._damaged.add(number)
        reasons.append(f'{paths[number]}: {error}')
        continue
      for reason in reasons:
        warnings.warn(
          f'damaged checkpoint passed over, step {number} is used instead: '
          f'{reason}',
          RuntimeWarning,
          stacklevel=2,
        )
      return self._read(paths[number], record, abstract_state)
    if reasons:
      raise UserError(
        f'no intact checkpoint: {"; ".join(reasons)}; '
        f'to start anew, remove {self._folder}'
      )
    return None

  def save(
    self,
    step: int,
    state: Any,
    data_state: Mapping[str, Any],
    metrics: Mapping[str, Any],
  ) -> None:
    """Saves in the background; blocks for the copy to the host only.

    First waits for the save before it. `state` may be donated as soon as this
    returns. A checkpoint of the same step is replaced.

    Args:
      step: number of optimizer steps done.
      state: pytree of arrays and typed keys.
      data_state: JSON-able state of the data iterator.
      metrics: scalars by name, with the one of `best` where it is known.

    Raises:
      RunError: this save or the one before failed.
      UserError: the folder has an intact checkpoint of a later step.
    """
    self.wait()
    record = sealed.to_json(
      {
        'step': step,
        'identity': self._identity,
        'metrics': metrics,
        'data_state': data_state,
        'leaves': leaves.specs(state),
      }
    )
    later = [s for s in self._records() if s > step]
    if later:
      raise UserError(
        f'{self._folder} has a checkpoint of step {max(later)}, later than '
        f'this of step {step}: resume from it, or use another folder'
      )
    try:
      if jax.process_index() == 0:
        self._clean()
      self._saver.save(
        self._path(step) + _SAVING,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(leaves.to_arrays(state))
        ),
      )
    except Exception as error:
      raise self._failure(step, error) from error
    self._pending = step, self._thread.submit(self._commit, step, record)

  def check(self) -> None:
    """Raises the failure of the save in the background; never waits."""
    if self._pending and self._pending[1].done():
      self._join()

  def wait(self) -> None:
    """Waits for the save in the background, and raises its failure.

    All processes wait for the first one, which renames and removes folders.
    """
    failure = None
    try:
      self._join()
    except RunError as error:
      failure = error
    if any_process(failure is not None):
      raise failure or RunError('another process could not save a checkpoint')

  def _join(self) -> None:
    if self._pending is None:
      return
    (step, future), self._pending = self._pending, None
    try:
      future.result()
    except Exception as error:
      raise self._failure(step, error) from error

  def close(self) -> None:
    """Waits, raises a failure, and ends the background threads."""
    self._close(self.wait)

  def _close(self, wait: Callable[[], None]) -> None:
    try:
      wait()
    finally:
      self._thread.shutdown()
      self._saver.close()

  def _path(self, step: int) -> str:
    return os.path.join(self._folder, str(step))

  def _paths(self) -> dict[int, str]:
    """Folders with a step's name, whole or damaged later."""
    paths = {}
    # In this order a folder comes before the one that it was to replace.
    for name in sorted(os.listdir(self._folder)):
      match = _FOLDER.fullmatch(name)
      if match:
        paths.setdefault(int(match[1]), os.path.join(self._folder, name))
    return paths

  def _records(self) -> dict[int, dict[str, Any]]:
    """The records of the checkpoints that are not known to be damaged."""
    records = {}
    for step, path in sorted(self._paths().items()):
      if step not in self._damaged:
        try:
          records[step] = sealed.read_record(path)
        except sealed.DamagedError:
          continue
    return records

  def _best_of(self, records: Mapping[int, dict[str, Any]]) -> int | None:
    if self._best is None:
      return None
    name, mode = self._best
    sign = 1 if mode == 'min' else -1
    values = {s: record['metrics'].get(name) for s, record in records.items()}
    scores = {
      step: sign * value
      for step, value in values.items()
      if value is not None and math.isfinite(value)
    }
    return min(scores, key=scores.get, default=None)

  def _read(
    self, path: str, record: dict[str, Any], abstract_state: Any
  ) -> Restored:
    self._refuse_other(path, record['identity'], self._identity, 'run')
    expected = leaves.specs(abstract_state)
    self._refuse_other(path, record['leaves'], expected, 'state')
    arrays = leaves.abstract_arrays(abstract_state)
    restored = self._saver.restore(
      path, args=ocp.args.Composite(state=ocp.args.StandardRestore(arrays))
    )
    return Restored(
      step=record['step'],
      state=leaves.from_arrays(abstract_state, restored['state']),
      data_state=record['data_state'],
      metrics=record['metrics'],
    )

  def _refuse_other(self, path: str, there: Any, here: Any, what: str) -> None:
    differences = _differences(there, here)
    if differences:
      shown = '; '.join(differences[:_MOST_DIFFERENCES])
      more = len(differences) - _MOST_DIFFERENCES
      shown += f'; and {more} more' if more > 0 else ''
      raise UserError(
        f'checkpoint {path} is of another {what}: {shown}: '
        'use the config that it was saved with, or another workdir'
      )

  def _commit(self, step: int, record: str) -> None:
    """In the background: waits for Orbax, seals, renames, removes the old."""
    self._saver.wait_until_finished()
    if jax.process_index() != 0:
      return
    path = self._path(step)
    sealed.seal(path + _SAVING, record)
    if os.path.exists(path):
      os.rename(path, path + _REPLACED)
    os.rename(path + _SAVING, path)
    sealed.sync_folder(self._folder)
    self._damaged.discard(step)
    if os.path.exists(path + _REPLACED):
      _remove(path + _REPLACED)
    records = self._records()
    kept = {*sorted(records)[-self._keep :], self._best_of(records)}
    for old, old_path in self._paths().items():
      if old not in kept:
        _remove(old_path)
        self._damaged.discard(old)

  def _clean(self) -> None:
    """Removes what a killed or failed save has left."""
    for name in sorted(os.listdir(self._folder)):
      path = os.path.join(self._folder, name)
      step, dot, _ = name.partition('.')
      if not (step.isdecimal() and dot):
        continue
      if name == step + _REPLACED and not os.path.exists(self._path(step)):
        os.rename(path, self._path(step))
      elif name.startswith((step + _SAVING, step + _REPLACED, step + _TRASH)):
        shutil.rmtree(path)

  def _failure(self, step: int, error: Exception) -> RunError:
    # A half-written save would keep a full disk full.
    if jax.process_index() == 0:
      with contextlib.suppress(OSError):
        self._clean()
    others = ', '.join(map(str, self._records())) or 'none'
    return RunError(
      f'the checkpoint of step {step} was not saved to {self._folder}: '
      f'{error}; checkpoints there that are whole: {others}; fix the cause and '
      'start the same command again'
    )


def _remove(path: str) -> None:
  """Removes a folder; if killed half-way, leaves none with a step's name."""
  trash = path + _TRASH
  os.rename(path, trash)
  shutil.rmtree(trash)


def _differences(there: Any, here: Any, name: str = '') -> list[str]:
  """Lines `name is X there and Y here` of two nested dicts."""
  if isinstance(there, dict) and isinstance(here, dict):
    lines = []
    for key in there | here:
      path = f'{name}.{key}' if name else key
      pair = there.get(key, 'absent'), here.get(key, 'absent')
      lines += _differences(*pair, path)
    return lines
  if there == here:
    return []
  return [f'{name} is {there} there and {here} here']
