"""Hugging Face `config.json` to `ModelConfig` and back.

Every key is known or refused: a family's own keys are listed with the default
that the `transformers` library gives them, keys that cannot change a forward
pass are listed once, and anything else is an error that names it. So a
checkpoint that needs something unsupported is never loaded silently.
"""

import dataclasses

from llm.checkpoints.hf.families import (
  ARCHITECTURES,
  FAMILIES,
  HARMLESS,
  ONLY,
  OWN,
  REQUIRED,
)
from llm.checkpoints.hf.rope import ROPE_KEYS, rope_from_hf, rope_to_hf
from llm.checkpoints.hf.values import (
  TOKEN_KEYS,
  check_all,
  read_token_ids,
  shown,
)
from llm.errors import UserError
from llm.models.config import GLOBAL, LOCAL, ModelConfig, length_limit

_ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'relu': 'relu',
}
_EXPORTED_ACTIVATION = {
  'silu': 'silu',
  'gelu': 'gelu',
  'gelu_tanh': 'gelu_pytorch_tanh',
  'relu': 'relu',
}
_LAYER_TYPES = {'full_attention': GLOBAL, 'sliding_attention': LOCAL}


def from_hf(raw: dict) -> ModelConfig:
  """Reads a parsed `config.json`, of `transformers` 4 or 5.

  Raises:
    UserError: the architecture is not supported, a required key is missing, a
      value is out of range, or a key would change the result in a way that is
      not supported; each by name.
  """
  if raw.get('model_type') == 'gemma3':
    raw = _text_part(raw)
  model_type = raw.get('model_type')
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise UserError(
      f'config.json: {shown("model_type", model_type)} is not supported: use a '
      f'checkpoint of one of {", ".join(FAMILIES)}'
    )
  defaults = FAMILIES[model_type]
  if model_type == 'qwen3_moe' and 'num_local_experts' in raw:
    raw = dict(raw)  # transformers 5 writes this name
    raw.setdefault('num_experts', raw.pop('num_local_experts'))
  _refuse_unknown(raw, model_type, defaults)
  missing = [k for k in REQUIRED if k not in raw and k not in defaults]
  if missing:
    raise UserError(
      f'config.json: missing {", ".join(missing)}: add what the model was '
      'trained with'
    )
  values = {**defaults, **raw}
  check_all(values, {*defaults, *REQUIRED, *ROPE_KEYS, 'layer_types'})
  for key in TOKEN_KEYS:
    if values[key] is not None and key not in raw:
      # A family's default id is of its own vocabulary, not of a smaller one.
      values[key] = values[key] if values[key] < values['vocab_size'] else None
  values.update(read_token_ids('config.json', raw, values['vocab_size']))
  _check_shapes(values, raw)
  return ModelConfig(**_fields(model_type, values, raw))


def to_hf(config: ModelConfig) -> dict:
  """Writes the `config.json` that `from_hf` reads back to an equal config.

  The keys are those of `transformers` 4 (`rope_theta`, `rope_scaling`), which
  version 5 and other engines read too.

  Raises:
    UserError: the family `config.model_type` cannot express a field.
  """
  defaults = FAMILIES.get(config.model_type)
  if defaults is None:
    raise UserError(
      f'model_type={config.model_type!r} cannot be exported: use one of '
      f'{", ".join(FAMILIES)}'
    )
  values = _values(config)
  raw = {
    'architectures': [ARCHITECTURES[config.model_type]],
    'model_type': config.model_type,
    **{key: values[key] for key in REQUIRED},
    **{key: values[key] for key in defaults if key in values},
    **rope_to_hf(config),
  }
  back = from_hf(raw)
  lost = [
    f'{field.name}={getattr(config, field.name)!r}'
    for field in dataclasses.fields(config)
    if getattr(config, field.name) != getattr(back, field.name)
  ]
  if lost:
    raise UserError(
      f'model_type={config.model_type!r} cannot express {", ".join(lost)}: '
      'export with a model_type that has it'
    )
  return raw


def token_ids(value: int | list | None) -> tuple[int, ...]:
  """An `eos_token_id` entry (one id, a list or null) as a tuple."""
  if value is None:
    return ()
  return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _text_part(raw: dict) -> dict:
  """The language model's config inside a multimodal Gemma 3 config."""
  text = raw.get('text_config')
  if not isinstance(text, dict):
    raise UserError(
      'config.json: model_type=gemma3 without text_config: add the config of '
      'its language model'
    )
  text = {**text, 'model_type': 'gemma3_text'}
  inherited = (
    'bos_token_id',
    'eos_token_id',
    'pad_token_id',
    'tie_word_embeddings',
    'quantization_config',
  )
  for key in inherited:
    if raw.get(key) is not None:
      text[key] = raw[key]
  return text


def passed_over(raw: dict) -> str | None:
  """Which unknown keys of a `config.json` are not read, as they are off.

  Args:
    raw: a config that `from_hf` accepts.

  Returns:
    a line for the user; None where there is none.
  """
  raw = _text_part(raw) if raw.get('model_type') == 'gemma3' else raw
  model_type = raw['model_type']
  known = {*FAMILIES[model_type], *_known(model_type)}
  keys = [k for k in raw if k not in known and not k.startswith('_')]
  return f'config.json: not read: {", ".join(keys)}' if keys else None


