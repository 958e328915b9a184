"""The rotary part of a Hugging Face `config.json`, read and written.

Version 4 of `transformers` has `rope_theta` and `rope_scaling`, version 5
`rope_parameters`, by layer type for Gemma 3; both are read. See
`llm.checkpoints.hf.config`.
"""

import math

from llm.checkpoints.hf.values import FLAG, NUMBER, POSITIVE, SIZE, check, shown
from llm.errors import UserError
from llm.models.config import ModelConfig, RopeConfig

ROPE_KEYS = frozenset(
  {
    'original_max_position_embeddings',
    'partial_rotary_factor',
    'rope_local_base_freq',
    'rope_parameters',
    'rope_scaling',
    'rope_theta',
  }
)
# rope type -> (required keys, optional keys), next to type and theta.
_TYPES = {
  'default': ((), ()),
  'linear': (('factor',), ('original_max_position_embeddings',)),
  'dynamic': (('factor',), ('original_max_position_embeddings',)),
  'llama3': (
    ('factor', 'low_freq_factor', 'high_freq_factor'),
    ('original_max_position_embeddings',),
  ),
  'yarn': (
    ('factor',),
    (
      'original_max_position_embeddings',
      'attention_factor',
      'attn_factor',  # a multiple of what follows from the factor
      'beta_fast',
      'beta_slow',
      'mscale',
      'mscale_all_dim',
      'truncate',
      'finetuned',  # says how the checkpoint was made
    ),
  ),
  'longrope': (
    ('short_factor', 'long_factor'),
    ('original_max_position_embeddings', 'attention_factor', 'factor'),
  ),
}
_DEFAULT_THETA = {'mixtral': 1_000_000.0}
# What the keys of a rope dict may hold.
_KINDS = {
  **dict.fromkeys(
    (
      'rope_theta',
      'partial_rotary_factor',
      'factor',
      'low_freq_factor',
      'high_freq_factor',
      'attention_factor',
      'attn_factor',
      'beta_fast',
      'beta_slow',
    ),
    POSITIVE,
  ),
  'mscale': NUMBER,
  'mscale_all_dim': NUMBER,
  'original_max_position_embeddings': SIZE,
  'truncate': FLAG,
}


def rope_from_hf(model_type: str, values: dict, raw: dict) -> dict:
  """`rope` (and `rope_local`) of a `ModelConfig`.

  Args:
    model_type: the family.
    values: the config with defaults filled in.
    raw: the config as it was written.

  Raises:
    UserError: an unknown type or key, a missing or a wrong value, by name.
  """
  nested = raw.get('rope_parameters') or {}
  top = {key: raw.get(key) for key in ('rope_theta', 'partial_rotary_factor')}
  scaling = raw.get('rope_scaling')
  if model_type == 'gemma3_text':
    return _gemma3(values, raw, nested, top, scaling)
  if 'rope_local_base_freq' in raw:
    raise UserError(
      f'config.json: rope_local_base_freq={raw["rope_local_base_freq"]!r} is '
      f'not known for model_type={model_type!r}: remove it'
    )
  given = _given(
    _DEFAULT_THETA.get(model_type, 10_000.0),
    ('', top),
    ('rope_parameters.', nested),
    ('rope_scaling.', scaling),
  )
  return {'rope': _rope(model_type, given, values)}


def _gemma3(
  values: dict, raw: dict, nested: dict, top: dict, scaling: dict | None
) -> dict:
  """Two ropes: of global layers, and of local ones, which are not scaled."""
  keys = ('full_attention', 'sliding_attention')
  stray = set(nested) - set(keys)
  if stray:
    raise UserError(
      f'config.json: rope_parameters has {sorted(stray)}: Gemma 3 has only '
      'full_attention and sliding_attention there'
    )
  names = [f'rope_parameters.{key}' for key in keys]
  full, sliding = (
    (f'{name}.', check(name, nested.get(key)))
    for name, key in zip(names, keys, strict=True)
  )
  local = {'rope_local_base_freq': raw.get('rope_local_base_freq')}
  given = _given(1_000_000.0, ('', top), full, ('rope_scaling.', scaling))
  given_local = _given(10_000.0, ('', local), sliding)
  return {
    'rope': _rope('gemma3_text', given, values),
    'rope_local': _rope('gemma3_text', given_local, values),
  }


