"""Rotary tables against `ROPE_INIT_FUNCTIONS`, bit for bit where static."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import (
  LlamaRotaryEmbedding,
  apply_rotary_pos_emb,
)

import llm
from llm.checkpoints.hf.config import from_hf
from llm.decode.generate import generate
from llm.decode.sampling_params import SamplingParams
from llm.models.config import length_limit
from llm.models.rope import apply_rope, inverse_frequencies

_LLAMA3 = dict(
  rope_type='llama3',
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=512,
)
_YARN = dict(rope_type='yarn', factor=8.0, original_max_position_embeddings=512)
ROPES = [
  dict(rope_type='default'),
  dict(rope_type='linear', factor=3.0),
  dict(rope_type='dynamic', factor=3.0),
  _LLAMA3,
  _YARN,
  dict(_YARN, truncate=False, beta_fast=20.0, beta_slow=2.0),
  dict(_YARN, mscale=0.707, mscale_all_dim=0.5),
  dict(_YARN, attention_factor=1.3),
  dict(
    rope_type='longrope',
    original_max_position_embeddings=512,
    short_factor=np.linspace(1, 2, 32).tolist(),
    long_factor=np.linspace(1, 30, 32).tolist(),
  ),
]


def _pair(rope, theta):
  """(their config, our RopeConfig) of one head of 64."""
  config = LlamaConfig(
    hidden_size=128,
    num_attention_heads=2,
    num_hidden_layers=1,
    max_position_embeddings=4096,
    rope_parameters={**rope, 'rope_theta': theta},
  )
  return config, from_hf(config.to_dict()).rope


@pytest.mark.parametrize('theta', [1e4, 5e5])
@pytest.mark.parametrize('length', [16, 512, 513, 5000])
@pytest.mark.parametrize('rope', ROPES, ids=lambda rope: rope['rope_type'])
def test_tables(rope, length, theta):
  config, ours = _pair(rope, theta)
  if rope['rope_type'] == 'default':
    expected = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
  else:
    init = ROPE_INIT_FUNCTIONS[rope['rope_type']]
    expected = init(config, seq_len=torch.tensor(length))
  inv_freq, factor = inverse_frequencies(ours, 64, jnp.array(length))
  # The dynamic base is a float32 power in both libraries, in another order.
  rtol = 2e-7 if rope['rope_type'] == 'dynamic' else 0
  np.testing.assert_allclose(inv_freq, expected[0].numpy(), rtol=rtol)
  assert factor == expected[1]


def test_generation_beyond_the_original_length(tmp_path):
  """Qwen's recipe: YaRN beside the length that the model was trained with."""
  torch.manual_seed(0)
  yarn = dict(rope_type='yarn', rope_theta=1e4, factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip
  config = Qwen2Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    rope_parameters=yarn, initializer_range=0.4, bos_token_id=None,
    eos_token_id=None,
  )  # fmt: skip
  theirs = Qwen2ForCausalLM(config).eval()
  theirs.save_pretrained(tmp_path)
  ids = np.random.default_rng(0).integers(0, 64, 100).tolist()
  expected = theirs.generate(
    torch.tensor([ids]), do_sample=False, max_new_tokens=8
  )[0, 100:].tolist()
  model, params, _ = llm.load(str(tmp_path))
  assert length_limit(model.config) == 128
  greedy = SamplingParams(temperature=0.0, max_new_tokens=8)
  [ours] = generate(model, params, [ids], [greedy], max_length=128)
  assert ours.token_ids == expected


@pytest.mark.parametrize('rope', [_LLAMA3, _YARN], ids=['llama3', 'yarn'])
def test_rotation_at_long_positions(rope):
  config, ours = _pair(rope, 5e5)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 6, 2, 64)).astype(np.float32)  # [B, T, heads, H]
  positions = np.array([[0, 1, 500, 4095, 32_000, 131_071]])
  theirs = torch.tensor(x).transpose(1, 2)
  cos, sin = LlamaRotaryEmbedding(config)(theirs, torch.tensor(positions))
  expected, _ = apply_rotary_pos_emb(theirs, theirs, cos, sin)
  inv_freq, factor = inverse_frequencies(ours, 64)
  got = apply_rope(jnp.array(x), jnp.array(positions), inv_freq, factor)
  np.testing.assert_allclose(
    got, expected.transpose(1, 2).numpy(), rtol=0, atol=2e-6
  )
