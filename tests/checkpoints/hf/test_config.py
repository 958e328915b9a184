"""Hugging Face configs: what is read, what is written back, what is refused."""

import dataclasses

import pytest

from llm.checkpoints.hf.config import from_hf, to_hf
from llm.errors import UserError
from llm.models.config import (
  GLOBAL,
  LOCAL,
  ModelConfig,
  RopeConfig,
  length_limit,
)

_SHAPE = dict(
  vocab_size=100,
  hidden_size=32,
  intermediate_size=64,
  num_hidden_layers=4,
  num_attention_heads=4,
)
FAMILIES = {
  'llama': dict(attention_bias=True, mlp_bias=True),
  'mistral': dict(sliding_window=8, num_key_value_heads=2),
  'qwen2': dict(
    use_sliding_window=True,
    sliding_window=8,
    max_window_layers=3,
    num_key_value_heads=2,
  ),
  'qwen3': dict(num_key_value_heads=2, attention_bias=True),
  'gemma2': dict(num_key_value_heads=2, query_pre_attn_scalar=144),
  'gemma3_text': dict(num_key_value_heads=2, sliding_window_pattern=2),
  'phi3': dict(
    partial_rotary_factor=0.75,
    rope_scaling=dict(
      type='su', short_factor=[1.0, 1.1, 1.2], long_factor=[2.0, 3.0, 4.0]
    ),
    max_position_embeddings=32768,
  ),
  'olmo2': {},
  'mixtral': dict(num_key_value_heads=2, num_local_experts=4),
  'qwen3_moe': dict(
    num_experts=4, num_experts_per_tok=2, mlp_only_layers=[1, 2]
  ),
}
ROPES = {
  'linear': dict(factor=2.0),
  'dynamic': dict(factor=2.0),
  'llama3': dict(
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=512,
  ),
  'yarn': dict(
    factor=4.0,
    original_max_position_embeddings=512,
    beta_fast=16,
    truncate=False,
    mscale=0.7,
    mscale_all_dim=0.5,
    attention_factor=1.25,
  ),
  'longrope': dict(
    original_max_position_embeddings=512,
    short_factor=[1.0] * 4,
    long_factor=[2.0] * 4,
  ),
}


def _raw(model_type, **changes):
  return {
    'model_type': model_type,
    **_SHAPE,
    **FAMILIES[model_type],
    **changes,
  }


def _llama(**changes):
  return {'model_type': 'llama', **_SHAPE, **changes}


@pytest.mark.parametrize('model_type', FAMILIES)
def test_round_trip_of_every_family(model_type):
  config = from_hf(_raw(model_type))
  assert config.model_type == model_type
  assert from_hf(to_hf(config)) == config


@pytest.mark.parametrize('kind', ROPES)
def test_round_trip_of_every_rope(kind):
  rope = dict(rope_type=kind, rope_theta=5e5, **ROPES[kind])
  new = from_hf(_llama(rope_parameters=rope))
  old = dict(rope, type=rope['rope_type'])
  del old['rope_type'], old['rope_theta']
  assert new == from_hf(_llama(rope_theta=5e5, rope_scaling=old))
  assert new.rope.type == kind and new.rope.theta == 5e5
  assert from_hf(to_hf(new)) == new


def _scaled(kind, max_length, original=None, **scaling):
  if original:
    scaling['original_max_position_embeddings'] = original
  return from_hf(
    _llama(
      max_position_embeddings=max_length,
      rope_scaling={'rope_type': kind, **scaling},
    )
  )


_BANDS = dict(low_freq_factor=1.0, high_freq_factor=4.0)
_TABLES = dict(short_factor=[1.0] * 4, long_factor=[2.0] * 4)


