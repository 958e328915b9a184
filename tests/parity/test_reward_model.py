"""Exported reward models beside transformers' sequence classifiers."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers

from llm.checkpoints.hf.families import ARCHITECTURES
from llm.checkpoints.hf.save import save_hf
from llm.models.config import ModelConfig
from llm.models.transformer import init_params
from llm.rewards.model import load_reward_model

PAD, EOS = 60, 61


def _config(model_type):
  config = ModelConfig(
    vocab_size=64,
    embed_dim=32,
    hidden_dim=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_length=64,
    bos_id=1,
    eos_ids=(EOS,),
    pad_id=PAD,
  )
  return dataclasses.replace(config, model_type=model_type)


def _export(folder, config):
  """A random reward model on disk."""
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(1.0 if x.ndim == 1 else 0.0, 0.2, x.shape), shapes
  )
  params.pop('lm_head', None)
  head = rng.normal(size=(1, config.embed_dim))
  save_hf(
    str(folder),
    config,
    params | {'reward_head': {'kernel': head}},
    dtype=np.float32,
    reward_head=True,
  )


ROWS = [[1, 5, 9, EOS], [1, 7, EOS], [1, *range(2, 40), EOS], [3]]


@pytest.mark.parametrize('model_type', ['llama', 'qwen2'])
@pytest.mark.parametrize('tied', [True, False])
def test_scores_are_those_of_transformers(tmp_path, model_type, tied):
  config = _config(model_type)
  config = dataclasses.replace(
    config, tie_embeddings=tied, qkv_bias=model_type == 'qwen2'
  )
  _export(tmp_path, config)
  raw = json.loads((tmp_path / 'config.json').read_text())
  name = ARCHITECTURES[model_type].replace('CausalLM', 'SequenceClassification')
  assert raw['architectures'] == [name]
  model, loading = getattr(transformers, name).from_pretrained(
    tmp_path, dtype=torch.float32, output_loading_info=True
  )
  assert not loading['missing_keys'] and not loading['unexpected_keys']
  assert model.config.num_labels == 1
  width = max(map(len, ROWS))
  padded = [row + [PAD] * (width - len(row)) for row in ROWS]
  with torch.no_grad():
    tokens = torch.tensor(padded)
    theirs = model(tokens, attention_mask=(tokens != PAD).long()).logits[:, 0]
  ours = load_reward_model(str(tmp_path))
  assert ours.tokenizer is None
  np.testing.assert_allclose(ours.rate(ROWS), theirs.numpy(), atol=1e-4)
  np.testing.assert_allclose(
    ours.rate(ROWS, batch_size=3), theirs.numpy(), atol=1e-4
  )


def test_a_model_whose_padding_is_its_end_takes_one_text_at_a_time(tmp_path):
  """Else transformers would score the token before the end."""
  config = dataclasses.replace(_config('llama'), pad_id=EOS)
  _export(tmp_path, config)
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path, dtype=torch.float32
  )
  ours = load_reward_model(str(tmp_path)).rate(ROWS)
  with torch.no_grad():
    theirs = [float(model(torch.tensor([row])).logits) for row in ROWS]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    with pytest.raises(ValueError, match='padding token'):
      model(torch.tensor([[1, EOS], [2, EOS]]))


def test_a_reward_model_of_transformers_is_read(tmp_path):
  torch.manual_seed(0)
  model = transformers.Qwen3ForSequenceClassification(
    transformers.Qwen3Config(
      vocab_size=64,
      hidden_size=32,
      intermediate_size=48,
      num_hidden_layers=1,
      num_attention_heads=4,
      num_key_value_heads=2,
      head_dim=8,
      num_labels=1,
      initializer_range=0.3,
      pad_token_id=PAD,
    )
  )
  model.save_pretrained(tmp_path)
  ours = load_reward_model(str(tmp_path))
  with torch.no_grad():
    theirs = [float(model(torch.tensor([row])).logits) for row in ROWS]
  np.testing.assert_allclose(ours.rate(ROWS), theirs, atol=1e-4)
