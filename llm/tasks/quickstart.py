"""The run `quickstart`: world, tokenizer, model and exam, from nothing.

Eight stages, each a folder of the workdir (see `llm.runs.stages`):
  corpus      the world's ledger, and what is written about it
  tokenizer   a SentencePiece model with a chat template
  pretrain    a run of `configs/pretrain.py` on the texts
  sft         a run of `configs/sft.py` on the dialogues, from that model
  preference  a run of `configs/preference.py` on pairs of answers, from that
  rl          a run of `configs/rl.py` on sums, from that
  model       the result, a Hugging Face folder
  exam        questions, answers and their marks of every model on the way
"""

import functools
import pathlib
import shutil

import jax
import ml_collections
import numpy as np
from rich import console as rich_console

from llm.data.worlds import quickstart as quickstart_data
from llm.data.worlds import world as world_lib
from llm.errors import UserError
from llm.evals import exam
from llm.runs import outputs, report
from llm.runs.stages import Stage, run_stage
from llm.tasks import run as run_lib
from llm.tasks.quickstart_checks import (
  STAGES,
  check_quickstart,
  training_config,
)

DEFAULT_WORKDIR = 'runs/quickstart'
# The metrics, in words, that say what a stage did.
_TOLD = {
  'pretrain': ('loss', 'loss {:.2f} to {:.2f} nats'),
  'sft': ('loss', 'loss {:.2f} to {:.2f} nats'),
  'preference': ('loss', 'loss {:.2f} to {:.2f} nats'),
  'rl': ('reward_mean', 'sampled sums that are right {:.0%} to {:.0%}'),
}
_LAST_ROWS = {'rl': 5}  # that the last value is the mean of; else 20


def run(config: ml_collections.ConfigDict, workdir: str | None) -> None:
  """Runs the stages that are not done yet and reports the exam.

  Args:
    config: see `configs/quickstart.py`.
    workdir: folder of all results; None is `DEFAULT_WORKDIR`.

  Raises:
    UserError: a field is invalid; the message names it.
  """
  if workdir is None:
    run_lib.run_task(config, DEFAULT_WORKDIR)
    return
  # What a later stage would refuse is refused before any work.
  check_quickstart(config)
  _check_devices(config)
  world = _build_world(config)
  trained, model = _make_model(config, world, pathlib.Path(workdir))
  marks = run_stage(
    workdir,
    'exam',
    model.inputs | {'exam': config.exam.to_dict()},
    lambda folder: exam.hold_exam(
      folder,
      world,
      {kind: stage.folder / 'model' for kind, stage in trained.items()},
      settings=config.exam,
    ),
  )
  _log(marks, 'all {questions} questions that the ledger can answer')
  exam.print_report(marks)
  result = {}
  for kind, stage in trained.items():
    result[f'{kind}_{_TOLD[kind][0]}'] = stage.summary['last']
    result[f'{kind}_seconds'] = stage.summary['seconds']
  outputs.write_result(str(workdir), result | marks.summary['result'])


def _make_model(
  config: ml_collections.ConfigDict,
  world: world_lib.World,
  workdir: pathlib.Path,
) -> tuple[dict[str, Stage], Stage]:
  """The stages of `STAGES` by name, and that of the final folder."""
  inputs = {'seed': config.seed, 'world': config.world.to_dict()}
  inputs['files'] = [*STAGES.values()]
  corpus = run_stage(
    workdir,
    'corpus',
    inputs,
    lambda folder: quickstart_data.write_corpus(
      folder, world, config.world.quizzes
    ),
  )
  _log(
    corpus,
    '{texts:,} texts, {dialogues:,} dialogues and {pairs:,} pairs about '
    '{people} people and {sums} sums',
  )

  inputs |= {'tokenizer': config.tokenizer.to_dict()}
  tokenizer = run_stage(
    workdir,
    'tokenizer',
    inputs,
    lambda folder: quickstart_data.train_tokenizer(
      folder, corpus.folder, config.tokenizer.vocab_size
    ),
  )
  _log(tokenizer, '{vocab_size} tokens of {characters:.1f} characters')

  inputs |= {name: config[name].to_dict() for name in ('model', 'data')}
  stages = {}
  for kind in STAGES:
    inputs |= {kind: config[kind].to_dict()}
    fields = training_config(config, kind)
    build = functools.partial(_train, fields, workdir, kind)
    stage = run_stage(workdir, kind, inputs, build, in_place=True)
    told = _TOLD[kind][1].format(stage.summary['first'], stage.summary['last'])
    _log(stage, '{tokens:,} tokens in {seconds:.0f} s, ' + told)
    stages[kind] = stage

  model = run_stage(
    workdir, 'model', inputs, functools.partial(_copy_model, stage)
  )
  _log(model, 'a folder for transformers and configs/generate.py')
  return stages, model


def _check_devices(config) -> None:
  count = jax.device_count()
  for kind in STAGES:
    size = config[kind].batch_size
    if size % count:
      raise UserError(
        f'{kind}.batch_size={size}: use a multiple of the {count} devices'
      )


def _build_world(config) -> world_lib.World:
  return world_lib.build_world(
    config.seed,
    config.world.size,
    max_operand=config.world.max_operand,
    sum_exposures=config.world.sum_exposures,
    held_out=config.world.held_out,
  )


def _train(
  fields: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  kind: str,
  folder: pathlib.Path,
) -> dict:
  """Runs the training task in the stage's folder; sets `fields`' paths."""
  before = dict(zip([*STAGES][1:], STAGES))
  if kind in before:
    fields.model.path = str(workdir / before[kind] / 'model')
  else:
    fields.tokenizer.path = str(workdir / 'tokenizer')
  fields.data.path = str(workdir / 'corpus' / STAGES[kind])
  fields.export = str(folder / 'model')
  result = run_lib.find_task(kind)(fields, str(folder))
  rows = report.read_rows(str(folder))
  values = [row[_TOLD[kind][0]] for row in rows]
  return {
    'parameters': result['parameters'],
    'tokens': result['tokens'],
    # Of all steps, of which this process may have done the last ones only.
    'seconds': sum(row['tokens'] / row['tokens_per_s'] for row in rows),
    'first': values[0],
    'last': float(np.mean(values[-_LAST_ROWS.get(kind, 20) :])),
  }


def _copy_model(last: Stage, folder: pathlib.Path) -> dict:
  shutil.copytree(last.folder / 'model', folder, dirs_exist_ok=True)
  return {}


def _log(stage: Stage, text: str) -> None:
  """One line about a finished stage."""
  console = rich_console.Console(highlight=False, soft_wrap=True)
  note = ' [dim](done before)[/dim]' if stage.skipped else ''
  text = text.format(**stage.summary)
  console.print(f'[bold]{stage.folder.name:<12}[/bold]{text}{note}')