@pytest.mark.parametrize(
  'config, limit',
  [
    # Qwen's recipe, with Qwen2.5's length and with Qwen3's.
    (_scaled('yarn', 32768, 32768, factor=4.0), 131072),
    (_scaled('yarn', 40960, 32768, factor=4.0), 131072),
    (_scaled('yarn', 131072, 32768, factor=4.0), 131072),
    (_scaled('yarn', 32768, factor=4.0), 131072),
    (_scaled('yarn', 131072, 4096), 131072),  # the factor follows: 32
    (_scaled('linear', 4096, factor=4.0), 16384),  # Vicuna 16k
    (_scaled('linear', 32768, 4096, factor=8.0), 32768),
    (_scaled('linear', 4096, 4096, factor=8.0), 32768),
    (_scaled('llama3', 131072, 8192, factor=8.0, **_BANDS), 131072),
    (_scaled('llama3', 131072, 8192, factor=32.0, **_BANDS), 131072),
    (_scaled('llama3', 8192, 8192, factor=8.0, **_BANDS), 65536),
    (_scaled('longrope', 131072, 4096, **_TABLES), 131072),
    (_scaled('longrope', 4096, 4096, factor=8.0, **_TABLES), 32768),
    (_scaled('dynamic', 4096, factor=2.0), 1 << 30),
    (_scaled('dynamic', 4096, 4096, factor=2.0), 1 << 30),
    (_scaled('yarn', 4096, factor=1e300), 1 << 30),
    (_scaled('default', 4096, factor=1.0), 4096),
    (from_hf(_raw('gemma3_text', max_position_embeddings=131072,
                  rope_scaling=dict(rope_type='linear', factor=8.0))), 131072),
  ],
)  # fmt: skip
def test_lengths_follow_the_scaling(config, limit):
  assert length_limit(config) == limit
  assert from_hf(to_hf(config)) == config


def test_a_multiple_of_the_attention_factor():
  # What YaRN's factor gives is 0.1 ln 4 + 1 = 1.1386.
  config = _scaled('yarn', 131072, 32768, factor=4.0, attn_factor=0.5)
  assert config.rope.attention_factor == pytest.approx(0.5693147)
  for scaling in (
    dict(factor=4.0, attention_factor=1.0),
    dict(factor=4.0, mscale=1.0),
    dict(factor=1.0),
  ):
    with pytest.raises(UserError, match='attn_factor=0.5 beside'):
      _scaled('yarn', 4096, attn_factor=0.5, **scaling)


def test_dynamic_rope_scales_from_one_length():
  with pytest.raises(UserError, match='embeddings=2048 and max_position_embed'):
    _scaled('dynamic', 4096, 2048, factor=2.0)


def test_llama_fields():
  assert from_hf(_llama(num_key_value_heads=2, head_dim=16)) == ModelConfig(
    vocab_size=100,
    embed_dim=32,
    hidden_dim=64,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_length=2048,
    bos_id=1,
    eos_ids=(2,),
  )


def test_gemma_fields():
  config = from_hf(_raw('gemma2'))
  assert config.layer_types == (LOCAL, GLOBAL, LOCAL, GLOBAL)
  assert (config.window, config.head_dim) == (4096, 256)
  assert (config.attn_soft_cap, config.final_soft_cap) == (50.0, 30.0)
  assert config.query_scale == pytest.approx(1 / 12)
  assert config.embed_scale == pytest.approx(32**0.5)
  assert config.activation == 'gelu_tanh' and config.tie_embeddings
  assert config.pre_norm and config.post_norm and config.norm_offset
  assert config.qk_norm is None


def test_gemma3_reads_both_rope_bases():
  old = from_hf(
    _raw(
      'gemma3_text',
      rope_theta=1e6,
      rope_local_base_freq=2e4,
      rope_scaling=dict(rope_type='linear', factor=8.0),
    )
  )
  new = from_hf(
    _raw(
      'gemma3_text',
      rope_parameters=dict(
        full_attention=dict(rope_type='linear', factor=8.0, rope_theta=1e6),
        sliding_attention=dict(rope_type='default', rope_theta=2e4),
      ),
    )
  )
  assert old == new
  assert new.rope == RopeConfig('linear', theta=1e6, factor=8.0)
  assert new.rope_local == RopeConfig(theta=2e4)
  assert new.qk_norm == 'head'
  scaled = dataclasses.replace(
    new, rope_local=RopeConfig('linear', theta=2e4, factor=2.0)
  )
  assert from_hf(to_hf(scaled)) == scaled


