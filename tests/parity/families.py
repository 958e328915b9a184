"""Small random transformers models, one for each family and rotary type."""

import dataclasses

import numpy as np
import torch
import transformers

torch.set_num_threads(1)  # for matrices this small

_SHAPE = dict(
  vocab_size=96,
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=128,
  bos_token_id=1,
  eos_token_id=None,
  pad_token_id=None,
)
_ORIGINAL = 16  # the context that scaled rotary types were trained on


@dataclasses.dataclass(frozen=True)
class Case:
  name: str
  config: str  # class of transformers
  options: dict


def _rope(kind: str, **parameters) -> dict:
  return {'rope_parameters': {'rope_type': kind, **parameters}}


def _longrope(pairs: int) -> dict:
  rng = np.random.default_rng(0)
  return dict(
    short_factor=rng.uniform(1, 1.5, pairs).tolist(),
    long_factor=rng.uniform(1, 4, pairs).tolist(),
  )


def _case(name: str, config: str, **options) -> Case:
  return Case(name, config, {**_SHAPE, **options})


_ROPES = {
  'linear': dict(factor=4.0),
  'dynamic': dict(factor=4.0),
  'llama3': dict(
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=_ORIGINAL,
  ),
  'yarn': dict(factor=4.0, original_max_position_embeddings=_ORIGINAL),
  'longrope': dict(original_max_position_embeddings=_ORIGINAL, **_longrope(4)),
}
CASES = [
  _case('llama', 'LlamaConfig'),
  _case(
    'llama_biases_mqa',
    'LlamaConfig',
    attention_bias=True,
    mlp_bias=True,
    num_key_value_heads=1,
    head_dim=12,
    tie_word_embeddings=True,
    hidden_act='gelu',
  ),
  *(
    _case(
      f'llama_{kind}',
      'LlamaConfig',
      **_rope(kind, rope_theta=500.0, **parameters),
      **({'max_position_embeddings': _ORIGINAL} if kind == 'dynamic' else {}),
    )
    for kind, parameters in _ROPES.items()
  ),
  # Scaled beside an unchanged max_position_embeddings: rows of more tokens fit.
  _case(
    'llama_linear_unchanged',
    'LlamaConfig',
    max_position_embeddings=32,
    **_rope('linear', rope_theta=500.0, factor=4.0),
  ),
  _case(
    'qwen2_yarn_unchanged',
    'Qwen2Config',
    max_position_embeddings=_ORIGINAL,
    **_rope(
      'yarn',
      rope_theta=1e4,
      factor=8.0,
      original_max_position_embeddings=_ORIGINAL,
    ),
  ),
  _case(
    'yarn_mscale',
    'Qwen3Config',
    head_dim=16,
    **_rope(
      'yarn',
      rope_theta=1e4,
      factor=4.0,
      original_max_position_embeddings=_ORIGINAL,
      beta_fast=16.0,
      beta_slow=2.0,
      mscale=0.8,
      mscale_all_dim=0.5,
      truncate=False,
    ),
  ),
  _case('mistral', 'MistralConfig', sliding_window=8),
  _case('qwen2', 'Qwen2Config'),
  _case(
    'qwen2_window',
    'Qwen2Config',
    use_sliding_window=True,
    sliding_window=8,
    max_window_layers=1,
    **_rope('yarn', **_ROPES['yarn']),
  ),
  _case('qwen3', 'Qwen3Config', head_dim=12, attention_bias=True),
  _case(
    'qwen3_window',
    'Qwen3Config',
    head_dim=12,
    use_sliding_window=True,
    sliding_window=8,
    layer_types=['sliding_attention', 'full_attention', 'sliding_attention'],
  ),
  _case(
    'gemma2',
    'Gemma2Config',
    head_dim=12,
    query_pre_attn_scalar=20,
    sliding_window=8,
    attn_logit_softcapping=3.0,
    final_logit_softcapping=6.0,
  ),
  _case(
    'gemma3',
    'Gemma3TextConfig',
    head_dim=12,
    query_pre_attn_scalar=20,
    sliding_window=8,
    layer_types=['sliding_attention', 'sliding_attention', 'full_attention'],
    rope_parameters={
      'full_attention': dict(rope_type='linear', rope_theta=1e5, factor=8.0),
      'sliding_attention': dict(rope_type='default', rope_theta=1e3),
    },
  ),
  _case('phi3', 'Phi3Config', sliding_window=8),
  _case(
    'phi3_longrope_partial',
    'Phi3Config',
    hidden_size=64,
    original_max_position_embeddings=_ORIGINAL,
    **_rope(
      'longrope', rope_theta=1e4, partial_rotary_factor=0.75, **_longrope(6)
    ),
  ),
  _case('olmo2', 'Olmo2Config'),
  _case(
    'mixtral',
    'MixtralConfig',
    num_local_experts=4,
    num_experts_per_tok=2,
    sliding_window=8,
  ),
  _case(
    'qwen3_moe',
    'Qwen3MoeConfig',
    head_dim=12,
    num_experts=6,
    num_experts_per_tok=3,
    moe_intermediate_size=20,
    mlp_only_layers=[1],
    norm_topk_prob=True,
  ),
  _case(
    'qwen3_moe_window',
    'Qwen3MoeConfig',
    head_dim=12,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=20,
    decoder_sparse_step=2,
    use_sliding_window=True,
    sliding_window=8,
  ),
]


def save_model(case: Case, folder: str) -> None:
  """Writes a random model with outputs far from uniform, in several files."""
  torch.manual_seed(0)
  config = getattr(transformers, case.config)(**case.options)
  model = transformers.AutoModelForCausalLM.from_config(config)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      _randomise(name, weight, config)
  model.save_pretrained(folder, max_shard_size='20KB')


def _randomise(name: str, weight: torch.Tensor, config) -> None:
  scale = weight.shape[-1] ** -0.5
  if 'norm' in name:
    mean = 0.0 if 'gemma' in config.model_type else 1.0
    weight.normal_(mean, 0.2)
  elif 'embed_tokens' in name or 'lm_head' in name:
    weight.normal_(0.0, 3 * scale)
  elif weight.ndim == 1:
    weight.normal_(0.0, 0.3)
  else:
    weight.normal_(0.0, 1.5 * scale)


def load_torch(folder: str):
  """A fresh model: dynamic frequencies are kept in it from call to call."""
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='eager'
  ).eval()
