"""Configs of published models: all keys of their files, small dimensions.

Sizes that do not change how a config is read are those of a toy; the rest is as
the repositories have it.
"""

_SIZE = dict(
  vocab_size=512,
  hidden_size=64,
  intermediate_size=128,
  num_hidden_layers=4,
  num_attention_heads=4,
)
_RUN = dict(
  attention_dropout=0.0,
  initializer_range=0.02,
  torch_dtype='bfloat16',
  transformers_version='4.43.1',
  use_cache=True,
)


def _llama(**keys):
  return {
    **_SIZE,
    **_RUN,
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'hidden_act': 'silu',
    'bos_token_id': 1,
    'eos_token_id': 2,
    'num_key_value_heads': 4,
    'pretraining_tp': 1,
    'rms_norm_eps': 1e-05,
    'rope_scaling': None,
    'tie_word_embeddings': False,
    **keys,
  }


def _llama3(factor=None, **keys):
  scaling = factor and {
    'factor': factor,
    'high_freq_factor': 4.0,
    'low_freq_factor': 1.0,
    'original_max_position_embeddings': 8192,
    'rope_type': 'llama3',
  }
  return _llama(
    **{
      'attention_bias': False,
      'bos_token_id': 128,
      'eos_token_id': 129,
      'max_position_embeddings': 131072 if factor else 8192,
      'mlp_bias': False,
      'num_key_value_heads': 2,
      'rope_scaling': scaling,
      'rope_theta': 500000.0,
      **keys,
    }
  )


def _mistral(**keys):
  return {
    **_SIZE,
    **_RUN,
    'architectures': ['MistralForCausalLM'],
    'model_type': 'mistral',
    'bos_token_id': 1,
    'eos_token_id': 2,
    'hidden_act': 'silu',
    'max_position_embeddings': 32768,
    'num_key_value_heads': 2,
    'rms_norm_eps': 1e-05,
    'rope_theta': 1000000.0,
    'sliding_window': None,
    'tie_word_embeddings': False,
    **keys,
  }


def _qwen2(**keys):
  return {
    **_SIZE,
    **_RUN,
    'architectures': ['Qwen2ForCausalLM'],
    'model_type': 'qwen2',
    'bos_token_id': 151,
    'eos_token_id': 152,
    'hidden_act': 'silu',
    'max_position_embeddings': 32768,
    'max_window_layers': 21,
    'num_key_value_heads': 2,
    'rms_norm_eps': 1e-06,
    'rope_theta': 1000000.0,
    'sliding_window': 32768,
    'tie_word_embeddings': False,
    'use_sliding_window': False,
    **keys,
  }


def _qwen3(**keys):
  return _qwen2(
    **{
      'architectures': ['Qwen3ForCausalLM'],
      'model_type': 'qwen3',
      'attention_bias': False,
      'head_dim': 128,
      'max_position_embeddings': 40960,
      'max_window_layers': 28,
      'rope_scaling': None,
      'sliding_window': None,
      **keys,
    }
  )


def _qwen3_moe(**keys):
  return _qwen3(
    **{
      'architectures': ['Qwen3MoeForCausalLM'],
      'model_type': 'qwen3_moe',
      'decoder_sparse_step': 1,
      'mlp_only_layers': [],
      'moe_intermediate_size': 32,
      'norm_topk_prob': True,
      'num_experts': 8,
      'num_experts_per_tok': 2,
      'output_router_logits': False,
      'router_aux_loss_coef': 0.001,
      **keys,
    }
  )


def _gemma2(**keys):
  return {
    **_SIZE,
    **_RUN,
    'architectures': ['Gemma2ForCausalLM'],
    'model_type': 'gemma2',
    'attention_bias': False,
    'attn_logit_softcapping': 50.0,
    'bos_token_id': 2,
    'cache_implementation': 'hybrid',
    'eos_token_id': 1,
    'final_logit_softcapping': 30.0,
    'head_dim': 256,
    'hidden_act': 'gelu_pytorch_tanh',
    'hidden_activation': 'gelu_pytorch_tanh',
    'max_position_embeddings': 8192,
    'num_key_value_heads': 2,
    'pad_token_id': 0,
    'query_pre_attn_scalar': 256,
    'rms_norm_eps': 1e-06,
    'rope_theta': 10000.0,
    'sliding_window': 4096,
    **keys,
  }


def _gemma3(**keys):
  return {
    **_SIZE,
    **_RUN,
    'architectures': ['Gemma3ForCausalLM'],
    'model_type': 'gemma3_text',
    'attention_bias': False,
    'attn_logit_softcapping': None,
    'bos_token_id': 2,
    'cache_implementation': 'hybrid',
    'eos_token_id': [1, 106],
    'final_logit_softcapping': None,
    'head_dim': 256,
    'hidden_activation': 'gelu_pytorch_tanh',
    'max_position_embeddings': 32768,
    'num_key_value_heads': 1,
    'pad_token_id': 0,
    'query_pre_attn_scalar': 256,
    'rms_norm_eps': 1e-06,
    'rope_local_base_freq': 10000,
    'rope_scaling': None,
    'rope_theta': 1000000,
    'sliding_window': 512,
    'sliding_window_pattern': 6,
    **keys,
  }


