"""Small random models that the tests of several rooms share."""

import jax
import numpy as np

from llm.models.config import ModelConfig, RopeConfig
from llm.models.transformer import Transformer, init_params

KINDS = {
  'dense': {},
  'local_global': {
    'layer_types': ('local', 'global'),
    'window': 5,
    'rope_local': RopeConfig(theta=100.0),
  },
  'all_local': {'layer_types': ('local', 'local'), 'window': 4},
  'experts': {'num_experts': 4, 'experts_per_token': 2, 'expert_dim': 24},
}


def config(kind: str = 'dense', **changes) -> ModelConfig:
  fields = {
    'vocab_size': 50,
    'embed_dim': 32,
    'hidden_dim': 48,
    'num_layers': 2,
    'num_heads': 4,
    'num_kv_heads': 2,
    'head_dim': 8,
    'max_length': 256,
  }
  return ModelConfig(**{**fields, **KINDS[kind], **changes})


def build(kind: str = 'dense', seed: int = 0, **changes):
  """(model, params), scaled so that the outputs are far from uniform."""
  shape = config(kind, **changes)
  params = init_params(shape, jax.random.key(seed))
  params = jax.tree.map(lambda x: x * 6 if x.ndim > 1 else x, params)
  return Transformer(shape), params


def tokens(rows: int, length: int, seed: int = 1) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, 50, (rows, length)).astype(np.int32)
