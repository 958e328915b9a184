"""Configs with the keys that published files of each family have."""

import pathlib
import re

import pytest

from llm.checkpoints.hf.config import from_hf, passed_over, to_hf
from llm.checkpoints.hf.families import FAMILIES
from llm.errors import UserError
from llm.models.config import GLOBAL, LOCAL, RopeConfig, length_limit
from tests.checkpoints.hf.hub_models import MODELS

ROOT = pathlib.Path(__file__).parents[3]
# What every such file says besides, and no forward pass depends on.
_BESIDE = dict(
  attention_dropout=0.0,
  initializer_range=0.02,
  torch_dtype='bfloat16',
  transformers_version='4.51.0',
  use_cache=True,
)
_QWEN = dict(
  bos_token_id=151643,
  eos_token_id=151645,
  hidden_act='silu',
  rms_norm_eps=1e-06,
  rope_theta=1000000.0,
  use_sliding_window=False,
  vocab_size=151936,
)
_GEMMA = dict(
  attention_bias=False,
  bos_token_id=2,
  cache_implementation='hybrid',
  head_dim=256,
  hidden_activation='gelu_pytorch_tanh',
  num_hidden_layers=26,
  pad_token_id=0,
  query_pre_attn_scalar=256,
  rms_norm_eps=1e-06,
)
# model_type -> (the file, fields that it must come to)
HUB = {
  'llama': (
    dict(
      architectures=['LlamaForCausalLM'],
      attention_bias=False,
      bos_token_id=128000,
      eos_token_id=[128001, 128008, 128009],
      hidden_act='silu',
      hidden_size=4096,
      intermediate_size=14336,
      max_position_embeddings=131072,
      mlp_bias=False,
      num_attention_heads=32,
      num_hidden_layers=32,
      num_key_value_heads=8,
      pretraining_tp=1,
      rms_norm_eps=1e-05,
      rope_scaling=dict(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
        rope_type='llama3',
      ),
      rope_theta=500000.0,
      tie_word_embeddings=False,
      vocab_size=128256,
    ),
    dict(
      rope=RopeConfig(
        'llama3', theta=5e5, factor=8.0, original_max_length=8192
      ),
      eos_ids=(128001, 128008, 128009),
      head_dim=128,
    ),
  ),
  'mistral': (
    dict(
      architectures=['MistralForCausalLM'],
      bos_token_id=1,
      eos_token_id=2,
      hidden_act='silu',
      hidden_size=4096,
      intermediate_size=14336,
      max_position_embeddings=32768,
      num_attention_heads=32,
      num_hidden_layers=32,
      num_key_value_heads=8,
      rms_norm_eps=1e-05,
      rope_theta=10000.0,
      sliding_window=4096,
      tie_word_embeddings=False,
      vocab_size=32000,
    ),
    dict(window=4096, layer_types=(LOCAL,) * 32, eos_ids=(2,)),
  ),
  'qwen2': (
    dict(
      _QWEN,
      architectures=['Qwen2ForCausalLM'],
      hidden_size=896,
      intermediate_size=4864,
      max_position_embeddings=32768,
      max_window_layers=21,
      num_attention_heads=14,
      num_hidden_layers=24,
      num_key_value_heads=2,
      sliding_window=32768,
      tie_word_embeddings=True,
    ),
    dict(window=None, layer_types=(GLOBAL,) * 24, qkv_bias=True, head_dim=64),
  ),
  'qwen3': (
    dict(
      _QWEN,
      architectures=['Qwen3ForCausalLM'],
      attention_bias=False,
      head_dim=128,
      hidden_size=1024,
      intermediate_size=3072,
      max_position_embeddings=40960,
      max_window_layers=28,
      num_attention_heads=16,
      num_hidden_layers=28,
      num_key_value_heads=8,
      rope_scaling=None,
      sliding_window=None,
      tie_word_embeddings=True,
    ),
    dict(window=None, qk_norm='head', rope=RopeConfig(theta=1e6)),
  ),
  'gemma2': (
    dict(
      _GEMMA,
      architectures=['Gemma2ForCausalLM'],
      attn_logit_softcapping=50.0,
      eos_token_id=1,
      final_logit_softcapping=30.0,
      hidden_act='gelu_pytorch_tanh',
      hidden_size=2304,
      intermediate_size=9216,
      max_position_embeddings=8192,
      num_attention_heads=8,
      num_key_value_heads=4,
      rope_theta=10000.0,
      sliding_window=4096,
      vocab_size=256000,
    ),
    dict(window=4096, layer_types=(LOCAL, GLOBAL) * 13, final_soft_cap=30.0),
  ),
  'gemma3_text': (
    dict(
      _GEMMA,
      architectures=['Gemma3ForCausalLM'],
      attn_logit_softcapping=None,
      eos_token_id=[1, 106],
      final_logit_softcapping=None,
      hidden_size=1152,
      intermediate_size=6912,
      max_position_embeddings=32768,
      num_attention_heads=4,
      num_key_value_heads=1,
      rope_local_base_freq=10000,
      rope_scaling=None,
      rope_theta=1000000,
      sliding_window=512,
      sliding_window_pattern=6,
      vocab_size=262144,
    ),
    dict(
      rope=RopeConfig(theta=1e6),
      rope_local=RopeConfig(theta=1e4),
      eos_ids=(1, 106),
      window=512,
    ),
  ),
  'phi3': (
    dict(
      architectures=['Phi3ForCausalLM'],
      attention_bias=False,
      auto_map={'AutoConfig': 'configuration_phi3.Phi3Config'},
      bos_token_id=199999,
      embd_pdrop=0.0,
      eos_token_id=199999,
      full_attn_mod=1,
      hidden_act='silu',
      hidden_size=3072,
      intermediate_size=8192,
      interpolate_factor=1,
      lm_head_bias=False,
      max_position_embeddings=131072,
      mlp_bias=False,
      num_attention_heads=24,
      num_hidden_layers=32,
      num_key_value_heads=8,
      original_max_position_embeddings=4096,
      pad_token_id=199999,
      partial_rotary_factor=0.75,
      resid_pdrop=0.0,
      rms_norm_eps=1e-05,
      rope_scaling=dict(
        long_factor=[2.0] * 48, short_factor=[1.0] * 48, type='longrope'
      ),
      rope_theta=10000.0,
      sliding_window=262144,
      tie_word_embeddings=True,
      vocab_size=200064,
    ),
    dict(
      rope=RopeConfig(
        'longrope',
        partial_rotary_factor=0.75,
        factor=32.0,
        original_max_length=4096,
        short_factor=(1.0,) * 48,
        long_factor=(2.0,) * 48,
      ),
      window=None,
    ),
  ),
  'olmo2': (
    dict(
      architectures=['Olmo2ForCausalLM'],
      attention_bias=False,
      eos_token_id=100257,
      hidden_act='silu',
      hidden_size=4096,
      intermediate_size=11008,
      max_position_embeddings=4096,
      num_attention_heads=32,
      num_hidden_layers=32,
      num_key_value_heads=32,
      pad_token_id=100277,
      rms_norm_eps=1e-06,
      rope_scaling=None,
      rope_theta=500000,
      tie_word_embeddings=False,
      vocab_size=100352,
    ),
    dict(qk_norm='full', pre_norm=False, bos_id=None, pad_id=100277),
  ),
  'mixtral': (
    dict(
      architectures=['MixtralForCausalLM'],
      bos_token_id=1,
      eos_token_id=2,
      hidden_act='silu',
      hidden_size=4096,
      intermediate_size=14336,
      max_position_embeddings=32768,
      num_attention_heads=32,
      num_experts_per_tok=2,
      num_hidden_layers=32,
      num_key_value_heads=8,
      num_local_experts=8,
      output_router_logits=False,
      rms_norm_eps=1e-05,
      rope_theta=1000000.0,
      router_aux_loss_coef=0.02,
      sliding_window=None,
      tie_word_embeddings=False,
      vocab_size=32000,
    ),
    dict(num_experts=8, experts_per_token=2, expert_dim=14336, window=None),
  ),
  'qwen3_moe': (
    dict(
      _QWEN,
      architectures=['Qwen3MoeForCausalLM'],
      attention_bias=False,
      decoder_sparse_step=1,
      head_dim=128,
      hidden_size=2048,
      intermediate_size=6144,
      max_position_embeddings=40960,
      max_window_layers=48,
      mlp_only_layers=[],
      moe_intermediate_size=768,
      norm_topk_prob=True,
      num_attention_heads=32,
      num_experts=128,
      num_experts_per_tok=8,
      num_hidden_layers=48,
      num_key_value_heads=4,
      output_router_logits=False,
      rope_scaling=None,
      router_aux_loss_coef=0.001,
      sliding_window=None,
      tie_word_embeddings=False,
    ),
    dict(
      num_experts=128,
      experts_per_token=8,
      moe_layers=(True,) * 48,
      norm_topk_prob=True,
    ),
  ),
}


