"""Shape and semantics of a decoder-only transformer, as frozen dataclasses.

`ModelConfig` says everything that the forward pass depends on, so that two
equal configs with equal parameters give equal logits. It is hashable and may
be a static argument of `jax.jit`. Reading it from and writing it to a Hugging
Face `config.json` is in `llm.checkpoints.hf.config`.
"""

import dataclasses

ROPE_TYPES = ('default', 'linear', 'dynamic', 'llama3', 'yarn', 'longrope')
ACTIVATIONS = ('silu', 'gelu', 'gelu_tanh', 'relu')
GLOBAL, LOCAL = 'global', 'local'
REMAT = ('none', 'dots', 'full')  # policies of `llm.models.remat`
_UNBOUNDED = 1 << 30
# A fresh model: what `model.…` is where neither a path nor a value is given.
FRESH_SHAPE = {
  'embed_dim': 256,
  'hidden_dim': 688,
  'num_layers': 4,
  'num_heads': 4,
  'num_kv_heads': 4,
  'head_dim': 64,
  'max_length': 2048,
  'rope_theta': 10000.0,
  'tie_embeddings': True,
}


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """Rotary position embedding of one kind of layer.

  Lengths are in tokens. `original_max_length` is the context the model was
  first trained on (llama3, yarn, longrope, and linear where it is known; for
  dynamic, the length up to which nothing is scaled). Only `dynamic` and
  `longrope` depend on how long the row is.
  """

  type: str = 'default'
  theta: float = 10_000.0
  partial_rotary_factor: float = 1.0
  factor: float = 1.0
  original_max_length: int | None = None
  low_freq_factor: float = 1.0  # llama3
  high_freq_factor: float = 4.0  # llama3
  beta_fast: float = 32.0  # yarn
  beta_slow: float = 1.0  # yarn
  truncate: bool = True  # yarn
  mscale: float | None = None  # yarn
  mscale_all_dim: float | None = None  # yarn
  attention_factor: float | None = None  # yarn, longrope; None: derived
  short_factor: tuple[float, ...] = ()  # longrope
  long_factor: tuple[float, ...] = ()  # longrope

  @property
  def depends_on_length(self) -> bool:
    return self.type in ('dynamic', 'longrope')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """One decoder-only transformer. Axis letters as in `llm/__init__.py`.

  `layer_types` has one entry per layer: 'global' layers attend to the whole
  past, 'local' layers to the last `window` tokens (the query itself included).
  Local layers use `rope_local` where it is given, else `rope`.
  """

  vocab_size: int
  embed_dim: int
  hidden_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_length: int  # max_position_embeddings of the checkpoint
  model_type: str = 'llama'  # Hugging Face model_type, for export
  layer_types: tuple[str, ...] = ()  # empty: all global
  window: int | None = None
  rope: RopeConfig = RopeConfig()
  rope_local: RopeConfig | None = None
  norm_eps: float = 1e-6
  pre_norm: bool = True  # normalise the input of attention and MLP
  post_norm: bool = False  # normalise their output (Gemma 2/3, OLMo 2)
  norm_offset: bool = False  # scale by 1 + w, in float32 (Gemma)
  norm_float32_scale: bool = False  # multiply by w before the cast (OLMo 2)
  qk_norm: str | None = None  # 'head': over H each; 'full': over all heads
  qkv_bias: bool = False
  attn_out_bias: bool = False
  mlp_bias: bool = False
  activation: str = 'silu'
  query_scale: float | None = None  # None: H ** -0.5
  attn_soft_cap: float | None = None
  final_soft_cap: float | None = None
  embed_scale: float | None = None  # Gemma: sqrt(D), rounded to the dtype
  tie_embeddings: bool = False
  num_experts: int = 0  # 0: dense MLP everywhere
  experts_per_token: int = 0
  expert_dim: int = 0
  norm_topk_prob: bool = True
  moe_layers: tuple[bool, ...] = ()  # empty: every layer, if num_experts
  router_aux_coef: float = 0.0  # kept for export and for training
  bos_id: int | None = None
  eos_ids: tuple[int, ...] = ()
  pad_id: int | None = None

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads={self.num_heads} is not a multiple of '
        f'num_kv_heads={self.num_kv_heads}'
      )
    if not self.layer_types:
      object.__setattr__(self, 'layer_types', (GLOBAL,) * self.num_layers)
    if len(self.layer_types) != self.num_layers:
      raise ValueError(
        f'layer_types has {len(self.layer_types)} entries for '
        f'num_layers={self.num_layers}'
      )
    if LOCAL in self.layer_types and not self.window:
      raise ValueError(
        f'window={self.window} with local layers: set it to a number of tokens'
      )
    if self.num_experts and not self.moe_layers:
      object.__setattr__(self, 'moe_layers', (True,) * self.num_layers)
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f'activation={self.activation!r}: use one of {ACTIVATIONS}'
      )
    for rope in (self.rope, self.rope_local):
      if rope is not None and rope.type not in ROPE_TYPES:
        raise ValueError(f'rope.type={rope.type!r}: use one of {ROPE_TYPES}')

  @property
  def queries_per_kv(self) -> int:
    return self.num_heads // self.num_kv_heads

  def layer_rope(self, layer_type: str) -> RopeConfig:
    if layer_type == LOCAL and self.rope_local is not None:
      return self.rope_local
    return self.rope

  def is_moe(self, layer: int) -> bool:
    return bool(self.moe_layers) and self.moe_layers[layer]


def length_limit(config: ModelConfig) -> int:
  """Tokens that a row may hold.

  With dynamic RoPE there is no bound. Other scaled types stretch
  `original_max_length` by their factor, linear scaling without it
  `max_length`. Where `max_length` is more than the original length, it has been
  stretched already (Llama 3.1), and only YaRN can add to it: Qwen's recipe
  leaves `max_length` as it was, which for Qwen3 is more than the original
  length. In Gemma 3 it is always the stretched one.
  """
  rope, limit = config.rope, config.max_length
  if rope.type == 'dynamic':
    return _UNBOUNDED
  original = rope.original_max_length or limit
  if config.rope_local is None and (rope.type == 'yarn' or limit <= original):
    limit = max(limit, int(min(original * rope.factor, _UNBOUNDED)))
  return limit
