"""What each kind of run refuses before JAX is imported.

JAX takes seconds to import, and a typo should not wait for it. So these
functions need none of it: they check the fields, the paths, the shape of the
model and the first row of each file. What needs a tokenizer, the other rows,
the devices or the weights is refused by the task itself, still before the
weights are read.
"""

from collections.abc import Callable
from typing import Any

from llm.align import checks as align_checks
from llm.data import examples, pairs, rated, reading, shapes, steps
from llm.engine.checks import check_generate, check_score
from llm.parallel.checks import check_microbatch
from llm.rewards.functions import check_row
from llm.rl import checks as rl_checks
from llm.runs.base import base_limit, open_base
from llm.runs.checks import (
  check_data,
  check_fields,
  check_folder,
  row_options,
)
from llm.runs.export_checks import check_exports
from llm.tasks import preview
from llm.tasks.quickstart_checks import check_quickstart
from llm.tasks.training_fields import training_fields

# What training refuses in the fields of one kind, by `config.task`.
_FIELDS = {
  'pretrain': align_checks.check_supervised,
  'sft': align_checks.check_supervised,
  'distill': align_checks.check_distill,
  'preference': align_checks.check_preference,
  'reward': align_checks.check_reward,
  'rl': rl_checks.check_fields,
  'online_preference': rl_checks.check_online,
}
_ON_TEXTS = ('pretrain', 'sft', 'distill')
_ON_PROMPTS = ('rl', 'online_preference')


def check_run(config, workdir: str | None) -> None:
  """Refuses a run of one of `llm.tasks.run.TASKS`, if there is a reason to.

  Args:
    config: of the run.
    workdir: of the run, or None.

  Raises:
    UserError: naming the field, the file or the row.
  """
  if workdir:
    check_folder(f'--workdir={workdir}', workdir)
  if config.task == 'generate':
    check_generate(config)
  elif config.task == 'score':
    check_score(config)
  elif config.task == 'preview':
    preview.check_fields(config)
  elif config.task == 'quickstart':
    check_quickstart(config)
  elif config.task in _FIELDS:
    _check_training(config, workdir)


def _check_training(config, workdir: str | None) -> None:
  task, data, train = config.task, config.data, config.train
  _FIELDS[task](config)
  workdir = check_fields(config, workdir, training_fields(task))
  check_exports(config, workdir)
  limit = base_limit(config, open_base(config))
  if task == 'distill':
    align_checks.open_teacher_source(config)
    limit = None  # the run compares with both models, the teacher first
  check_data(data, limit)
  if task in _ON_PROMPTS:
    rl_checks.check_room(config, limit)
  else:
    check_microbatch(train.batch_size, train.microbatch_size)
    examples.check_options(data.max_length, data.overlong)
    if task not in _ON_TEXTS:
      reading.check_options(data.max_length, data.overlong, data.eval_fraction)
  for field in ('path', 'eval_path'):
    if data[field] is not None:
      parse = _row_parser(config, field)
      reading.check_first_rows(data[field], parse, f'data.{field}')


def _row_parser(config, field: str) -> Callable[[dict[str, Any]], Any]:
  """What takes a row of a file and raises a UserError if it cannot be used.

  Whether the tokenizer has a chat template is not known yet.

  Args:
    config: of the run.
    field: of `config.data`, that names the file.
  """
  options = row_options(config.data)

  def parse_text(row):
    prompt = config.task == 'distill' and field == 'path'
    if prompt and shapes.is_prompt(row, options):
      return shapes.canonical_prompt(row, True, options)
    return shapes.canonical_row(row, True, options)

  def parse_prompt(row):
    check_row(config.rewards, row)
    return shapes.canonical_prompt(row, True, options)

  if config.task in _ON_TEXTS:
    return parse_text
  if config.task in _ON_PROMPTS:
    return parse_prompt
  if config.loss.name == align_checks.KTO:
    parse = rated.parse_row
  elif config.loss.name == align_checks.PROCESS:
    parse = steps.parse_row
  else:
    parse = pairs.parse_row
  return lambda row: parse(row, True, options)
