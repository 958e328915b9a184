"""The dispatch: from a config to the task that it names."""

from collections.abc import Callable

import ml_collections

from llm import config_args
from llm.errors import UserError
from llm.host.memory import keep_freed_memory

# (config, workdir) -> None, or the contents of the run's result.json.
Task = Callable[[ml_collections.ConfigDict, str | None], object]

# Each imports its module when a run of its kind begins, so that no run pays for
# the libraries of another.


def _distill() -> Task:
  from llm.tasks import distill

  return distill.run


def _generate() -> Task:
  from llm.tasks import generate

  return generate.run


def _online_preference() -> Task:
  from llm.tasks import online_preference

  return online_preference.run


def _preference() -> Task:
  from llm.tasks import preference

  return preference.run


def _preview() -> Task:
  from llm.tasks import preview

  return preview.run


def _quickstart() -> Task:
  from llm.tasks import quickstart

  return quickstart.run


def _reward() -> Task:
  from llm.tasks import reward

  return reward.run


def _rl() -> Task:
  from llm.tasks import rl

  return rl.run


def _score() -> Task:
  from llm.tasks import score

  return score.run


def _supervised() -> Task:
  from llm.tasks import supervised

  return supervised.run


# By `config.task`.
TASKS = {
  'distill': _distill,
  'generate': _generate,
  'online_preference': _online_preference,
  'preference': _preference,
  'pretrain': _supervised,
  'preview': _preview,
  'quickstart': _quickstart,
  'reward': _reward,
  'rl': _rl,
  'score': _score,
  'sft': _supervised,
}
# The kinds of run that compute nothing.
_WITHOUT_JAX = ('preview',)
# The kinds of run that processes on several hosts can share.
_SHARED = ('pretrain', 'sft')


def run_task(config: ml_collections.ConfigDict, workdir: str | None) -> None:
  """Runs the config's task.

  `config.task` is a name in `TASKS` or, for an experiment with a
  task of its own, a function `(config, workdir) -> None`.

  Args:
    config: the locked config with all overrides applied.
    workdir: folder for records and results, or None for a task that needs
      none; made where it does not exist.

  Raises:
    UserError: the task is unknown, or the task refuses its input.
  """
  name = config.get('task')
  if not callable(name):
    check_name(name)
    from llm.tasks import checks

    checks.check_run(config, workdir)
  if name in _WITHOUT_JAX and not workdir:
    find_task(name)(config, None)
    return
  keep_freed_memory()
  # JAX is imported from here on.
  from llm.parallel import distributed
  from llm.runs import outputs, workdirs

  task = find_task(name)
  if distributed.initialize() and name not in _SHARED:
    raise UserError(
      f'config.task={name!r}: runs in one process; start it once, or without '
      'srun, mpirun and JAX_NUM_PROCESSES'
    )
  outputs.enable_compilation_cache()
  if not workdir:
    task(config, workdir)
    return
  with workdirs.hold(workdir):
    outputs.prepare_workdir(config, workdir)
    task(config, workdir)


def check_name(name) -> None:
  """Refuses what is no name in `TASKS`."""
  if name not in TASKS:
    remedy = config_args.hint(str(name), TASKS)
    raise UserError(f'config.task={name!r}: no such task{remedy}')


def find_task(name) -> Task:
  """The function of a task, whose module is imported by this.

  Args:
    name: `config.task`.

  Raises:
    UserError: there is no such task.
  """
  if callable(name):
    return name
  check_name(name)
  return TASKS[name]()
