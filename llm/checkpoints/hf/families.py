"""Which keys a Hugging Face `config.json` may have, family by family.

The tables of `llm.checkpoints.hf.config`: keys that change the result with the
default that the `transformers` library gives them, keys that are supported
with one value only, and keys that no forward pass depends on.
"""

REQUIRED = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
)
_COMMON = {
  'num_key_value_heads': None,
  'head_dim': None,
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': False,
  'bos_token_id': None,
  'eos_token_id': None,
  'pad_token_id': None,
}
_GEMMA = {
  **_COMMON,
  'num_key_value_heads': 4,
  'head_dim': 256,
  'hidden_activation': 'gelu_pytorch_tanh',
  'tie_word_embeddings': True,
  'bos_token_id': 2,
  'eos_token_id': 1,
  'pad_token_id': 0,
  'attention_bias': False,
  'query_pre_attn_scalar': 256,
  'sliding_window': 4096,
  'layer_types': None,
}
_QWEN = {
  **_COMMON,
  'num_key_value_heads': 32,
  'max_position_embeddings': 32768,
  'use_sliding_window': False,
  'sliding_window': 4096,
}
# model_type -> keys that change the result, with transformers' defaults.
FAMILIES = {
  'llama': {
    **_COMMON,
    'max_position_embeddings': 2048,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'attention_bias': False,
    'mlp_bias': False,
  },
  'mistral': {
    **_COMMON,
    'num_key_value_heads': 8,
    'max_position_embeddings': 131072,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'sliding_window': 4096,
  },
  'qwen2': {**_QWEN, 'max_window_layers': 28, 'layer_types': None},
  'qwen3': {
    **_QWEN,
    'head_dim': 128,
    'attention_bias': False,
    'max_window_layers': 28,
    'layer_types': None,
  },
  'gemma2': {
    **_GEMMA,
    'max_position_embeddings': 8192,
    'final_logit_softcapping': 30.0,
    'attn_logit_softcapping': 50.0,
  },
  'gemma3_text': {
    **_GEMMA,
    # Hub configs of the multimodal models leave these two to the library.
    'vocab_size': 262208,
    'num_attention_heads': 8,
    'max_position_embeddings': 131072,
    'sliding_window_pattern': 6,
    'final_logit_softcapping': None,
    'attn_logit_softcapping': None,
  },
  'phi3': {
    **_COMMON,
    'rms_norm_eps': 1e-5,
    'max_position_embeddings': 4096,
    'original_max_position_embeddings': 4096,
    'bos_token_id': 1,
    'eos_token_id': 32000,
    'pad_token_id': 32000,
    'sliding_window': None,
  },
  'olmo2': {
    **_COMMON,
    'rms_norm_eps': 1e-5,
    'max_position_embeddings': 2048,
    'eos_token_id': 50279,
    'pad_token_id': 1,
    'attention_bias': False,
  },
  'mixtral': {
    **_COMMON,
    'num_key_value_heads': 8,
    'rms_norm_eps': 1e-5,
    'max_position_embeddings': 131072,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'sliding_window': None,
    'num_local_experts': 8,
    'num_experts_per_tok': 2,
    'router_aux_loss_coef': 0.001,
  },
  'qwen3_moe': {
    **_QWEN,
    'num_key_value_heads': 4,
    'attention_bias': False,
    'decoder_sparse_step': 1,
    'mlp_only_layers': None,
    'moe_intermediate_size': 768,
    'num_experts': 128,
    'num_experts_per_tok': 8,
    'norm_topk_prob': False,
    'router_aux_loss_coef': 0.001,
  },
}
ARCHITECTURES = {
  'llama': 'LlamaForCausalLM',
  'mistral': 'MistralForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
  'gemma2': 'Gemma2ForCausalLM',
  'gemma3_text': 'Gemma3ForCausalLM',
  'phi3': 'Phi3ForCausalLM',
  'olmo2': 'Olmo2ForCausalLM',
  'mixtral': 'MixtralForCausalLM',
  'qwen3_moe': 'Qwen3MoeForCausalLM',
}
# Keys with one value that all families act by; families that read a key win.
ONLY = {
  'add_cross_attention': (False,),
  'attention_bias': (False, None),
  'clip_qkv': (None,),
  'causal': (True, None),
  'full_attn_mod': (1, None),
  'interpolate_factor': (1, None),
  'is_causal': (True, None),  # false: gte-Qwen2, which embeds texts
  'is_encoder_decoder': (False,),
  'lm_head_bias': (False, None),
  'mlp_bias': (False, None),
  'per_layer_config': (None,),
  'pruned_heads': ({}, None),
  'quantization_config': (None,),
  'sliding_window': (None,),
  'sliding_window_pattern': (None, 2),  # Gemma 2 always alternates
  'rope_interleaved': (False, None),  # SmolLM2
  'scale_attn_weights': (True, None),
  'shared_expert_intermediate_size': (0, None),  # Qwen3-Coder
  'use_bidirectional_attention': (False, None),
  'use_causal_mask': (True, None),
  'use_mrope': (False, None),  # Qwen2.5
  'use_qkv_bias': (False, None),
  'use_rope': (True, None),
  'use_sliding_window': (False, None),
}
_QK_NORM = dict.fromkeys(
  ('qk_layernorm', 'qk_norm', 'use_qk_layernorm', 'use_qk_norm'), (True, None)
)
# Keys that say what a family does anyway; another value is refused.
OWN = {
  'qwen2': {'qkv_bias': (True, None)},
  'qwen3': {'qkv_bias': (False, None), **_QK_NORM},
  'qwen3_moe': {'qkv_bias': (False, None), **_QK_NORM},
  'gemma2': {'sliding_window_size': (4096, None)},  # 9B, beside sliding_window
  'gemma3_text': _QK_NORM,
  'olmo2': _QK_NORM,
}
# Training, serialization, generation and bookkeeping: no part in the forward.
HARMLESS = frozenset(
  """
  architectures attention_dropout attn_implementation auto_map bad_words_ids
  begin_suppress_tokens cache_implementation chunk_size_feed_forward
  cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample
  dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size
  exponential_decay_length_penalty finetuning_task forced_bos_token_id
  forced_eos_token_id gradient_checkpointing id2label initializer_range
  is_decoder label2id layer_types length_penalty max_length max_sequence_length
  max_window_layers min_length model_max_length model_type name_or_path
  no_repeat_ngram_size num_beam_groups num_beams num_labels
  num_return_sequences output_attentions output_hidden_states
  output_router_logits output_scores prefix pretraining_tp problem_type
  remove_invalid_values repetition_penalty resid_pdrop return_dict
  return_dict_in_generate router_jitter_noise sep_token_id suppress_tokens
  task_specific_params temperature tf_legacy_loss tie_encoder_decoder
  tie_last_hidden_states tokenizer_class top_k top_p torch_dtype torchscript
  transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16
  use_cache
  """.split()
) | {
  # Others, and where they were seen.
  'is_llama_config',  # SmolLM2
  'transformers.js_config',  # SmolLM2-Instruct
  'unk_token_id',  # transformers, when it converts a GGUF
  'max_new_tokens',  # models merged with mergekit and axolotl
  'unsloth_tied_embeddings_training',  # Unsloth
  'embedding_size',  # OLMo 2 1B
  'use_flash_attn',  # early Yi
  'flash_attn_2_enabled',  # OpenHermes
  'neftune_noise_alpha',  # models trained with TRL
  'attention_probs_dropout_prob',  # converted checkpoints
  'hidden_dropout_prob',
}