def _gemma3_vision(scaling=True, **keys):
  text = {
    **_SIZE,
    'model_type': 'gemma3_text',
    'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
    'sliding_window': 1024,
    **keys,
  }
  return {
    'architectures': ['Gemma3ForConditionalGeneration'],
    'boi_token_index': 255,
    'eoi_token_index': 256,
    'eos_token_id': [1, 106],
    'image_token_index': 262,
    'initializer_range': 0.02,
    'mm_tokens_per_image': 256,
    'model_type': 'gemma3',
    'text_config': text,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.50.0.dev0',
    'vision_config': {'hidden_size': 1152, 'model_type': 'siglip_vision_model'},
  }


def _phi3(**keys):
  return {
    **_SIZE,
    **_RUN,
    'architectures': ['Phi3ForCausalLM'],
    'model_type': 'phi3',
    'auto_map': {
      'AutoConfig': 'configuration_phi3.Phi3Config',
      'AutoModelForCausalLM': 'modeling_phi3.Phi3ForCausalLM',
    },
    'bos_token_id': 1,
    'embd_pdrop': 0.0,
    'eos_token_id': 320,
    'hidden_act': 'silu',
    'max_position_embeddings': 4096,
    'num_key_value_heads': 4,
    'original_max_position_embeddings': 4096,
    'pad_token_id': 320,
    'resid_pdrop': 0.0,
    'rms_norm_eps': 1e-05,
    'rope_scaling': None,
    'rope_theta': 10000.0,
    'sliding_window': 2047,
    'tie_word_embeddings': False,
    **keys,
  }


def _longrope(half: int):
  return {
    'long_factor': [1.0 + n for n in range(half)],
    'short_factor': [1.0] * half,
    'type': 'longrope',
  }


def _olmo2(**keys):
  return {
    **_SIZE,
    **_RUN,
    'architectures': ['Olmo2ForCausalLM'],
    'model_type': 'olmo2',
    'attention_bias': False,
    'eos_token_id': 257,
    'hidden_act': 'silu',
    'max_position_embeddings': 4096,
    'num_key_value_heads': 4,
    'pad_token_id': 277,
    'rms_norm_eps': 1e-06,
    'rope_scaling': None,
    'rope_theta': 500000,
    'tie_word_embeddings': False,
    **keys,
  }


def _mixtral(**keys):
  return {
    **_SIZE,
    **_RUN,
    'architectures': ['MixtralForCausalLM'],
    'model_type': 'mixtral',
    'bos_token_id': 1,
    'eos_token_id': 2,
    'hidden_act': 'silu',
    'max_position_embeddings': 32768,
    'num_experts_per_tok': 2,
    'num_key_value_heads': 2,
    'num_local_experts': 8,
    'output_router_logits': False,
    'rms_norm_eps': 1e-05,
    'rope_theta': 1000000.0,
    'router_aux_loss_coef': 0.02,
    'sliding_window': None,
    'tie_word_embeddings': False,
    **keys,
  }


