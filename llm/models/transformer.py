"""The decoder-only transformer: one forward pass for training and decoding.

`Transformer.apply({'params': params}, tokens, ...)` is a pure function of its
arguments; the cache is one of them and comes back beside the logits.
"""

import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from llm.models.attention import Attention
from llm.models.cache import Cache, CallContext, NoCache
from llm.models.config import GLOBAL, LOCAL, ModelConfig
from llm.models.layers import GatedMLP, RMSNorm, soft_cap
from llm.models.moe import MoE
from llm.models.remat import rematerialised
from llm.models.rope import inverse_frequencies, rope_tables
from llm.models.weights import linear, parameter, table_rows


class Block(nn.Module):
  """Attention and MLP with residuals; norms before, after, or on both sides."""

  config: ModelConfig
  moe: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, rope, entry, call, window):
    """Returns (x float[B, T, D], changed part of entry); see `Attention`."""
    config = self.config
    out_scale = 0.02 / math.sqrt(2 * config.num_layers)

    def norm(name):
      return RMSNorm(
        config.norm_eps,
        config.norm_offset,
        config.norm_float32_scale,
        name=name,
      )

    h = norm('pre_attention_norm')(x) if config.pre_norm else x
    h, part = Attention(config, out_scale, self.dtype, name='attn')(
      h, rope, entry, call, window
    )
    x = x + (norm('post_attention_norm')(h) if config.post_norm else h)
    h = norm('pre_mlp_norm')(x) if config.pre_norm else x
    if self.moe:
      h = MoE(config, out_scale, self.dtype, name='moe')(h)
    else:
      h = GatedMLP(
        config.embed_dim,
        config.hidden_dim,
        config.activation,
        config.mlp_bias,
        out_scale,
        self.dtype,
        name='mlp',
      )(h)
    return x + (norm('post_mlp_norm')(h) if config.post_norm else h), part