def _given(theta: float, *sources: tuple[str, dict | None]) -> dict:
  """The rope dicts of a file merged; null means not given.

  Args:
    theta: what `rope_theta` is by default.
    *sources: (what messages put before a key, the dict).

  Raises:
    UserError: a value of the wrong kind, or two sources that disagree.
  """
  merged, where = {'rope_theta': theta}, {}
  for prefix, source in sources:
    for name, value in (source or {}).items():
      if value is None:
        continue
      key = 'rope_theta' if name == 'rope_local_base_freq' else name
      if key in _KINDS:
        check(f'{prefix}{name}', value, _KINDS[key])
      if key in where and merged[key] != value:
        raise UserError(
          f'config.json: {shown(where[key], merged[key])}, but '
          f'{shown(prefix + name, value)}: keep the one that the model was '
          'trained with'
        )
      merged[key], where[key] = value, prefix + name
  return merged


def _rope(model_type: str, given: dict, values: dict) -> RopeConfig:
  """One `RopeConfig` from a flat dict of rope parameters."""
  kind = given.pop('rope_type', None) or given.get('type', 'default')
  given.pop('type', None)
  if kind == 'su' or (model_type == 'phi3' and kind == 'yarn'):
    kind = 'longrope'  # its earlier names
  if kind == 'default' and given.get('factor') == 1:
    del given['factor']  # says that nothing is scaled
  _check_keys(kind, given, model_type)
  partial = float(given.pop('partial_rotary_factor', 1.0))
  if partial != 1.0 and model_type != 'phi3':
    raise UserError(
      f'config.json: partial_rotary_factor={partial} is not supported for '
      f'model_type={model_type!r}: only 1.0 is'
    )
  rotated = int(values['head_dim'] * partial)
  if partial > 1 or rotated % 2 or not rotated:
    raise UserError(
      f'config.json: partial_rotary_factor={partial} turns {rotated} of '
      f'head_dim={values["head_dim"]} numbers: it must be an even number of '
      'them, set it as the model was trained'
    )
  fields = dict(
    type=kind,
    theta=float(given['rope_theta']),
    partial_rotary_factor=partial,
  )
  if kind == 'default':
    return RopeConfig(**fields)
  max_length = values['max_position_embeddings']
  # Phi-3 has it outside of rope_scaling, and that value wins.
  named = values.get('original_max_position_embeddings') or given.get(
    'original_max_position_embeddings'
  )
  original = named or max_length
  if kind == 'dynamic' and original != max_length:
    raise UserError(
      f'config.json: original_max_position_embeddings={original} and '
      f'max_position_embeddings={max_length}, from which dynamic RoPE scales: '
      'set both to the length that the model was trained with'
    )
  if named or kind != 'linear':
    fields['original_max_length'] = original
  fields['factor'] = float(given.get('factor', max_length / original))
  for key in ('low_freq_factor', 'high_freq_factor', 'attention_factor'):
    if key in given:
      fields[key] = float(given[key])
  if kind == 'llama3' and given['low_freq_factor'] >= given['high_freq_factor']:
    raise UserError(
      f'config.json: {shown("low_freq_factor", given["low_freq_factor"])} is '
      f'not below {shown("high_freq_factor", given["high_freq_factor"])}: set '
      'both as the model was trained'
    )
  if kind == 'yarn':
    fields.update(_yarn(given))
  if kind == 'longrope':
    fields.update(_longrope(given, values, partial))
  return RopeConfig(**fields)


def _check_keys(kind: str, given: dict, model_type: str) -> None:
  kinds = ('default', 'longrope') if model_type == 'phi3' else tuple(_TYPES)
  if kind not in kinds:
    raise UserError(
      f'config.json: rope_type={kind!r} is not supported for '
      f'model_type={model_type!r}: use one of {", ".join(kinds)}'
    )
  required, optional = _TYPES[kind]
  missing = [key for key in required if key not in given]
  if kind == 'yarn' and 'original_max_position_embeddings' in given:
    missing = []  # the factor is then a ratio of lengths
  if missing:
    raise UserError(
      f'config.json: rope_type={kind!r} without {", ".join(missing)}: add it '
      'to rope_scaling'
    )
  known = {*required, *optional, 'rope_theta', 'partial_rotary_factor'}
  for key in given:
    if key not in known:
      raise UserError(
        f'config.json: {key}={given[key]!r} is not known for '
        f'rope_type={kind!r}: remove it from rope_scaling'
      )