_SMOL = dict(
  attention_bias=False,
  bos_token_id=0,
  eos_token_id=0,
  is_llama_config=True,
  max_position_embeddings=8192,
  mlp_bias=False,
  num_key_value_heads=2,
  rope_interleaved=False,
  rope_theta=100000,
  tie_word_embeddings=True,
)
_SMOL_CHAT = dict(
  _SMOL,
  bos_token_id=1,
  eos_token_id=2,
  pad_token_id=2,
  **{
    'transformers.js_config': {
      'kv_cache_dtype': {'fp16': 'float16', 'q4f16': 'float16'}
    }
  },
)
_DISTILL = dict(
  bos_token_id=151,
  eos_token_id=151,
  max_position_embeddings=131072,
  rope_theta=10000,
  sliding_window=4096,
  use_mrope=False,
)
# Repository -> its config.json.
MODELS = {
  'HuggingFaceTB/SmolLM-135M': _llama(
    attention_bias=False, bos_token_id=0, eos_token_id=0, rope_theta=10000.0,
    max_position_embeddings=2048, num_key_value_heads=2, mlp_bias=False,
    tie_word_embeddings=True),
  'HuggingFaceTB/SmolLM2-135M': _llama(**_SMOL),
  'HuggingFaceTB/SmolLM2-360M-Instruct': _llama(**_SMOL_CHAT),
  'HuggingFaceTB/SmolLM2-1.7B-Instruct': _llama(
    **_SMOL_CHAT | {'rope_theta': 130000, 'num_key_value_heads': 4}),
  'TinyLlama/TinyLlama-1.1B-Chat-v1.0': _llama(
    attention_bias=False, max_position_embeddings=2048, rope_theta=10000.0,
    num_key_value_heads=2),
  'meta-llama/Llama-2-7b-hf': _llama(
    max_position_embeddings=4096, _name_or_path='meta-llama/Llama-2-7b-hf'),
  'meta-llama/Llama-2-70b-chat-hf': _llama(
    max_position_embeddings=4096, num_key_value_heads=2),
  'meta-llama/Meta-Llama-3-8B': _llama3(),
  'meta-llama/Llama-3.1-8B-Instruct': _llama3(
    8.0, eos_token_id=[129, 136, 137]),
  'meta-llama/Llama-3.2-1B-Instruct': _llama3(
    32.0, eos_token_id=[129, 136, 137], head_dim=64, tie_word_embeddings=True),
  'meta-llama/Llama-3.2-3B': _llama3(
    32.0, head_dim=128, tie_word_embeddings=True),
  'meta-llama/Llama-3.3-70B-Instruct': _llama3(
    8.0, eos_token_id=[129, 136, 137], head_dim=128),
  'codellama/CodeLlama-7b-Instruct-hf': _llama(
    max_position_embeddings=16384, rope_theta=1000000),
  'lmsys/vicuna-7b-v1.5': _llama(max_position_embeddings=4096, pad_token_id=0),
  'lmsys/vicuna-7b-v1.5-16k': _llama(
    max_position_embeddings=4096, max_sequence_length=16384, pad_token_id=0,
    rope_scaling={'factor': 4.0, 'type': 'linear'}),
  '01-ai/Yi-1.5-6B-Chat': _llama(
    attention_bias=False, eos_token_id=2, max_position_embeddings=4096,
    num_key_value_heads=2, pad_token_id=0, rope_theta=5000000.0),
  'deepseek-ai/deepseek-llm-7b-chat': _llama(
    attention_bias=False, bos_token_id=100, eos_token_id=101,
    max_position_embeddings=4096, rms_norm_eps=1e-06, rope_theta=10000.0),
  'deepseek-ai/deepseek-coder-1.3b-instruct': _llama(
    bos_token_id=120, eos_token_id=121, max_position_embeddings=16384,
    rms_norm_eps=1e-06, rope_scaling={'factor': 4.0, 'type': 'linear'},
    rope_theta=100000),
  'deepseek-ai/DeepSeek-R1-Distill-Llama-8B': _llama3(8.0),
  'NousResearch/Hermes-3-Llama-3.1-8B': _llama3(8.0, eos_token_id=139),
  'allenai/Llama-3.1-Tulu-3-8B': _llama3(8.0, pad_token_id=256),
  'nvidia/Llama-3.1-Nemotron-70B-Instruct-HF': _llama3(
    8.0, eos_token_id=[129, 136, 137]),
  'tiiuae/Falcon3-1B-Instruct': _llama(
    attention_bias=False, bos_token_id=11, eos_token_id=11, head_dim=256,
    max_position_embeddings=8192, mlp_bias=False, num_key_value_heads=2,
    rms_norm_eps=1e-06, rope_theta=1000042),
  'mistralai/Mistral-7B-v0.1': _mistral(
    rope_theta=10000.0, sliding_window=4096),
  'mistralai/Mistral-7B-Instruct-v0.2': _mistral(),
  'mistralai/Mistral-7B-Instruct-v0.3': _mistral(),
  'mistralai/Mistral-Nemo-Instruct-2407': _mistral(
    head_dim=128, max_position_embeddings=131072),
  'mistralai/Ministral-8B-Instruct-2410': _mistral(
    head_dim=128, rope_theta=100000000.0, sliding_window=32768),
  'mistralai/Mistral-Small-24B-Instruct-2501': _mistral(
    head_dim=128, rope_theta=100000000.0),
  'HuggingFaceH4/zephyr-7b-beta': _mistral(
    pad_token_id=2, rope_theta=10000.0, sliding_window=4096,
    _name_or_path='data/zephyr-7b-dpo'),
  'teknium/OpenHermes-2.5-Mistral-7B': _mistral(
    eos_token_id=320, rope_theta=10000.0, sliding_window=4096),
  'mistralai/Mixtral-8x7B-Instruct-v0.1': _mixtral(),
  'mistralai/Mixtral-8x22B-Instruct-v0.1': _mixtral(
    max_position_embeddings=65536, router_aux_loss_coef=0.001,
    router_jitter_noise=0.0),
  'Qwen/Qwen1.5-0.5B-Chat': _qwen2(tie_word_embeddings=True),
  'Qwen/Qwen2-0.5B-Instruct': _qwen2(
    max_window_layers=24, tie_word_embeddings=True),
  'Qwen/Qwen2.5-0.5B': _qwen2(
    eos_token_id=151, max_window_layers=24, tie_word_embeddings=True,
    use_mrope=False),
  'Qwen/Qwen2.5-1.5B-Instruct': _qwen2(tie_word_embeddings=True),
  'Qwen/Qwen2.5-7B-Instruct': _qwen2(
    max_window_layers=28, sliding_window=131072),
  'Qwen/Qwen2.5-7B-Instruct with YaRN': _qwen2(
    max_window_layers=28, sliding_window=131072,
    rope_scaling={'factor': 4.0, 'original_max_position_embeddings': 32768,
                  'type': 'yarn'}),
  'Qwen/Qwen2.5-Coder-7B': _qwen2(
    eos_token_id=151, max_window_layers=28, sliding_window=131072),
  'Qwen/Qwen2.5-Math-1.5B': _qwen2(
    eos_token_id=151, max_position_embeddings=4096, rope_theta=10000,
    sliding_window=4096, tie_word_embeddings=True, use_mrope=False),
  'Qwen/QwQ-32B': _qwen2(max_window_layers=64, sliding_window=32768),
  'deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B': _qwen2(**_DISTILL),
  'deepseek-ai/DeepSeek-R1-Distill-Qwen-7B': _qwen2(
    **_DISTILL | {'max_window_layers': 28}),
  'Qwen/Qwen3-0.6B': _qwen3(tie_word_embeddings=True),
  'Qwen/Qwen3-8B': _qwen3(max_window_layers=36),
  'Qwen/Qwen3-4B-Instruct-2507': _qwen3(
    max_position_embeddings=262144, rope_theta=5000000),
  'deepseek-ai/DeepSeek-R1-0528-Qwen3-8B': _qwen3(
    max_position_embeddings=131072, max_window_layers=36, rope_theta=1000000,
    rope_scaling={
      'attn_factor': 0.8782488562869419, 'factor': 4.0,
      'original_max_position_embeddings': 32768, 'rope_type': 'yarn'}),
  'Qwen/Qwen3-30B-A3B': _qwen3_moe(max_window_layers=48),
  'Qwen/Qwen3-30B-A3B-Thinking-2507': _qwen3_moe(
    max_position_embeddings=262144, max_window_layers=48, rope_theta=10000000),
  'Qwen/Qwen3-Coder-30B-A3B-Instruct': _qwen3_moe(
    max_position_embeddings=262144, qkv_bias=False, rope_theta=10000000,
    shared_expert_intermediate_size=0, use_qk_norm=True),
  'google/gemma-2-2b-it': _gemma2(num_key_value_heads=2),
  'google/gemma-2-9b': _gemma2(sliding_window_size=4096),
  'google/gemma-2-27b-it': _gemma2(
    _attn_implementation='eager', head_dim=128, query_pre_attn_scalar=144),
  'google/gemma-3-270m-it': _gemma3(
    _sliding_window_pattern=6, eos_token_id=1,
    use_bidirectional_attention=False,
    layer_types=['sliding_attention'] * 3 + ['full_attention']),
  'google/gemma-3-1b-it': _gemma3(),
  'google/gemma-3-4b-it': _gemma3_vision(),
  'google/gemma-3-27b-it': _gemma3_vision(
    head_dim=128, num_key_value_heads=2, query_pre_attn_scalar=168),
  'microsoft/Phi-3-mini-4k-instruct': _phi3(attention_bias=False),
  'microsoft/Phi-3.5-mini-instruct': _phi3(
    attention_bias=False, max_position_embeddings=131072,
    rope_scaling=_longrope(8), sliding_window=262144),
  'microsoft/phi-4': _phi3(
    attention_bias=False, auto_map=None, max_position_embeddings=16384,
    original_max_position_embeddings=16384, num_key_value_heads=2,
    rope_theta=250000, sliding_window=None),
  'microsoft/Phi-4-mini-instruct': _phi3(
    attention_bias=False, full_attn_mod=1, interpolate_factor=1,
    lm_head_bias=False, max_position_embeddings=131072, mlp_bias=False,
    num_key_value_heads=2, partial_rotary_factor=0.75,
    rope_scaling=_longrope(6), sliding_window=262144,
    tie_word_embeddings=True),
  'allenai/OLMo-2-0425-1B': _olmo2(),
  'allenai/OLMo-2-1124-7B-Instruct': _olmo2(
    bos_token_id=257, eos_token_id=257),
  'a GGUF that transformers converted': _llama(
    max_position_embeddings=2048, rope_theta=10000.0, unk_token_id=0,
    _model_name_or_path='x'),
}  # fmt: skip
