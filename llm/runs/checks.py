"""What every training run refuses in its fields; nothing here needs JAX.

What only some kinds of run read is checked in `llm.align.checks` and
`llm.rl.checks`, the model in `llm.runs.base`, exports in
`llm.runs.export_checks`.
"""

from collections.abc import Collection, Iterable
import functools
import importlib.util
import os
from typing import Any

from llm.data.columns import RowOptions
from llm.decode.sampling_params import SamplingParams
from llm.errors import UserError
from llm.models.config import REMAT
from llm.parallel.checks import check_mesh
from llm.text.chat_options import read_options
from llm.train.checks import check_optim

# What `train.best` may name, and which of two values is the better one; a kind
# of run that does not evaluate it has no best.
BEST = {
  'eval_loss': 'min',
  'eval_perplexity': 'min',
  'eval_accuracy': 'max',
  'eval_reward_accuracy': 'max',
  'eval_reward_mean': 'max',
}
_TEXT = ('eval_loss', 'eval_perplexity', 'eval_accuracy')
_PAIRS = ('eval_loss', 'eval_reward_accuracy')
_EVALUATED = {
  'pretrain': _TEXT,
  'sft': _TEXT,
  'distill': ('eval_loss',),
  'preference': _PAIRS,
  'reward': (*_PAIRS, 'eval_accuracy'),
  'rl': ('eval_reward_mean',),
  'online_preference': ('eval_reward_mean',),
}
_WANDB_MODES = ('online', 'offline', 'disabled')
# Fields that nothing reads where a condition fails, which the text states.
_UNREAD = (
  (
    'optim',
    ('decay_fraction', 'decay_shape'),
    lambda c: c.optim.schedule == 'wsd',
    "is of optim.schedule='wsd'",
  ),
  (
    'lora',
    (
      'alpha',
      'targets',
      'exclude',
      'layers',
      'rank_pattern',
      'alpha_pattern',
      'modules_to_save',
      'tokens',
      'dropout',
      'dora',
      'rslora',
      'export',
    ),
    lambda c: c.lora.rank,
    'needs adapters: set lora.rank above 0',
  ),
  (
    'sample',
    ('chat', 'max_new_tokens', 'temperature'),
    lambda c: c.sample.prompts,
    'needs texts to continue: set sample.prompts',
  ),
  (
    'log.wandb',
    ('name', 'mode'),
    lambda c: c.log.wandb.project is not None,
    'needs log.wandb.project',
  ),
  (
    'optim',
    ('eps',),
    lambda c: c.optim.name in ('adamw', 'adamw8bit', 'muon'),
    'is not read by this optim.name',
  ),
  (
    'data',
    ('seed',),
    lambda c: c.data.shuffle,
    'needs an order to draw: set data.shuffle to True',
  ),
  (
    'train',
    ('eval_first',),
    lambda c: is_evaluated(c) or c.sample.prompts,
    'needs rows to evaluate: set data.eval_path or data.eval_fraction',
  ),
  (
    'train',
    ('export',),
    lambda c: is_evaluated(c),
    'needs rows to evaluate: set data.eval_path or data.eval_fraction',
  ),
)


def check_fields(config, workdir: str | None, defaults) -> str:
  """Refuses what is wrong whatever the model and the data are.

  Args:
    config: of `training_fields`.
    workdir: of the run.
    defaults: the config of this kind of run with nothing set.

  Returns:
    The workdir.

  Raises:
    UserError: naming the field, or the package that training needs.
  """
  check_packages()
  train = config.train
  for name in ('steps', 'batch_size', 'log_every', 'keep', 'max_bad_steps'):
    if train[name] < 1:
      raise UserError(f'train.{name}={train[name]}: use 1 or more')
  for name in ('eval_every', 'checkpoint_every'):
    if train[name] < 0:
      raise UserError(f'train.{name}={train[name]}: use 0 (at the end) or more')
  if not 0.0 <= train.ema_decay < 1.0:
    raise UserError(
      f'train.ema_decay={train.ema_decay}: use a decay in [0, 1), 0 for none'
    )
  if train.best and train.best not in BEST:
    raise UserError(
      f"train.best={train.best!r}: use '' (none) or {', '.join(BEST)}"
    )
  if train.remat not in REMAT:
    raise UserError(
      f'train.remat={train.remat!r}: use one of {", ".join(REMAT)}'
    )
  if train.export not in ('last', 'best'):
    raise UserError(
      f"train.export={train.export!r}: use 'last' or 'best' (by train.best)"
    )
  if train.export == 'best' and not train.best:
    raise UserError(
      "train.export='best' needs a metric: set train.best, such as eval_loss"
    )
  _check_unread(config, defaults)
  _check_best(config, defaults)
  if config.seed < 0:
    raise UserError(f'seed={config.seed}: use 0 or more')
  check_mesh(config.mesh)
  check_optim(config.optim, train.steps)
  check_log(config.log)
  sample_params(config.sample)
  if workdir is None:
    raise UserError(
      'training needs a folder for its checkpoints and metrics: '
      '--workdir=runs/NAME'
    )
  return workdir