def test_gemma3_multimodal_takes_the_text_part():
  config = from_hf(
    dict(
      model_type='gemma3',
      eos_token_id=[1, 106],
      vision_config=dict(hidden_size=5),
      mm_tokens_per_image=256,
      text_config=dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=7,
        sliding_window=8,
        rope_scaling=dict(rope_type='linear', factor=8.0),
      ),
    )
  )
  assert config.model_type == 'gemma3_text'
  assert config.eos_ids == (1, 106)
  assert (config.vocab_size, config.num_heads, config.num_kv_heads) == (
    262208,
    8,
    4,
  )
  assert config.layer_types == (LOCAL,) * 5 + (GLOBAL, LOCAL)
  assert config.rope.factor == 8.0 and config.rope.theta == 1e6


def test_phi3_original_length_outside_wins_and_gives_the_factor():
  config = from_hf(_raw('phi3', original_max_position_embeddings=4096))
  assert config.rope.type == 'longrope'
  assert config.rope.original_max_length == 4096
  assert config.rope.factor == 8.0
  assert config.rope.partial_rotary_factor == 0.75
  scaling = to_hf(config)['rope_scaling']
  assert set(scaling) == {'type', 'short_factor', 'long_factor'}


def test_windows():
  def kinds(**raw):
    return from_hf(raw).layer_types

  qwen = _raw('qwen2')
  assert kinds(**qwen) == (GLOBAL, GLOBAL, GLOBAL, LOCAL)
  assert kinds(**{**qwen, 'use_sliding_window': False}) == (GLOBAL,) * 4
  given = ['sliding_attention', 'full_attention'] * 2
  assert kinds(**{**qwen, 'layer_types': given}) == (LOCAL, GLOBAL) * 2
  assert kinds(**_raw('mistral')) == (LOCAL,) * 4
  assert kinds(**_raw('mistral', sliding_window=None)) == (GLOBAL,) * 4
  moe = _raw('qwen3_moe', use_sliding_window=True, sliding_window=8)
  assert kinds(**moe) == (LOCAL,) * 4


def test_a_window_that_no_row_outgrows_is_none():
  phi = _raw('phi3', sliding_window=32768)
  config = from_hf(phi)
  assert config.window is None and config.layer_types == (GLOBAL,) * 4
  assert from_hf({**phi, 'sliding_window': 32767}).window == 32767
  # Rows of dynamic rope have no bound, and Gemma 3's local layers turn by
  # another base whatever the window.
  dynamic = _raw(
    'mistral',
    max_position_embeddings=8,
    rope_scaling=dict(type='dynamic', factor=2.0),
  )
  assert from_hf(dynamic).window == 8
  gemma = from_hf(_raw('gemma3_text', max_position_embeddings=8))
  assert gemma.window == 4096 and LOCAL in gemma.layer_types


def test_experts():
  config = from_hf(_raw('qwen3_moe', decoder_sparse_step=2))
  assert config.moe_layers == (False, False, False, True)
  assert (config.num_experts, config.experts_per_token) == (4, 2)
  assert not config.norm_topk_prob
  assert from_hf(to_hf(config)) == config
  renamed = _raw('qwen3_moe')
  renamed['num_local_experts'] = renamed.pop('num_experts')
  assert from_hf(renamed).num_experts == 4
  mixtral = from_hf(_raw('mixtral'))
  assert mixtral.moe_layers == (True,) * 4
  assert mixtral.expert_dim == mixtral.hidden_dim == 64
  assert mixtral.norm_topk_prob and mixtral.rope.theta == 1e6


