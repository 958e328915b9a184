"""Cache shapes of published models, for the price table."""

from llm.models.config import GLOBAL, LOCAL, ModelConfig


def _shape(layers: int, kv_heads: int, head_dim: int, **fields) -> ModelConfig:
  """A config in which only what the cache depends on is that of the model."""
  return ModelConfig(
    vocab_size=1,
    embed_dim=1,
    hidden_dim=1,
    num_layers=layers,
    num_heads=kv_heads,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    max_length=131_072,
    **fields,
  )


# From each model's config.json.
SHAPES = {
  'llama_2_7b': _shape(32, 32, 128),
  'llama_3_8b': _shape(32, 8, 128),
  'qwen3_8b': _shape(36, 8, 128),
  'gemma_3_12b': _shape(
    48,
    8,
    256,
    layer_types=((LOCAL,) * 5 + (GLOBAL,)) * 8,
    window=1024,
  ),
}