def check_packages() -> None:
  """Refuses to train where the packages that only training needs are missing.

  Raises:
    UserError: naming the first of them, and the extra that installs them.
  """
  for name in ('grain', 'optax', 'orbax'):
    if importlib.util.find_spec(name) is None:
      raise UserError(
        f'training needs {name}, which is not installed: pip install '
        '"llm-jax[train]"'
      )


def check_log(log) -> None:
  """Refuses a `log` that `writers.open_writers` could not open."""
  if log.tensorboard and importlib.util.find_spec('tensorboard') is None:
    raise _missing('log.tensorboard=True', 'tensorboard')
  wandb = log.wandb
  if wandb.project is None:
    return
  if wandb.mode not in _WANDB_MODES:
    raise UserError(
      f'log.wandb.mode={wandb.mode!r}: must be one of {_WANDB_MODES}'
    )
  if importlib.util.find_spec('wandb') is None:
    raise _missing(f'log.wandb.project={wandb.project!r}', 'wandb')


def sample_params(sample) -> SamplingParams:
  """The config's `sample` as sampling parameters.

  Raises:
    UserError: a field is invalid.
  """
  try:
    return SamplingParams.from_dict(
      {
        'max_new_tokens': sample.max_new_tokens,
        'temperature': sample.temperature,
      }
    )
  except UserError as error:  # that names the field as generation does
    raise UserError(str(error).replace('sampling.', 'sample.')) from None


def row_options(data) -> RowOptions:
  """How the rows of a run are read: fields of `config.data`.

  Raises:
    UserError: naming the field.
  """
  return RowOptions(
    learn=data.learn,
    ignore=tuple(data.ignore_columns),
    chat=read_options(data, 'data.'),
  )


def check_data(data, limit: int | None = None) -> None:
  """Refuses fields of `data` that do not fit each other or the model.

  Args:
    data: `config.data`.
    limit: tokens that the model takes, if that is to be checked.

  Raises:
    UserError: naming the field.
  """
  row_options(data)
  if data.path is None:
    raise UserError('data.path is not set: give a file (--config.data.path=…)')
  if data.eval_path is not None and data.eval_fraction:
    raise UserError(
      f'data.eval_path={data.eval_path!r} and data.eval_fraction='
      f'{data.eval_fraction}: set one of them'
    )
  if limit is not None:
    check_length(data, limit)


def check_length(data, limit: int) -> None:
  """Refuses rows that are longer than what the model takes."""
  if data.max_length > limit:
    raise UserError(
      f'data.max_length={data.max_length}: the model takes {limit} tokens '
      '(model.max_length)'
    )


def check_folder(where: str, path: str) -> None:
  """Refuses a path at which no folder can be or be made; makes nothing.

  Args:
    where: the field and its value, for the message.
    path: of the folder.
  """
  if os.path.lexists(path) and not os.path.isdir(path):
    raise UserError(f'{where}: is a file; name a folder')
  parent = os.path.abspath(path)
  while not os.path.lexists(parent):
    parent = os.path.dirname(parent)
  if not os.path.isdir(parent):
    raise UserError(f'{where}: {parent} is not a folder')
  if not os.access(parent, os.W_OK | os.X_OK):
    raise UserError(
      f'{where}: {parent} may not be written; name another folder'
    )


def given_options(
  loss: Any, names: Iterable[str], known: Collection[str]
) -> dict[str, Any]:
  """The fields of `config.loss` among `names` that are set.

  Args:
    loss: with `name`.
    names: all that a loss of this kind of run may have.
    known: those that this loss reads, in the order of the message.

  Raises:
    UserError: a field is set that the loss does not read.
  """
  given = {name: loss[name] for name in names if loss.get(name) is not None}
  for name, value in given.items():
    if name not in known:
      has = ', '.join(f'loss.{n}' for n in known)
      raise UserError(
        f'loss.{name}={value!r}: {loss.name} does not read it; it has {has}'
      )
  return given


def is_evaluated(config) -> bool:
  """True where some rows are held out."""
  return config.data.eval_path is not None or config.data.eval_fraction > 0


def _check_best(config, defaults) -> None:
  """Refuses a metric that this run does not evaluate."""
  best = config.train.best
  known = _EVALUATED[config.task]
  if best and best not in known:
    raise UserError(
      f'train.best={best!r}: {config.task} evaluates {", ".join(known)}; use '
      "one of them, or '' for none"
    )
  default = defaults.train.best
  if best not in ('', default) and not is_evaluated(config):
    raise UserError(
      f'train.best={best!r}: nothing is evaluated; set data.eval_path or '
      "data.eval_fraction, or use ''"
    )


def _check_unread(config, defaults) -> None:
  """Refuses a field that was set and that nothing would read."""
  for group, names, is_read, reason in _UNREAD:
    if is_read(config):
      continue
    for name in names:
      value, default = (
        functools.reduce(lambda c, part: c[part], group.split('.'), c)[name]
        for c in (config, defaults)
      )
      if value != default:
        raise UserError(
          f'{group}.{name}={value!r} {reason}, or use {default!r}'
        )


def _missing(field: str, package: str) -> UserError:
  return UserError(
    f'{field}: {package} is not installed: pip install "llm-jax[logging]"'
  )
