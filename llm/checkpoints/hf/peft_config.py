"""Which settings of PEFT's `adapter_config.json` are understood, and how."""

import re
import sys
from typing import Any

from llm.errors import UserError

CONFIG = 'adapter_config.json'  # its presence marks a folder of adapters
# Settings about who made the adapters and how they were trained: they do not
# change what trained adapters compute. PEFT sets fan_in_fan_out to false for
# linear maps, which is all that the models here have; merge_weights is of
# versions before 0.4, lora_dtype and lorap_… of ms-swift.
_INERT = """
  auto_mapping base_model_name_or_path corda_config eva_config fan_in_fan_out
  inference_mode loftq_config lora_dtype lora_ga_config lorap_emb_lr
  lorap_lr_ratio megatron_core merge_weights peft_version qalora_group_size
  revision runtime_config task_type velora_config
""".split()
_READ = """
  peft_type r lora_alpha lora_dropout target_modules exclude_modules use_dora
  use_rslora rank_pattern alpha_pattern layers_to_transform layers_pattern
  modules_to_save trainable_token_indices ensure_weight_tying bias
  init_lora_weights
""".split()
_MERGE = 'merge it with PEFT, and load the merged model'
# Why a setting cannot be read, and what helps.
_REFUSED = {
  'alora_invocation_tokens': 'its adapters act from those tokens on and cannot '
  'be merged: run it with PEFT, or train plain LoRA',
  'arrow_config': 'it chooses among adapters by token: run it with PEFT',
  'enable_lora': f'it is for several projections in one weight: {_MERGE}',
  'kasa_config': f'it changes the weights of the base: {_MERGE}',
  'layer_replication': f'it makes a deeper model of the base: {_MERGE}',
  'lora_bias': f'it adds biases that the model has no place for: {_MERGE}',
  'megatron_config': 'it is for a model of Megatron: export that, and merge',
  'target_parameters': f'it adapts the weights of experts: {_MERGE}',
  'use_bdlora': f'its factors are block-diagonal: {_MERGE}',
  'use_qalora': 'it is for a base quantized by GPTQ, and pools its inputs: run '
  'it with PEFT, or train plain LoRA',
}
# Initialisations that leave the base as it is; the others move part of it into
# A and B.
_INITS = (True, False, 'gaussian', 'orthogonal', 'eva', 'mica')
_KINDS = {
  'r': int,
  'lora_alpha': (int, float),
  'lora_dropout': (int, float),
  'rank_pattern': dict,
  'alpha_pattern': dict,
  'target_modules': (str, list),
  'exclude_modules': (str, list),
  'modules_to_save': list,
  'layers_to_transform': (int, list),
  'layers_pattern': (str, list),
  'trainable_token_indices': (list, dict),
  'ensure_weight_tying': bool,
  'use_dora': bool,
  'use_rslora': bool,
  'bias': str,
}
_OF_NAMES = (
  'target_modules',
  'exclude_modules',
  'modules_to_save',
  'layers_pattern',
)


def check_config(name: str, raw: dict[str, Any]) -> None:
  """Refuses what would change the result and is not supported.

  Any setting that is not known is refused too, unless it is off.

  Raises:
    UserError: naming the file, the setting, its value and the remedy.
  """
  if raw.get('peft_type') != 'LORA':
    raise UserError(
      f"{name}: peft_type={raw.get('peft_type')!r}: only 'LORA' can be read, "
      f'{_MERGE}'
    )
  init = raw.get('init_lora_weights', True)
  init = init.lower() if isinstance(init, str) else init
  if init is not None and init not in _INITS:
    raise UserError(
      f'{name}: init_lora_weights={raw["init_lora_weights"]!r} changes the '
      'weights of the base: convert it with PEFT '
      f'(path_initial_model_for_weight_conversion), or {_MERGE}'
    )
  for key, value in raw.items():
    off = value in (None, False, 'none', '', [], {})
    if not off and key not in (*_INERT, *_READ):
      raise UserError(
        f'{name}: {key}={value!r} is not supported: {_REFUSED.get(key, _MERGE)}'
      )
  for key, kinds in _KINDS.items():
    value = raw.get(key)
    wrong = isinstance(value, bool) and kinds is not bool
    if value is not None and (wrong or not isinstance(value, kinds)):
      raise _not_peft(name, key, value)
  _check_items(name, raw)
  _check_numbers(name, raw)
  _check_patterns(name, raw)


def targeted(raw: dict[str, Any], module: str, present: bool) -> bool:
  """Whether PEFT puts an adapter on a module of this full name.

  present: whether the file has one, which decides where `target_modules` says
  nothing and PEFT goes by a list of its own.
  """
  excluded = raw.get('exclude_modules')
  if excluded and _names(excluded, module):
    return False
  for pattern in raw.get('modules_to_save') or []:
    if re.match(rf'(^|.*\.){pattern}($|\..*)', module):
      return False
  targets = raw.get('target_modules')
  if targets is None:
    return present
  if isinstance(targets, str) and targets.lower() == 'all-linear':
    return not module.endswith(('lm_head', 'embed_tokens'))
  if not _names(targets, module):
    return False
  layers = raw.get('layers_to_transform')
  exact = isinstance(targets, str) or module in targets
  if exact or layers is None or layers == []:
    return True
  layers = [layers] if isinstance(layers, int) else layers
  return _layer(raw.get('layers_pattern'), module) in layers


