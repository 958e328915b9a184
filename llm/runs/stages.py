"""Stages of a run: each makes one folder, whole or not at all, once.

A stage builds into `.NAME.partial` and is renamed to `NAME` when it is done,
so a killed run leaves no half-made folder that looks finished. `stage.json`
in it has the settings that it was made from; a stage with other settings is
made anew.

A stage that takes long enough to be cut off, training, builds in place: its
folder is there from the start, with a `stage.json` that lacks the summary until
the stage is done, and a build that was killed resumes from what it left.
"""

from collections.abc import Callable
import dataclasses
import json
import pathlib
import shutil
from typing import Any

from llm.runs import outputs

RECORD = 'stage.json'


@dataclasses.dataclass(frozen=True)
class Stage:
  """A finished stage.

  Attributes:
    folder: where its files are.
    inputs: the settings that decide its contents.
    summary: what `build` returned, as read back from JSON.
    skipped: it was there already.
  """

  folder: pathlib.Path
  inputs: dict[str, Any]
  summary: dict[str, Any]
  skipped: bool


def run_stage(
  workdir: str | pathlib.Path,
  name: str,
  inputs: dict[str, Any],
  build: Callable[[pathlib.Path], dict[str, Any]],
  *,
  in_place: bool = False,
) -> Stage:
  """Makes the stage `name` unless it is there, made from equal `inputs`.

  Args:
    workdir: the run's folder.
    name: of the stage and its folder.
    inputs: all settings that decide the result, as JSON can hold them.
    build: writes the stage's files into the folder it is given and returns a
      summary, as JSON can hold it.
    in_place: `build` gets the stage's own folder, with what a killed build
      from equal `inputs` left in it; what was made from others is removed
      first.
  """
  workdir = pathlib.Path(workdir)
  folder, partial = workdir / name, workdir / f'.{name}.partial'
  inputs = json.loads(json.dumps(inputs))  # tuples become lists, as on disk
  record = _read_record(folder)
  if record and record['inputs'] == inputs:
    return Stage(folder, inputs, record['summary'], skipped=True)
  if in_place:
    return _build_in_place(folder, inputs, build)
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  summary = _write_record(partial, inputs, build(partial))
  if folder.exists():
    # A directory cannot be replaced in one step; killed between these two,
    # the stage is missing and will be made again.
    stale = workdir / f'.{name}.stale'
    shutil.rmtree(stale, ignore_errors=True)
    folder.rename(stale)
    partial.rename(folder)
    shutil.rmtree(stale)
  else:
    partial.rename(folder)
  return Stage(folder, inputs, summary, skipped=False)


def _build_in_place(folder: pathlib.Path, inputs, build) -> Stage:
  record = _load_json(folder / RECORD)
  if record is None or record.get('inputs') != inputs or 'summary' in record:
    # The record first: killed in between, what is left must not look done.
    (folder / RECORD).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    outputs.write_json(str(folder / RECORD), {'inputs': inputs})
  summary = _write_record(folder, inputs, build(folder))
  return Stage(folder, inputs, summary, skipped=False)


def _write_record(folder: pathlib.Path, inputs, summary) -> dict:
  """Marks a folder as done; returns the summary as it will be read back."""
  outputs.write_json(
    str(folder / RECORD), {'inputs': inputs, 'summary': summary}
  )
  return _load_json(folder / RECORD)['summary']


def _read_record(folder: pathlib.Path) -> dict | None:
  record = _load_json(folder / RECORD)
  return record if record and {'inputs', 'summary'} <= set(record) else None


def _load_json(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
