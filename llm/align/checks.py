"""Names and checks of the fields of training runs; nothing here needs JAX."""

import math
from typing import Any

from llm.checkpoints.opened import Source
from llm.checkpoints.source import open_checkpoint
from llm.data import curriculum
from llm.errors import UserError, without_field
from llm.losses.options import KTO as KTO_OPTIONS
from llm.losses.options import PREFERENCE, REFERENCE_FREE, check_options
from llm.models.lora_config import LoraConfig, is_named
from llm.models.lora_places import HEAD
from llm.runs.base import lora_config
from llm.runs.checks import given_options

KTO = 'kto'  # of rated completions, not of pairs: see `llm.align.kto`
PRECOMPUTED, FROZEN, BASE = 'precomputed', 'frozen', 'base'
REFERENCES = (PRECOMPUTED, FROZEN, BASE)
SUPERVISED_LOSSES = ('cross_entropy',)
OUTCOME, PROCESS = 'bradley_terry', 'process'
REWARD_LOSSES = (OUTCOME, PROCESS)
# The defaults of distillation's sampler.
MAX_NEW_TOKENS, TEMPERATURE = 128, 1.0
# The fields of `config.loss` that are options of some loss.
OPTIONS = (
  'beta',
  'label_smoothing',
  'logprobs',
  'alpha',
  'nll',
  'gamma',
  'gamma_ratio',
  'desirable_weight',
  'undesirable_weight',
)


def check_supervised(config) -> None:
  """Refuses invalid fields of `configs/pretrain.py` or `configs/sft.py`."""
  loss, data = config.loss, config.data
  if loss.name not in SUPERVISED_LOSSES:
    raise UserError(
      f'loss.name={loss.name!r}: use one of {", ".join(SUPERVISED_LOSSES)}'
    )
  if not 0.0 <= loss.neftune_alpha < math.inf:
    raise UserError(
      f'loss.neftune_alpha={loss.neftune_alpha}: use 0 (none) or more'
    )
  curriculum.check_schedule(
    data.curriculum, config.train.steps, data.max_length
  )


def needs_reference(name: str) -> bool:
  """True for losses that compare with a reference model."""
  return name not in REFERENCE_FREE


def check_pair_loss(loss: Any) -> dict[str, Any]:
  """The options of the loss that the config names, those that are set.

  Args:
    loss: `config.loss` of pairs.

  Raises:
    UserError: an unknown loss, a field that this loss does not read, or a
      value that is invalid.
  """
  if loss.name not in PREFERENCE:
    names = ', '.join((*PREFERENCE, KTO))
    raise UserError(f'loss.name={loss.name!r}: use one of {names}')
  options = given_options(loss, OPTIONS, PREFERENCE[loss.name])
  try:
    check_options(**options)
  except ValueError as error:
    raise UserError(f'loss.{error}') from None
  if loss.beta is not None and not 0.0 < loss.beta < math.inf:
    raise UserError(f'loss.beta={loss.beta}: use a number above 0')
  for name in ('alpha', 'gamma', 'gamma_ratio'):
    if loss[name] is not None and not 0.0 <= loss[name] < math.inf:
      raise UserError(f'loss.{name}={loss[name]}: use a number of at least 0')
  if loss.ld_alpha is not None and not 0.0 <= loss.ld_alpha <= 1.0:
    raise UserError(f'loss.ld_alpha={loss.ld_alpha}: use a number from 0 to 1')
  if loss.nll_prompt and loss.name != 'orpo':
    raise UserError(
      f'loss.nll_prompt=True: {loss.name} does not read it; orpo does'
    )
  return options


def check_rated_loss(loss: Any) -> dict[str, float]:
  """The options of KTO that the config sets.

  Args:
    loss: `config.loss`.

  Raises:
    UserError: a field that KTO does not read, or a wrong value.
  """
  names = [*OPTIONS, 'ld_alpha'] + ['nll_prompt'] * bool(loss.nll_prompt)
  options = given_options(loss, names, KTO_OPTIONS)
  for name, value in options.items():
    if not 0.0 <= value < math.inf or (name == 'beta' and not value):
      least = 'a number above 0' if name == 'beta' else '0 or more'
      raise UserError(f'loss.{name}={value!r}: use {least}')
  return options


def resolve_reference(config):
  """The config with the kind of reference that `loss.reference=None` means."""
  loss = config.loss
  if loss.reference is not None or not needs_reference(loss.name):
    return config
  config = config.copy_and_resolve_references()
  config.loss.reference = PRECOMPUTED
  if config.loss.name == KTO:  # KTO scores new pairings in each batch
    fresh = config.lora.rank and config.lora.path is None
    config.loss.reference = BASE if fresh else FROZEN
  return config


def check_reference(config) -> None:
  """Refuses a `loss.reference` that does not fit the loss or LoRA."""
  loss = config.loss
  if config.lora.rank and config.lora.dropout:
    raise UserError(
      f'lora.dropout={config.lora.dropout}: the reference is without it, so '
      'that the two would differ by noise; set it to 0'
    )
  if not needs_reference(loss.name):
    if loss.reference is not None:
      raise UserError(
        f'loss.reference={loss.reference!r}: {loss.name} has no reference; '
        'leave it unset'
      )
    return
  if loss.reference not in REFERENCES:
    raise UserError(
      f'loss.reference={loss.reference!r}: use one of {", ".join(REFERENCES)}'
    )
  if loss.reference == BASE and not config.lora.rank:
    raise UserError(
      f"loss.reference='{BASE}' is the model without its adapters: set "
      f"lora.rank above 0, or use '{PRECOMPUTED}'"
    )
  if loss.name == KTO and loss.reference == PRECOMPUTED:
    raise UserError(
      f"loss.reference='{PRECOMPUTED}': {KTO} compares with the reference on "
      "rows that are new in each batch; leave it unset, or use 'frozen' (or, "
      "under LoRA, 'base')"
    )


