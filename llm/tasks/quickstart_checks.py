"""The stages of the run `quickstart`, their settings and what it refuses.

Nothing here needs JAX.
"""

import ml_collections

from llm.align.checks import check_pair_loss
from llm.data.worlds import quickstart as corpus
from llm.data.worlds import world as world_lib
from llm.errors import UserError
from llm.rl import checks as rl_checks
from llm.runs.base import fresh_shape
from llm.runs.checks import check_packages
from llm.tasks.training_fields import training_fields
from llm.train.checks import check_optim

# The stages that train, in their order, each named as its run; and what of the
# corpus it reads.
STAGES = {
  'pretrain': corpus.TEXTS,
  'sft': corpus.DIALOGUES,
  'preference': corpus.PAIRS,
  'rl': corpus.SUMS,
}


def check_quickstart(config) -> None:
  """Refuses fields of `configs/quickstart.py` that are invalid.

  Raises:
    UserError: naming the field; of a stage, with the stage before it.
  """
  check_packages()
  if config.seed < 0:
    raise UserError(f'seed={config.seed}: use 0 or more')
  _check_positive(config.model, 'model')
  _check_positive(config.data, 'data')
  _check_positive(config.exam, 'exam')
  if config.world.sum_exposures < 1:
    raise UserError(
      f'world.sum_exposures={config.world.sum_exposures}: use 1 or more, for '
      'the stage rl is about sums that are written'
    )
  model, world = config.model, config.world
  world_lib.check_world(
    world.size, world.max_operand, world.sum_exposures, world.held_out
  )
  fresh_shape(training_config(config, 'pretrain').model)
  if config.data.max_length > model.max_length:
    raise UserError(
      f'data.max_length={config.data.max_length}: use at most '
      f'model.max_length={model.max_length}'
    )
  for kind in STAGES:
    stage = config[kind]
    _check_positive(stage, kind)
    try:
      check_optim(stage.optim, stage.steps)
      fields = training_config(config, kind)
      if kind == 'preference':
        check_pair_loss(fields.loss)
      elif kind == 'rl':
        _check_rl(fields, model.max_length)
    except UserError as error:
      # `train.steps` of a run is `KIND.steps` here.
      text = str(error).replace('train.', '')
      raise UserError(f'{kind}: {text}') from None


def training_config(
  config: ml_collections.ConfigDict, kind: str
) -> ml_collections.ConfigDict:
  """The config of a training stage, but for its paths.

  Args:
    config: see `configs/quickstart.py`.
    kind: of `STAGES`, the name of the stage and of its run.
  """
  fields, stage = training_fields(kind), config[kind]
  fields.seed = fields.data.seed = config.seed
  fields.data.max_length = config.data.max_length
  for name in ('steps', 'batch_size', 'checkpoint_every'):
    fields.train[name] = stage[name]
  fields.train.keep = 1
  fields.train.best = ''
  fields.optim = stage.optim
  if kind in ('pretrain', 'sft'):
    fields.loss.name = 'cross_entropy'
    fields.loss.neftune_alpha = 0.0
  else:
    fields.loss = stage.loss
    fields.data.packing = False
  if kind == 'pretrain':
    fields.model.update(config.model)
  if kind == 'rl':
    fields.data.overlong = 'drop'
    fields.rollout, fields.rewards = stage.rollout, stage.rewards
    room = config.model.max_length - stage.rollout.max_new_tokens
    fields.data.max_length = min(config.data.max_length, room)
  return fields


def _check_rl(fields, max_length: int) -> None:
  rl_checks.check_fields(fields)
  if fields.data.max_length < 1:
    raise UserError(
      f'rollout.max_new_tokens={fields.rollout.max_new_tokens}: use less than '
      f'model.max_length={max_length}, which prompts have to fit into, too'
    )


def _check_positive(group, name: str) -> None:
  for key, value in group.items():
    if isinstance(value, int) and value < 1:
      raise UserError(f'{name}.{key}={value}: use 1 or more')
