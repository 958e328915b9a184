"""Stages of a run: each makes one folder, whole or not at all, once.

A stage builds into `.NAME.partial` and is renamed to `NAME` when it is done,
so a killed run leaves no half-made folder that looks finished. `stage.json`
in it says from which settings it was made; a stage with other settings is
made anew.
"""

from collections.abc import Callable
import dataclasses
import json
import pathlib
import shutil
from typing import Any

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
) -> Stage:
  """Makes the stage `name` unless it is there, made from equal `inputs`.

  Args:
    workdir: the run's folder.
    name: of the stage and its folder.
    inputs: all settings that decide the result, as JSON can hold them.
    build: writes the stage's files into the folder it is given and returns a
      summary, as JSON can hold it.
  """
  workdir = pathlib.Path(workdir)
  folder, partial = workdir / name, workdir / f'.{name}.partial'
  inputs = json.loads(json.dumps(inputs))  # tuples become lists, as on disk
  record = _read_record(folder)
  if record and record['inputs'] == inputs:
    return Stage(folder, inputs, record['summary'], skipped=True)
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  record = {'inputs': inputs, 'summary': build(partial)}
  text = json.dumps(record, indent=2) + '\n'
  (partial / RECORD).write_text(text, encoding='utf-8')
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
  summary = json.loads(text)['summary']
  return Stage(folder, inputs, summary, skipped=False)


def _read_record(folder: pathlib.Path) -> dict | None:
  try:
    record = json.loads((folder / RECORD).read_text(encoding='utf-8'))
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
  return record if {'inputs', 'summary'} <= set(record) else None
