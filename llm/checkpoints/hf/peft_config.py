"""Which settings of PEFT's `adapter_config.json` are understood, and how."""

import re
from typing import Any

from llm.errors import UserError
from llm.models.lora_config import LoraConfig

CONFIG = 'adapter_config.json'  # its presence marks a folder of adapters
# Settings about who made the adapters and how they were trained: they do not
# change what trained adapters compute.
_INERT = """
  auto_mapping base_model_name_or_path corda_config ensure_weight_tying
  eva_config inference_mode layers_pattern loftq_config lora_ga_config
  megatron_core peft_version qalora_group_size revision runtime_config task_type
""".split()
_READ = """
  peft_type r lora_alpha lora_dropout target_modules exclude_modules use_dora
  use_rslora rank_pattern alpha_pattern layers_to_transform init_lora_weights
  modules_to_save
""".split()
# Initialisations that leave the base as it is; the others move part of it into
# A and B.
_INITS = (True, False, 'gaussian', 'orthogonal', 'eva', 'mica')
_KINDS = {
  'r': int,
  'lora_alpha': (int, float),
  'lora_dropout': (int, float),
  'rank_pattern': dict,
  'alpha_pattern': dict,
  'modules_to_save': list,
  'target_modules': (str, list),
  'exclude_modules': (str, list),
  'layers_to_transform': (int, list),
  'use_dora': bool,
  'use_rslora': bool,
}
_MERGE = 'merge it with PEFT, and load the merged model'


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
  if raw.get('init_lora_weights', True) not in _INITS:
    raise UserError(
      f'{name}: init_lora_weights={raw["init_lora_weights"]!r} changes the '
      'weights of the base: convert it with PEFT '
      f'(path_initial_model_for_weight_conversion), or {_MERGE}'
    )
  for key, value in raw.items():
    off = value in (None, False, 'none') or value == [] or value == {}
    if key in _INERT or key in _READ or off:
      continue
    raise UserError(f'{name}: {key}={value!r} is not supported: {_MERGE}')
  for key, kinds in _KINDS.items():
    value = raw.get(key)
    wrong = isinstance(value, bool) and kinds is not bool
    if value is not None and (wrong or not isinstance(value, kinds)):
      raise UserError(
        f'{name}: {key}={value!r} is not what PEFT writes there: save the '
        'adapters again'
      )
  if raw.get('r', 8) is None or raw.get('r', 8) < 1:
    raise UserError(f'{name}: r={raw["r"]}: save the adapters again')
  patterns = [*(raw.get('rank_pattern') or {})]
  patterns += [*(raw.get('alpha_pattern') or {})]
  for key in ('target_modules', 'exclude_modules'):
    patterns += [raw[key]] if isinstance(raw.get(key), str) else []
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(
        f'{name}: {pattern!r} is not a regular expression ({error}): fix it'
      ) from None


def lora_config(
  raw: dict[str, Any], targets: tuple[str, ...], modules: dict[str, str]
) -> LoraConfig:
  """The settings here; what the file does not say is PEFT's default.

  Args:
    raw: the file.
    targets: of the adapters that are there.
    modules: names of their modules, by their paths in the adapter tree.
  """
  rank, alpha = raw.get('r', 8), float(raw.get('lora_alpha', 8))
  ranks = {p: module_rank(raw, m) for p, m in modules.items()}
  alphas = {p: module_alpha(raw, m) for p, m in modules.items()}
  return LoraConfig(
    rank=rank,
    alpha=alpha,
    targets=targets,
    rank_pattern=tuple((p, r) for p, r in ranks.items() if r != rank),
    alpha_pattern=tuple((p, a) for p, a in alphas.items() if a != alpha),
    dora=bool(raw.get('use_dora')),
    rslora=bool(raw.get('use_rslora')),
    dropout=float(raw.get('lora_dropout') or 0.0),
  )


def targeted(raw: dict[str, Any], module: str, present: bool) -> bool:
  """Whether PEFT puts an adapter on a module of this full name.

  present: whether the file has one, which decides where `target_modules` says
  nothing and PEFT goes by a list of its own.
  """
  excluded = raw.get('exclude_modules')
  if excluded and _names(excluded, module):
    return False
  targets = raw.get('target_modules')
  if targets is None:
    return present
  if targets == 'all-linear':
    return module != 'lm_head'
  if not _names(targets, module):
    return False
  layers = raw.get('layers_to_transform')
  exact = isinstance(targets, str) or module in targets
  if exact or layers is None or layers == []:
    return True
  number = re.search(r'\.(\d+)\.', module)
  layers = [layers] if isinstance(layers, int) else layers
  return number is not None and int(number[1]) in layers


def module_rank(raw: dict[str, Any], module: str) -> int:
  """The rank of a module's adapter: the first pattern that fits, or `r`."""
  return _first(raw.get('rank_pattern'), module, raw.get('r', 8))


def module_alpha(raw: dict[str, Any], module: str) -> float:
  """The alpha of a module's adapter: the first pattern that fits, or its own.

  As PEFT's `get_pattern_key` looks it up.
  """
  alpha = _first(raw.get('alpha_pattern'), module, raw.get('lora_alpha', 8))
  return float(alpha)


def _first(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
  for pattern, value in (patterns or {}).items():
    if re.match(rf'(.*\.)?({pattern})$', module):
      return value
  return default


def _names(targets: str | list[str], module: str) -> bool:
  """A regular expression for the whole name, or names of its last parts."""
  if isinstance(targets, str):
    return re.fullmatch(targets, module) is not None
  return any(module == t or module.endswith(f'.{t}') for t in targets)