@pytest.mark.parametrize('model_type', HUB)
def test_configs_as_they_are_on_the_hub(model_type):
  raw, fields = HUB[model_type]
  config = from_hf({'model_type': model_type, **_BESIDE, **raw})
  assert {name: getattr(config, name) for name in fields} == fields
  assert from_hf(to_hf(config)) == config


def test_there_are_enough_published_models():
  assert len(MODELS) >= 60
  assert {raw['model_type'] for raw in MODELS.values()} >= {*FAMILIES}


@pytest.mark.parametrize('name', MODELS)
def test_published_configs_load(name):
  raw = MODELS[name]
  config = from_hf(raw)
  assert from_hf(to_hf(config)) == config
  limits = {
    # As their cards say that they are used.
    'lmsys/vicuna-7b-v1.5-16k': 16384,
    'Qwen/Qwen2.5-7B-Instruct with YaRN': 131072,
    'meta-llama/Llama-3.1-8B-Instruct': 131072,
    'microsoft/Phi-3.5-mini-instruct': 131072,
    'google/gemma-3-4b-it': 131072,
    'Qwen/Qwen3-0.6B': 40960,
    'deepseek-ai/DeepSeek-R1-0528-Qwen3-8B': 131072,
  }
  if name in limits:
    assert length_limit(config) == limits[name]
  assert passed_over(raw) is None