def check_preference(config) -> None:
  """Refuses fields of `configs/preference.py` that contradict each other."""
  check_loss = check_rated_loss if config.loss.name == KTO else check_pair_loss
  check_loss(config.loss)
  check_reference(resolve_reference(config))


def check_reward(config) -> None:
  """Refuses fields of `configs/reward.py` that contradict each other."""
  loss = config.loss
  if loss.name not in REWARD_LOSSES:
    raise UserError(
      f'loss.name={loss.name!r}: use one of {", ".join(REWARD_LOSSES)}'
    )
  center = loss.center_coef
  if loss.name == PROCESS and center is not None:
    raise UserError(
      f'loss.center_coef={center}: {PROCESS} does not read it, for its scores '
      'have a scale; leave it unset'
    )
  if center is not None and not 0.0 <= center < math.inf:
    raise UserError(f'loss.center_coef={center}: use 0 (off) or more')
  if loss.name != PROCESS and config.data.step_separator is not None:
    raise UserError(
      f'data.step_separator={config.data.step_separator!r}: {loss.name} has no '
      f"steps; leave it unset, or use loss.name='{PROCESS}'"
    )
  if config.sample.prompts:
    raise UserError(
      'sample.prompts: a reward model writes no text; leave it unset'
    )
  if config.lora.export is not None:
    raise UserError(
      f'lora.export={config.lora.export!r}: adapters alone lack the head of a '
      'reward model; set export, which merges them'
    )
  lora = lora_config(config.lora)
  if lora is not None:
    _check_no_head(lora)


def _check_no_head(lora: LoraConfig) -> None:
  """Refuses what would train an output table, which a reward model lacks."""
  tables = tuple(name for name, _ in lora.tokens)
  for field, names in (
    ('targets', lora.targets),
    ('modules_to_save', lora.modules_to_save),
    ('tokens', tables),
  ):
    for name in names:
      if is_named(name, HEAD):
        raise UserError(
          f'lora.{field}: {name!r} takes in lm_head, which is not there in a '
          'reward model; leave it out'
        )


def reads_completions(rollout) -> bool:
  """True where some batches are the rows with their own completions."""
  return rollout.lmbda < 1.0 and not rollout.seq_kd


def samples_completions(rollout) -> bool:
  """True where some batches are completions that one of the models samples."""
  return rollout.lmbda > 0.0 or rollout.seq_kd


def check_distill(config) -> None:
  """Refuses fields of `configs/distill.py` that contradict each other."""
  loss, rollout, data = config.loss, config.rollout, config.data
  if not 0.0 <= loss.beta <= 1.0:
    raise UserError(
      f'loss.beta={loss.beta}: use 0 (forward KL) to 1 (reverse KL)'
    )
  if not 1e-4 <= loss.temperature < math.inf:
    raise UserError(
      f'loss.temperature={loss.temperature}: use a number of 0.0001 or more'
    )
  if not 0.0 <= rollout.lmbda <= 1.0:
    raise UserError(
      f'rollout.lmbda={rollout.lmbda}: use 0 (rows only) to 1 (completions '
      'of the student only)'
    )
  if not 0.0 <= rollout.temperature < math.inf:
    raise UserError(
      f'rollout.temperature={rollout.temperature}: use 0 (greedy) or more'
    )
  if rollout.max_new_tokens < 1:
    raise UserError(
      f'rollout.max_new_tokens={rollout.max_new_tokens}: use 1 or more'
    )
  sampler = {
    'max_new_tokens': MAX_NEW_TOKENS,
    'temperature': TEMPERATURE,
  }
  for name, default in sampler.items():
    if rollout[name] != default and not samples_completions(rollout):
      raise UserError(
        f'rollout.{name}={rollout[name]}: with rollout.lmbda=0 and without '
        f'rollout.seq_kd no completion is sampled; use {default}'
      )
  if rollout.seq_kd and rollout.lmbda == 1.0:
    raise UserError(
      'rollout.seq_kd=True: with rollout.lmbda=1 the student writes all '
      'batches and leaves none to the teacher; lower rollout.lmbda'
    )
  if data.packing and samples_completions(rollout):
    raise UserError(
      'data.packing=True: prompts are answered one in a row; leave it unset, '
      'or use rollout.lmbda=0 without rollout.seq_kd'
    )
  if data.curriculum:
    raise UserError(
      f'data.curriculum={data.curriculum}: is of pretraining; leave it unset'
    )


def open_teacher_source(config) -> Source:
  """The checkpoint at `teacher.path`, without its tokenizer and weights.

  Raises:
    UserError: it is no model.
  """
  path = config.teacher.path
  if path is None:
    raise UserError(
      'teacher.path is not set: give the folder of a larger model with the '
      "student's vocabulary (--config.teacher.path=PATH)"
    )
  try:
    return open_checkpoint(path)
  except UserError as error:
    raise of_teacher(path, error) from None


def of_teacher(path: str, error: UserError) -> UserError:
  """An error about the teacher's checkpoint, under the field `teacher.path`."""
  return UserError(f'teacher.path={path!r}: {without_field(error, path)}')