def _known(model_type: str) -> set[str]:
  """Keys that are read, or that may have some values only, or are harmless."""
  own = OWN.get(model_type, {})
  also = {'num_local_experts'} if model_type == 'qwen3_moe' else set()
  return {*REQUIRED, *HARMLESS, *ROPE_KEYS, *ONLY, *own, *also}


def _refuse_unknown(raw: dict, model_type: str, defaults: dict) -> None:
  only = ONLY | OWN.get(model_type, {})
  known = {*defaults, *REQUIRED, *HARMLESS, *ROPE_KEYS}
  for key, value in raw.items():
    if key in known or key.startswith('_'):
      continue
    if key in only and value not in only[key]:
      raise UserError(
        f'config.json: {shown(key, value)} is not supported for '
        f'model_type={model_type!r}: only {only[key][0]!r} is'
      )
    off = value is None or value in (False, 0, '', [], {})
    if key not in only and not off:
      raise UserError(
        f'config.json: {shown(key, value)} is not known for '
        f'model_type={model_type!r}: remove it if it does not change the '
        'result'
      )


def _check_shapes(values: dict, raw: dict) -> None:
  """Checks what must fit together; fills in what follows from the rest."""

  def named(key):
    default = '' if key in raw else ' (the default)'
    return f'{shown(key, values[key])}{default}'

  def refuse(problem, remedy='set both as the model was trained'):
    raise UserError(f'config.json: {problem}: {remedy}')

  num_heads = values['num_attention_heads']
  num_layers = values['num_hidden_layers']
  if values['num_key_value_heads'] is None:
    values['num_key_value_heads'] = num_heads
  if num_heads % values['num_key_value_heads']:
    refuse(
      f'{named("num_attention_heads")} is not a multiple of '
      f'{named("num_key_value_heads")}'
    )
  if values['head_dim'] is None:
    values['head_dim'] = values['hidden_size'] // num_heads
  if values['head_dim'] % 2 or not values['head_dim']:
    refuse(
      f'head_dim={values["head_dim"]} (if not given, hidden_size / '
      'num_attention_heads) is not an even number above 0',
      'set it as the model was trained',
    )
  for key in ('num_local_experts', 'num_experts'):
    if values.get(key, 0) and values[key] < values['num_experts_per_tok']:
      refuse(f'{named("num_experts_per_tok")} is more than {named(key)}')
  for layer in values.get('mlp_only_layers') or ():
    if not 0 <= layer < num_layers:
      refuse(
        f'mlp_only_layers names layer {layer}, and {named("num_hidden_layers")}'
      )
  given = values.get('layer_types')
  if given is not None and len(given) != num_layers:
    refuse(
      f'layer_types has {len(given)} entries, and {named("num_hidden_layers")}'
    )


def _fields(model_type: str, values: dict, raw: dict) -> dict:
  """The arguments of `ModelConfig`."""
  embed_dim = values['hidden_size']
  gemma = model_type.startswith('gemma')
  bias = bool(values.get('attention_bias')) or model_type == 'qwen2'
  num_layers = values['num_hidden_layers']
  layer_types, window = _layers(model_type, values, num_layers)
  fields = dict(
    vocab_size=values['vocab_size'],
    embed_dim=embed_dim,
    hidden_dim=values['intermediate_size'],
    num_layers=num_layers,
    num_heads=values['num_attention_heads'],
    num_kv_heads=values['num_key_value_heads'],
    head_dim=values['head_dim'],
    max_length=values['max_position_embeddings'],
    model_type=model_type,
    layer_types=layer_types,
    window=window,
    norm_eps=float(values['rms_norm_eps']),
    qkv_bias=bias,
    attn_out_bias=bias and model_type != 'qwen2',
    mlp_bias=bool(values.get('mlp_bias')),
    activation=_activation(values, gemma),
    tie_embeddings=bool(values['tie_word_embeddings']),
    bos_id=values['bos_token_id'],
    eos_ids=token_ids(values['eos_token_id']),
    pad_id=values['pad_token_id'],
  )
  if gemma:
    fields.update(
      post_norm=True,
      norm_offset=True,
      query_scale=float(values['query_pre_attn_scalar'] ** -0.5),
      attn_soft_cap=values['attn_logit_softcapping'],
      final_soft_cap=values['final_logit_softcapping'],
      embed_scale=float(embed_dim**0.5),
    )
  if model_type == 'olmo2':
    fields.update(
      pre_norm=False, post_norm=True, norm_float32_scale=True, qk_norm='full'
    )
  if model_type in ('qwen3', 'qwen3_moe', 'gemma3_text'):
    fields.update(qk_norm='head')
  fields.update(_experts(model_type, values, num_layers))
  fields.update(rope_from_hf(model_type, values, raw))
  limit = length_limit(ModelConfig(**fields))
  if window is not None and window >= limit and 'rope_local' not in fields:
    # No row is longer than the window (Phi-4-mini): nothing to mask.
    fields.update(layer_types=(GLOBAL,) * num_layers, window=None)
  return fields