def _yarn(given: dict) -> dict:
  fields = {
    'beta_fast': float(given.get('beta_fast', 32.0)),
    'beta_slow': float(given.get('beta_slow', 1.0)),
    'truncate': given.get('truncate', True),
  }
  if 'attn_factor' in given:
    # DeepSeek-R1-0528-Qwen3-8B has the inverse of YaRN's own factor here, as
    # vLLM reads it; transformers warns that it does not.
    also = {'attention_factor', 'mscale', 'mscale_all_dim'} & {*given}
    if also or given.get('factor', 0) <= 1:
      raise UserError(
        f'config.json: {shown("attn_factor", given["attn_factor"])} beside '
        f'{", ".join(sorted(also)) or "no factor above 1"}: set '
        'attention_factor alone'
      )
    own = 0.1 * math.log(given['factor']) + 1
    fields['attention_factor'] = float(given['attn_factor'] * own)
  for key in ('mscale', 'mscale_all_dim'):
    if key in given:
      fields[key] = float(given[key])
  return fields


def _longrope(given: dict, values: dict, partial: float) -> dict:
  head_dim = values['head_dim']
  pairs = int(head_dim * partial) // 2
  fields = {}
  for key in ('short_factor', 'long_factor'):
    factors = given[key]
    if not isinstance(factors, list) or len(factors) != pairs:
      raise UserError(
        f'config.json: {key} must be a list of {pairs} numbers for '
        f'head_dim={head_dim}, partial_rotary_factor={partial}; it has '
        f'{len(factors) if isinstance(factors, list) else factors!r}: set it '
        'as the model was trained'
      )
    fields[key] = tuple(
      float(check(f'rope_scaling.{key}[{i}]', factor, POSITIVE))
      for i, factor in enumerate(factors)
    )
  return fields


def rope_to_hf(config: ModelConfig) -> dict:
  """The rotary keys of `config.json` that `rope_from_hf` reads back."""
  rope, local = config.rope, config.rope_local
  if local is not None and local.type != 'default':
    return {
      'rope_parameters': {
        'full_attention': {
          'rope_theta': rope.theta,
          'rope_type': rope.type,
          **_parameters(config, rope),
        },
        'sliding_attention': {
          'rope_theta': local.theta,
          'rope_type': local.type,
          **_parameters(config, local),
        },
      }
    }
  raw = {'rope_theta': rope.theta}
  if local is not None:
    raw['rope_local_base_freq'] = local.theta
  if rope.partial_rotary_factor != 1.0:
    raw['partial_rotary_factor'] = rope.partial_rotary_factor
  scaling = _parameters(config, rope)
  if config.model_type == 'phi3' and rope.original_max_length:
    # transformers 4 takes exactly type and factors here.
    raw['original_max_position_embeddings'] = scaling.pop(
      'original_max_position_embeddings'
    )
    raw['rope_scaling'] = {'type': rope.type, **scaling}
  elif rope.type != 'default':
    raw['rope_scaling'] = {'rope_type': rope.type, **scaling}
  return raw


def _parameters(config: ModelConfig, rope: RopeConfig) -> dict:
  """What a scaled rope has besides its type and theta; defaults left out."""
  if rope.type == 'default':
    return {}
  original = rope.original_max_length
  parameters = {}
  if rope.type != 'longrope' or rope.factor != config.max_length / original:
    parameters['factor'] = rope.factor
  if original is not None and rope.type != 'dynamic':
    parameters['original_max_position_embeddings'] = original
  if rope.type == 'llama3':
    parameters['low_freq_factor'] = rope.low_freq_factor
    parameters['high_freq_factor'] = rope.high_freq_factor
  if rope.type == 'yarn':
    default = RopeConfig()
    for key in (
      'beta_fast',
      'beta_slow',
      'truncate',
      'mscale',
      'mscale_all_dim',
    ):
      if getattr(rope, key) != getattr(default, key):
        parameters[key] = getattr(rope, key)
  if rope.attention_factor is not None:
    parameters['attention_factor'] = rope.attention_factor
  if rope.type == 'longrope':
    parameters['short_factor'] = list(rope.short_factor)
    parameters['long_factor'] = list(rope.long_factor)
  return parameters
