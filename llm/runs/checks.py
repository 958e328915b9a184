"""What every training run refuses whatever its data are."""

from collections.abc import Collection, Iterable
import functools
from typing import Any

from llm.errors import UserError
from llm.models.config import REMAT

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
    ('alpha', 'targets', 'dropout', 'dora', 'rslora', 'export'),
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
  """Refuses what is wrong whatever the data are; returns the workdir.

  `defaults` is the config of this kind of run with nothing set.
  """
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
  if workdir is None:
    raise UserError(
      'training needs a folder for its checkpoints and metrics: '
      '--workdir=runs/NAME'
    )
  return workdir


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