def _experts(model_type: str, values: dict, num_layers: int) -> dict:
  if model_type not in ('mixtral', 'qwen3_moe'):
    return {}
  fields = dict(
    experts_per_token=values['num_experts_per_tok'],
    router_aux_coef=float(values['router_aux_loss_coef']),
  )
  if model_type == 'mixtral':
    return dict(
      fields,
      num_experts=values['num_local_experts'],
      expert_dim=values['intermediate_size'],
    )
  dense = values['mlp_only_layers'] or ()
  step = values['decoder_sparse_step']
  return dict(
    fields,
    num_experts=values['num_experts'],
    expert_dim=values['moe_intermediate_size'],
    norm_topk_prob=bool(values['norm_topk_prob']),
    moe_layers=tuple(
      i not in dense and (i + 1) % step == 0 for i in range(num_layers)
    ),
  )


def _layers(
  model_type: str, values: dict, num_layers: int
) -> tuple[tuple[str, ...], int | None]:
  """Kind of each layer, and the window of the local ones."""
  window = values.get('sliding_window')
  if not values.get('use_sliding_window', True):
    if window is not None and 'use_sliding_window' not in FAMILIES[model_type]:
      raise UserError(
        f'config.json: use_sliding_window=false beside sliding_window={window} '
        f'is not read by model_type={model_type!r}, which uses the window: set '
        'sliding_window to null, or remove use_sliding_window'
      )
    window = None
  if model_type == 'gemma2':
    local = [i % 2 == 0 for i in range(num_layers)]
  elif model_type == 'gemma3_text':
    pattern = values['sliding_window_pattern']
    local = [(i + 1) % pattern != 0 for i in range(num_layers)]
  elif model_type in ('qwen2', 'qwen3'):
    first = values['max_window_layers']
    local = [window is not None and i >= first for i in range(num_layers)]
  else:
    local = [window is not None] * num_layers
  layer_types = tuple(LOCAL if is_local else GLOBAL for is_local in local)
  given = values.get('layer_types')
  if given is not None:
    unknown = set(given) - set(_LAYER_TYPES)
    if unknown:
      raise UserError(
        f'config.json: layer_types has {sorted(unknown)}: only '
        f'{sorted(_LAYER_TYPES)} are supported'
      )
    given = tuple(_LAYER_TYPES[name] for name in given)
    if given != layer_types and 'layer_types' not in FAMILIES[model_type]:
      raise UserError(
        f'config.json: layer_types is not read by model_type={model_type!r}, '
        f'and differs from what sliding_window={window} makes: remove it'
      )
    layer_types = given
  if LOCAL in layer_types and window is None:
    raise UserError(
      'config.json: sliding layers without a window: set sliding_window (and '
      'use_sliding_window=true where the family has it)'
    )
  if LOCAL not in layer_types:
    return layer_types, None
  return layer_types, window


def _activation(values: dict, gemma: bool) -> str:
  key = 'hidden_activation' if gemma else 'hidden_act'
  if values[key] not in _ACTIVATIONS:
    raise UserError(
      f'config.json: {key}={values[key]!r} is not supported: use one of '
      f'{", ".join(_ACTIVATIONS)}'
    )
  return _ACTIVATIONS[values[key]]


def _values(config: ModelConfig) -> dict:
  """Each key of every family, from the fields of the config."""
  names = {ours: theirs for theirs, ours in _LAYER_TYPES.items()}
  activation = _EXPORTED_ACTIVATION[config.activation]
  eos = list(config.eos_ids)
  moe = config.moe_layers or (False,) * config.num_layers
  values = {
    'vocab_size': config.vocab_size,
    'hidden_size': config.embed_dim,
    'intermediate_size': config.hidden_dim,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'hidden_act': activation,
    'hidden_activation': activation,
    'max_position_embeddings': config.max_length,
    'rms_norm_eps': config.norm_eps,
    'tie_word_embeddings': config.tie_embeddings,
    'bos_token_id': config.bos_id,
    'eos_token_id': (eos or [None])[0] if len(eos) < 2 else eos,
    'pad_token_id': config.pad_id,
    'attention_bias': config.attn_out_bias,
    'mlp_bias': config.mlp_bias,
    'sliding_window': config.window,
    'use_sliding_window': config.window is not None,
    'max_window_layers': config.num_layers,
    'layer_types': [names[kind] for kind in config.layer_types],
    'final_logit_softcapping': config.final_soft_cap,
    'attn_logit_softcapping': config.attn_soft_cap,
    'num_local_experts': config.num_experts,
    'num_experts': config.num_experts,
    'num_experts_per_tok': config.experts_per_token,
    'moe_intermediate_size': config.expert_dim,
    'norm_topk_prob': config.norm_topk_prob,
    'router_aux_loss_coef': config.router_aux_coef,
    'decoder_sparse_step': 1,
    'mlp_only_layers': [i for i, is_moe in enumerate(moe) if not is_moe],
  }
  if config.query_scale:
    values['query_pre_attn_scalar'] = round(config.query_scale**-2)
  return values