def test_biases():
  qwen = from_hf(_raw('qwen2'))
  assert qwen.qkv_bias and not qwen.attn_out_bias
  qwen3 = from_hf(_raw('qwen3'))
  assert qwen3.qkv_bias and qwen3.attn_out_bias and qwen3.head_dim == 128


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(model_type='gpt2'), "model_type='gpt2' is not supported"),
    (dict(model_type=None), 'model_type=None is not supported'),
    (dict(quantization_config={'bits': 4}), 'quantization_config='),
    (dict(hidden_act='quick_gelu'), "hidden_act='quick_gelu'"),
    (dict(logits_scaling=8), 'logits_scaling=8 is not known'),
    (dict(partial_rotary_factor=0.5), 'partial_rotary_factor=0.5'),
    (dict(rope_scaling=dict(type='ntk')), "rope_type='ntk'"),
    (dict(rope_scaling=dict(type='linear')), 'without factor'),
    (
      dict(rope_scaling=dict(type='linear', factor=2.0, beta_fast=3)),
      'beta_fast=3 is not known',
    ),
    (dict(rope_scaling=dict(type='linear', factor='2')), "factor='2'"),
    (dict(rope_scaling=dict(type='linear', factor=0)), 'above 0'),
    (
      dict(
        rope_scaling=dict(type='longrope', short_factor=[1], long_factor=[1])
      ),
      'short_factor must be a list of 4 numbers',
    ),
    (dict(num_hidden_layers=0), 'num_hidden_layers=0'),
    (dict(hidden_size='32'), "hidden_size='32'"),
    (
      dict(num_key_value_heads=3),
      'num_attention_heads=4 is not a multiple of num_key_value_heads=3',
    ),
    (dict(sliding_window=8), 'sliding_window=8 is not supported'),
    (dict(layer_types=['sliding_attention'] * 4), 'layer_types is not read'),
    (dict(layer_types=['chunked_attention'] * 4), 'chunked_attention'),
  ],
)
def test_refusals_name_the_key(changes, message):
  with pytest.raises(UserError, match='config.json') as error:
    from_hf(_llama(**changes))
  assert message in str(error.value)


@pytest.mark.parametrize(
  'model_type, changes, message',
  [
    ('gemma2', dict(use_bidirectional_attention=True), 'bidirectional'),
    ('qwen2', dict(attention_bias=True), 'attention_bias=True'),
    ('phi3', dict(rope_scaling=dict(type='linear')), "rope_type='linear'"),
    (
      'qwen2',
      dict(use_sliding_window=False, layer_types=['sliding_attention'] * 4),
      'sliding layers without a window',
    ),
    ('gemma3_text', dict(rope_parameters={'all': {}}), "['all']"),
  ],
)
def test_refusals_of_families(model_type, changes, message):
  with pytest.raises(UserError) as error:
    from_hf(_raw(model_type, **changes))
  assert message in str(error.value)


def test_missing_keys_are_named():
  raw = _llama()
  del raw['hidden_size'], raw['vocab_size']
  with pytest.raises(UserError, match='missing vocab_size, hidden_size'):
    from_hf(raw)


def test_harmless_keys_are_taken():
  config = from_hf(
    _llama(
      _name_or_path='x',
      attention_dropout=0.1,
      id2label={'0': 'a'},
      layer_types=['full_attention'] * 4,
      pretraining_tp=2,
      quantization_config=None,
      torch_dtype='bfloat16',
      transformers_version='4.31.0',
      use_cache=False,
    )
  )
  assert config == from_hf(_llama())


def test_export_refuses_what_a_family_cannot_say():
  config = from_hf(_llama())
  with pytest.raises(UserError, match="'llama' cannot express qk_norm='head'"):
    to_hf(dataclasses.replace(config, qk_norm='head'))
  with pytest.raises(UserError, match="model_type='gpt2' cannot be exported"):
    to_hf(dataclasses.replace(config, model_type='gpt2'))
