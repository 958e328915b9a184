"""Small random models that the tests of several rooms share."""

import jax
import jax.numpy as jnp
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
  return Transformer(shape), init(shape, seed)


def init(shape: ModelConfig, seed: int = 0, factor: float = 6.0):
  """Parameters like those of `init_params`, the weights times `factor`.

  NumPy draws them: `init_params` compiles a hundred programs of one operation.
  """
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda: init_params(shape, jax.random.key(0)))

  def draw(path, leaf):
    *_, name, kind = (key.key for key in path)
    if kind in ('bias', 'scale'):
      value = np.full(leaf.shape, kind == 'scale' and not shape.norm_offset)
    else:
      depth = 2 * shape.num_layers if name in ('o', 'down') else 1
      value = rng.normal(0.0, factor * 0.02 / np.sqrt(depth), leaf.shape)
    return jnp.asarray(value.astype(np.float32))

  return jax.tree_util.tree_map_with_path(draw, shapes)


def tokens(rows: int, length: int, seed: int = 1) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, 50, (rows, length)).astype(np.int32)