def copied(raw: dict[str, Any], module: str) -> bool:
  """Whether PEFT trains a whole copy of a module of this full name."""
  return any(module.endswith(m) for m in raw.get('modules_to_save') or [])


def token_rows(raw: dict[str, Any], module: str) -> tuple[int, ...]:
  """The rows of a table of this full name that PEFT trains."""
  ids = raw.get('trainable_token_indices') or {}
  if isinstance(ids, list):
    ids = {'embed_tokens': ids}
  found = (rows for name, rows in ids.items() if module.endswith(name))
  return tuple(next(found, ()))


def module_rank(raw: dict[str, Any], module: str) -> int:
  """The rank of a module's adapter: the first pattern that fits, or `r`."""
  return _by_pattern(raw.get('rank_pattern'), module, raw.get('r', 8))


def module_alpha(raw: dict[str, Any], module: str) -> float:
  """The alpha of a module's adapter, as `module_rank`."""
  alpha = raw.get('lora_alpha', 8)
  return float(_by_pattern(raw.get('alpha_pattern'), module, alpha))


def _by_pattern(patterns: Any, module: str, default: Any) -> Any:
  for pattern, value in (patterns or {}).items():
    if re.match(rf'(.*\.)?({pattern})$', module):
      return value
  return default


def _names(targets: str | list[str], module: str) -> bool:
  """A regular expression for the whole name, or names of its last parts."""
  if isinstance(targets, str):
    return re.fullmatch(targets, module) is not None
  return any(module == t or module.endswith(f'.{t}') for t in targets)


def _layer(patterns: str | list[str] | None, module: str) -> int | None:
  """The number of a module's layer; the first number that fits is it."""
  if not patterns:
    match = re.match(r'.*?\.[^.]*\.(\d+)\.', module)
    return None if match is None else int(match[1])
  for pattern in [patterns] if isinstance(patterns, str) else patterns:
    match = re.match(rf'(?:^|.*?\.){pattern}\.(\d+)\.', module)
    if match is not None:
      return int(match[1])
  return None


def _check_items(name: str, raw: dict[str, Any]) -> None:
  """Refuses lists of the wrong things."""
  for key in _OF_NAMES:
    value = raw.get(key)
    if isinstance(value, list) and not all(isinstance(x, str) for x in value):
      raise _not_peft(name, key, value)
  layers, ids = (
    raw.get('layers_to_transform'),
    raw.get('trainable_token_indices'),
  )
  if isinstance(layers, list) and not all(type(x) is int for x in layers):
    raise _not_peft(name, 'layers_to_transform', layers)
  if layers not in (None, []) and isinstance(raw.get('target_modules'), str):
    raise UserError(
      f'{name}: layers_to_transform={layers!r}: PEFT takes it only beside a '
      'list of target_modules: name the modules in a list'
    )
  for rows in ids.values() if isinstance(ids, dict) else [ids or []]:
    right = isinstance(rows, list) and all(type(x) is int for x in rows)
    if not right or len(set(rows)) < len(rows) or min(rows, default=0) < 0:
      raise _not_peft(name, 'trainable_token_indices', ids)
  if raw.get('bias') not in (None, 'none', 'all', 'lora_only'):
    raise _not_peft(name, 'bias', raw['bias'])


def _check_numbers(name: str, raw: dict[str, Any]) -> None:
  """Refuses ranks, alphas and rates that cannot be."""
  ranks = {'r': raw.get('r', 8), **(raw.get('rank_pattern') or {})}
  for key, rank in ranks.items():
    if type(rank) is not int or rank < 1:
      raise UserError(f'{name}: {key}={rank!r}: save the adapters again')
  alphas = {'lora_alpha': raw.get('lora_alpha', 8)}
  alphas |= raw.get('alpha_pattern') or {}
  for key, alpha in alphas.items():
    number = type(alpha) in (int, float)
    if not number or not 0 < alpha <= sys.float_info.max:
      raise UserError(f'{name}: {key}={alpha!r}: use a number above 0')
  rate = raw.get('lora_dropout') or 0.0
  if not 0.0 <= rate < 1.0:
    raise UserError(f'{name}: lora_dropout={rate!r}: use a rate in [0, 1)')


def _check_patterns(name: str, raw: dict[str, Any]) -> None:
  patterns = [
    *(raw.get('rank_pattern') or {}),
    *(raw.get('alpha_pattern') or {}),
  ]
  patterns += raw.get('modules_to_save') or []
  for key in ('target_modules', 'exclude_modules', 'layers_pattern'):
    value = raw.get(key)
    if key == 'layers_pattern' and isinstance(value, list):
      patterns += value
    patterns += [value] if isinstance(value, str) else []
  for pattern in patterns:
    try:
      re.compile(pattern)
      re.compile(f'(.*)({pattern})$')  # as PEFT puts most of them to use
    except (re.error, OverflowError, RecursionError) as error:
      raise UserError(
        f'{name}: {pattern!r} is not a regular expression ({error}): fix it'
      ) from None


def _not_peft(name: str, key: str, value: Any) -> UserError:
  return UserError(
    f'{name}: {key}={value!r} is not what PEFT writes there: save the '
    'adapters again'
  )