@pytest.mark.parametrize(
  'name, key, value, match',
  [
    ('Qwen/Qwen3-Coder-30B-A3B-Instruct', 'use_qk_norm', False, 'use_qk_norm'),
    ('Qwen/Qwen3-Coder-30B-A3B-Instruct', 'qkv_bias', True, 'qkv_bias=True'),
    ('Qwen/Qwen3-Coder-30B-A3B-Instruct', 'shared_expert_intermediate_size',
     32, 'shared_expert_intermediate_size=32'),
    ('HuggingFaceTB/SmolLM2-135M', 'rope_interleaved', True, 'rope_interl'),
    ('Qwen/Qwen2.5-0.5B', 'use_mrope', True, 'use_mrope=True'),
    ('Qwen/Qwen2.5-0.5B', 'dual_chunk_attention_config', {'chunk_size': 4},
     'dual_chunk_attention_config'),
    ('meta-llama/Llama-2-7b-hf', 'quantization_config', {'bits': 4},
     'quantization_config'),
    ('meta-llama/Llama-2-7b-hf', 'alibi', True, 'alibi=True'),
    ('meta-llama/Llama-2-7b-hf', 'logit_scale', 0.5, 'logit_scale=0.5'),
    ('meta-llama/Llama-2-7b-hf', 'use_qk_norm', True, 'use_qk_norm=True'),
    # False is off elsewhere; these would then do something else.
    ('Qwen/Qwen2.5-0.5B', 'is_causal', False, 'is_causal=False'),
    ('Qwen/Qwen2.5-0.5B', 'qkv_bias', False, 'qkv_bias=False'),
    ('allenai/OLMo-2-0425-1B', 'use_qk_norm', False, 'use_qk_norm=False'),
    ('google/gemma-3-1b-it', 'qk_norm', False, 'qk_norm=False'),
    ('google/gemma-2-9b', 'sliding_window_size', 8, 'sliding_window_size=8'),
    ('meta-llama/Llama-2-7b-hf', 'use_rope', False, 'use_rope=False'),
    ('meta-llama/Llama-2-7b-hf', 'scale_attn_weights', False, 'scale_attn'),
    ('mistralai/Mistral-7B-v0.1', 'use_sliding_window', False,
     'use_sliding_window=false beside sliding_window='),
  ],
)  # fmt: skip
def test_keys_that_change_the_result_are_refused(name, key, value, match):
  with pytest.raises(UserError, match=match):
    from_hf(MODELS[name] | {key: value})


@pytest.mark.parametrize('value', (False, None, 0, 0.0, '', [], {}))
def test_unknown_keys_that_are_off_are_named(value):
  raw = MODELS['meta-llama/Llama-2-7b-hf']
  more = raw | {'use_new_trick': value, 'other_trick': False}
  assert from_hf(more) == from_hf(raw)
  assert passed_over(more).endswith('not read: use_new_trick, other_trick')
  assert passed_over(raw) is None


@pytest.mark.parametrize(
  'name, key',
  [
    ('Qwen/Qwen2.5-0.5B', 'is_causal'),
    ('Qwen/Qwen2.5-0.5B', 'qkv_bias'),
    ('Qwen/Qwen3-0.6B', 'qk_layernorm'),
    ('google/gemma-3-1b-it', 'use_qk_norm'),
    ('allenai/OLMo-2-0425-1B', 'qk_norm'),
    ('meta-llama/Llama-2-7b-hf', 'use_rope'),
  ],
)
def test_keys_that_say_what_a_family_does_anyway(name, key):
  raw = MODELS[name]
  assert from_hf(raw | {key: True}) == from_hf(raw)
  assert passed_over(raw | {key: True}) is None


def test_the_docs_list_these_models():
  text = (ROOT / 'docs' / 'models.md').read_text(encoding='utf-8')
  listed = {}
  for family, names in re.findall(r'^\| `(\w+)` \| (.*/.*) \|$', text, re.M):
    for name in names.split(', '):
      listed[name] = family
  wanted = {
    name: raw['model_type'].replace('gemma3_text', 'gemma3')
    for name, raw in MODELS.items()
    if '/' in name and ' with ' not in name
  }
  listed = {n: f.replace('gemma3_text', 'gemma3') for n, f in listed.items()}
  assert listed == wanted