class _ScanBody(nn.Module):
  """A Block in the form that `nn.scan` takes: carry in, carry out."""

  config: ModelConfig
  moe: bool
  dtype: Any
  remat: str

  @nn.compact
  def __call__(self, x, entry, is_local, shared):
    ropes, call = shared
    config = self.config
    if is_local is None:  # all layers are of one kind
      kind = config.layer_types[0]
      rope, window = ropes[kind], _window(config, kind)
    else:
      rope = jax.tree.map(
        lambda a, b: jnp.where(is_local, a, b), ropes[LOCAL], ropes[GLOBAL]
      )
      window = jnp.where(is_local, config.window, jnp.iinfo(jnp.int32).max // 2)
    block = rematerialised(Block, self.remat, prevent_cse=False)
    return block(config, self.moe, self.dtype, name='block')(
      x, rope, entry, call, window
    )


def _window(config: ModelConfig, layer_type: str) -> int | None:
  return config.window if layer_type == LOCAL else None


class Transformer(nn.Module):
  """A decoder-only language model.

  Attributes:
    config: shapes and semantics.
    scan_layers: parameters stacked under `layers` and a `scan` over them (fast
      to compile) instead of `layers_0`, `layers_1`, …
    dtype: of activations; parameters are cast to it where they are used.
    remat: what the backward pass computes again, a name of `remat.REMAT`.
  """

  config: ModelConfig
  scan_layers: bool = False
  dtype: Any = jnp.float32
  remat: str = 'none'

  def setup(self):
    config = self.config
    self.embedder = _Embedder(config.vocab_size, config.embed_dim)
    if self.scan_layers:
      self.layers = self._scanned()
    else:
      block = rematerialised(Block, self.remat)
      self.blocks = [
        block(config, config.is_moe(i), self.dtype, name=f'layers_{i}')
        for i in range(config.num_layers)
      ]
    self.final_norm = RMSNorm(
      config.norm_eps, config.norm_offset, config.norm_float32_scale
    )
    if not config.tie_embeddings:
      self.lm_head = _Head(config.vocab_size, config.embed_dim)

  def _scanned(self):
    config = self.config
    moe = {config.is_moe(i) for i in range(config.num_layers)}
    if len(moe) > 1:
      raise ValueError(
        'scan_layers=True needs layers of one structure, and this model mixes '
        'dense and expert layers: use scan_layers=False'
      )
    return nn.scan(
      _ScanBody,
      variable_axes={'params': 0, 'lora': 0},
      split_rngs={'params': True},
      in_axes=(0, 0, nn.broadcast),
      length=config.num_layers,
    )(config, moe.pop(), self.dtype, self.remat, name='layers')

  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    cache: Cache | None = None,
    lengths: jax.Array | None = None,
    rope_length: jax.Array | None = None,
    attend_length: int | None = None,
    embed_noise: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """Logits of the next token at each position.

    Args:
      tokens: int32[B, T], padded on the right.
      positions: int32[B, T], rotary positions; default: counted on from what
        the cache holds, or from 0 at the start of each segment.
      segment_ids: int32[B, T], for several packed documents in a row.
      cache: a KVCache, an OpenCache, a SharedCache (read only), another kind
        that does as `cache.protocol` says, or None.
      lengths: int32[B], true number of new tokens; default T.
      rope_length: int32[B] or [B, T], the row's length that dynamic and
        longrope frequencies are taken for; default: what the cache holds plus
        `lengths`, or the length of each segment.
      attend_length: static; leading cache slots that may be in use (0: none).
      embed_noise: float[B, T, D], added to the rows of the token table, before
        a model scales them (`train.neftune`).

    Returns:
      (logits float32[B, T, V], the extended cache or None).
    """
    hidden, cache = self.trunk(
      tokens,
      positions,
      segment_ids,
      cache,
      lengths,
      rope_length,
      attend_length,
      embed_noise,
    )
    return self.logits(hidden), cache

  def trunk(
    self,
    tokens,
    positions=None,
    segment_ids=None,
    cache=None,
    lengths=None,
    rope_length=None,
    attend_length=None,
    embed_noise=None,
  ):
    """(hidden dtype[B, T, D] after the final norm, cache); see `__call__`."""
    config = self.config
    batch, steps = tokens.shape
    if cache is not None and segment_ids is not None:
      raise ValueError('segment_ids with a cache: pack rows, or cache them')
    if lengths is None:
      lengths = jnp.full((batch,), steps, jnp.int32)
    if cache is None:
      cache = NoCache()
    start, offset, count = cache.held(batch)
    before = start + offset + count
    if positions is None:
      positions = _positions(tokens, segment_ids, before)
    if rope_length is None:
      rope_length = _rope_length(positions, segment_ids, lengths, before)
    ropes = {
      kind: rope_tables(
        positions,
        *inverse_frequencies(
          config.layer_rope(kind), config.head_dim, rope_length
        ),
      )
      for kind in sorted(set(config.layer_types))
    }
    call = CallContext(
      start, offset, count, lengths, segment_ids, steps, attend_length
    )
    x = self.embedder(tokens, self.dtype)
    if embed_noise is not None:
      x = x + embed_noise.astype(x.dtype)
    if config.embed_scale is not None:
      x = x * jnp.asarray(config.embed_scale, x.dtype)
    if self.scan_layers:
      x, parts = self._run_scanned(x, ropes, cache, call)
    else:
      x, parts = self._run_unrolled(x, ropes, cache, call)
    return self.final_norm(x), cache.extended(parts, call)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """float[B, T, D] after the final norm -> float32[B, T, V]."""
    if self.config.tie_embeddings:
      weight = self.embedder.embedding
    else:
      weight = self.lm_head.kernel
    out = linear(hidden.astype(self.dtype), weight)
    return soft_cap(out.astype(jnp.float32), self.config.final_soft_cap)

  def _run_unrolled(self, x, ropes, cache, call):
    config = self.config
    parts = []
    for i, (block, kind) in enumerate(
      zip(self.blocks, config.layer_types, strict=True)
    ):
      window = _window(config, kind)
      x, part = block(x, ropes[kind], cache.layer(i), call, window)
      parts.append(part)
    return x, tuple(parts)

  def _run_scanned(self, x, ropes, cache, call):
    kinds = self.config.layer_types
    is_local = None
    if len(set(kinds)) > 1:
      is_local = jnp.array([kind == LOCAL for kind in kinds])
    return self.layers(x, cache.stacked(), is_local, (ropes, call))


class _Embedder(nn.Module):
  """The token table, [V, D]."""

  vocab_size: int
  embed_dim: int

  def setup(self):
    shape = self.vocab_size, self.embed_dim
    self.embedding = parameter(self, 'embedding', 0.02, shape)

  def __call__(self, tokens, dtype):
    return table_rows(self.embedding, tokens, dtype)


class _Head(nn.Module):
  """The output table where it is not the token table, [V, D]."""

  vocab_size: int
  embed_dim: int

  def setup(self):
    shape = self.vocab_size, self.embed_dim
    self.kernel = parameter(self, 'kernel', 0.02, shape)


def _positions(tokens, segment_ids, before):
  index = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
  if segment_ids is not None:
    changed = segment_ids[:, 1:] != segment_ids[:, :-1]
    first = jnp.where(changed, index[:, 1:], 0)
    first = jnp.concatenate([jnp.zeros_like(index[:, :1]), first], axis=1)
    return index - jax.lax.cummax(first, axis=1)
  return index + before[:, None]


def _rope_length(positions, segment_ids, lengths, before):
  if segment_ids is None:
    return before + lengths
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  return jnp.max(jnp.where(same, positions[:, None, :], 0), axis=-1) + 1


def output_weight(params: Any, config: ModelConfig) -> Any:
  """The weight [V, D] that gives the logits, a float array or packed."""
  if config.tie_embeddings:
    return params['embedder']['embedding']
  return params['lm_head']['kernel']


def init_params(
  config: ModelConfig,
  rng: jax.Array,
  dtype: Any = jnp.float32,
  scan_layers: bool = False,
) -> Any:
  """Fresh parameters: normal(0.02), output projections / sqrt(2 L) (GPT-2)."""
  model = Transformer(config, scan_layers=scan_layers)
  params = model.init(rng, jnp.zeros((1, 1), jnp.int32))['params']
  return jax.tree.map(lambda x: x.astype(dtype), params)


def stack_layers(params: Any, config: ModelConfig) -> Any:
  """`layers_i` trees -> one tree under `layers/block` with a leading L axis."""
  names = [f'layers_{i}' for i in range(config.num_layers)]
  rest = {k: v for k, v in params.items() if k not in names}
  stacked = jax.tree.map(
    lambda *x: jnp.stack(x), *[params[name] for name in names]
  )
  return {**rest, 'layers': {'block': stacked}}


def unstack_layers(params: Any, config: ModelConfig) -> Any:
  """The inverse of `stack_layers`."""
  rest = {k: v for k, v in params.items() if k != 'layers'}
  stacked = params['layers']['block']
  layers = {
    f'layers_{i}': jax.tree.map(lambda x, i=i: x[i], stacked)
    for i in range(config.num_layers)
  }
  return {**rest, **layers}
