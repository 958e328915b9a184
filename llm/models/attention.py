"""Grouped-query attention over segments of keys, with an optional cache."""

import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from llm.models.cache import LayerCache, Segment, extend
from llm.models.config import ModelConfig
from llm.models.layers import Linear, RMSNorm, soft_cap
from llm.models.rope import apply_rope

# Longer queries are attended to in blocks, so that scores take
# [B, N, _QUERY_BLOCK, S] and not [B, N, T, S].
_QUERY_BLOCK = 512
_MASKED = -1e30  # finite, so that a row without any key stays finite


def attend(
  q: jax.Array,
  segments: list[Segment],
  *,
  scale: float,
  cap: float | None = None,
) -> jax.Array:
  """softmax(q k' scale) v over the union of the segments' keys.

  The softmax is taken in float32 over all segments together, without
  concatenating them: each contributes its exponentials to one sum.

  Args:
    q: float[B, T, K, G, H].
    segments: keys, values and masks (see `cache.Segment`).
    scale: factor on the scores.
    cap: soft cap on the scaled scores (Gemma 2).

  Returns:
    float[B, T, K, G, H] in the dtype of q.
  """
  if q.shape[1] > _QUERY_BLOCK:
    return _attend_in_blocks(q, segments, scale, cap)
  scores = []
  for segment in segments:
    s = jnp.einsum(
      'btkgh,bksh->bkgts',
      q,
      segment.k.astype(q.dtype),
      preferred_element_type=jnp.float32,
    )
    s = soft_cap(s * scale, cap)
    scores.append(jnp.where(segment.mask[:, None, None], s, _MASKED))
  top = scores[0].max(axis=-1, keepdims=True)
  for s in scores[1:]:
    top = jnp.maximum(top, s.max(axis=-1, keepdims=True))
  weights = [jnp.exp(s - top) for s in scores]
  total = sum(w.sum(axis=-1, keepdims=True) for w in weights)
  out = 0.0
  for segment, w in zip(segments, weights, strict=True):
    out = out + jnp.einsum(
      'bkgts,bkhs->btkgh',
      (w / total).astype(q.dtype),
      segment.v.astype(q.dtype),
      preferred_element_type=jnp.float32,
    )
  return out.astype(q.dtype)


def _attend_in_blocks(q, segments, scale, cap):
  """`attend` over blocks of queries, one after the other."""
  batch, length = q.shape[:2]
  blocks = math.ceil(length / _QUERY_BLOCK)
  pad = blocks * _QUERY_BLOCK - length

  def split(x, axis):
    if x.shape[axis] == 1:  # a mask that all queries share
      return jnp.broadcast_to(x[None], (blocks, *x.shape))
    width = [(0, 0)] * x.ndim
    width[axis] = (0, pad)
    x = jnp.pad(x, width)
    shape = (*x.shape[:axis], blocks, _QUERY_BLOCK, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)

  @jax.checkpoint
  def one(carry, block):
    query, masks = block
    own = [s.replace(mask=m) for s, m in zip(segments, masks, strict=True)]
    return carry, attend(query, own, scale=scale, cap=cap)

  masks = [split(s.mask, 1) for s in segments]
  _, out = lax.scan(one, None, (split(q, 1), masks))
  out = jnp.moveaxis(out, 0, 1).reshape(batch, -1, *q.shape[2:])
  return out[:, :length]


class Attention(nn.Module):
  """Multi-head attention with grouped keys (GQA, 2305.13245) and RoPE.

  Parameters: qkv/kernel [K, G+2, H, D], o/kernel [D, N, H], and, by config,
  biases and the norms of queries and keys.
  """

  config: ModelConfig
  out_init_scale: float = 0.02
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, positions, rope, entry, call, window, ring):
    """One layer's attention.

    Args:
      x: float[B, T, D].
      positions: int32[B, T], rotary positions.
      rope: (inv_freq, attention_factor) as `rope.inverse_frequencies` gives.
      entry, call, window, ring: see `cache.extend`.

    Returns:
      (float[B, T, D], the changed part of the cache entry).
    """
    config = self.config
    groups, heads = config.queries_per_kv, config.num_heads
    qkv = Linear(
      (config.num_kv_heads, groups + 2, config.head_dim),
      (config.embed_dim,),
      config.qkv_bias,
      dtype=self.dtype,
      name='qkv',
    )(x)
    batch, length = x.shape[:2]
    q = qkv[..., :groups, :].reshape(batch, length, heads, config.head_dim)
    k, v = qkv[..., groups, :], qkv[..., groups + 1, :]
    if config.qk_norm:
      q, k = self._normalise(q, 'q_norm'), self._normalise(k, 'k_norm')
    q = apply_rope(q, positions, *rope)
    k = apply_rope(k, positions, *rope)
    q = q.reshape(batch, length, config.num_kv_heads, groups, config.head_dim)
    new = LayerCache(k=k.transpose(0, 2, 1, 3), v=v.transpose(0, 2, 3, 1))
    segments, entry = extend(entry, new, call, window, ring)
    scale = config.query_scale
    if scale is None:
      scale = config.head_dim**-0.5
    out = attend(q, segments, scale=scale, cap=config.attn_soft_cap)
    out = Linear(
      (config.embed_dim,),
      (heads, config.head_dim),
      config.attn_out_bias,
      self.out_init_scale,
      dtype=self.dtype,
      name='o',
    )(out.reshape(batch, length, heads, config.head_dim))
    return out, entry

  def _normalise(self, x, name):
    """RMS over each head (Qwen 3, Gemma 3) or over all heads (OLMo 2)."""
    config = self.config
    norm = RMSNorm(
      config.norm_eps, config.norm_offset, config.norm_float32_scale, name=name
    )
    if config.qk_norm == 'head':
      return norm(x)
    return norm(x.reshape(*x.shape[:-2], -1)).reshape(x.shape)
