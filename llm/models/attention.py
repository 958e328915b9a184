"""Grouped-query attention over segments of keys, with an optional cache."""

import functools
import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from llm.models.cache import LayerCache, Segment, extend
from llm.models.config import ModelConfig
from llm.models.layers import Linear, RMSNorm, soft_cap
from llm.models.placement import keep_heads
from llm.models.rope import rotate

# Longer queries are attended to in blocks, so that scores take
# [B, N, _QUERY_BLOCK, S] and not [B, N, T, S].
_QUERY_BLOCK = 512
_MASKED = -1e30  # finite, so that a row without any key stays finite
# On a CPU, blocks of this many queries leave out the keys behind them; an
# accelerator is faster at one large product. Measured: a quarter of the time.
_CAUSAL_BLOCK = 128


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
  if len(segments) == 1 and q.shape[1] > 1 and cap is None:
    return _attend_to_one(q, segments[0], scale)
  scores = []
  for segment in segments:
    s = _product('btkgh,bksh->bkgts', q, segment.k.astype(q.dtype))
    s = soft_cap(s * scale, cap)
    scores.append(jnp.where(segment.mask[:, None, None], s, _MASKED))
  top = scores[0].max(axis=-1, keepdims=True)
  for s in scores[1:]:
    top = jnp.maximum(top, s.max(axis=-1, keepdims=True))
  top = lax.stop_gradient(top)  # it cancels out
  weights = [jnp.exp(s - top) for s in scores]
  total = sum(w.sum(axis=-1, keepdims=True) for w in weights)
  out = 0.0
  for segment, w in zip(segments, weights, strict=True):
    out = out + _product(
      'bkgts,bkhs->btkgh',
      (w / total).astype(q.dtype),
      segment.v.astype(q.dtype),
    )
  return out.astype(q.dtype)


def _attend_to_one(q, segment, scale):
  """`attend` to a single segment, where training spends its time."""
  k, v = segment.k.astype(q.dtype), segment.v.astype(q.dtype)
  length, block = q.shape[1], _CAUSAL_BLOCK
  if not segment.causal or jax.default_backend() != 'cpu' or length <= block:
    return _softmax_product(q, k, v, segment.mask, scale)
  mask = jnp.broadcast_to(segment.mask, (segment.mask.shape[0], length, length))
  out = []
  for start in range(0, length, block):
    end = min(start + block, length)
    own = slice(start, end)
    out.append(
      _softmax_product(
        q[:, own], k[:, :, :end], v[..., :end], mask[:, own, :end], scale
      )
    )
  return jnp.concatenate(out, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _softmax_product(q, k, v, mask, scale):
  """softmax(q k' scale) v, with a gradient of few passes over the scores.

  Args:
    q: float[B, T, K, G, H].
    k, v: [B, K, S, H] and [B, K, H, S].
    mask: bool, broadcastable to [B, T, S].
    scale: factor on the scores.

  Returns:
    float[B, T, K, G, H].
  """
  return _softmax_product_fwd(q, k, v, mask, scale)[0]


def _softmax_product_fwd(q, k, v, mask, scale):
  scores = _product('btkgh,bksh->bkgts', q, k) * scale
  scores = jnp.where(mask[:, None, None], scores, _MASKED)
  weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
  total = weights.sum(axis=-1, keepdims=True)
  # Divided afterwards: H numbers of each query, and not S.
  out = _product('bkgts,bkhs->bkgth', weights.astype(q.dtype), v) / total
  residuals = q, k, v, weights, total, out
  return out.transpose(0, 3, 1, 2, 4).astype(q.dtype), residuals


def _softmax_product_bwd(scale, residuals, out_grad):
  # With p = weights / total and g the gradient of the output, that of the
  # scores is p (g v' - sum g out), as in FlashAttention (2205.14135); here the
  # division by the total is made on g.
  q, k, v, weights, total, out = residuals
  dtype = q.dtype
  grad = out_grad.transpose(0, 2, 3, 1, 4) / total
  mean = (grad * out).sum(axis=-1, keepdims=True)
  grad = grad.astype(dtype)
  v_grad = _product('bkgth,bkgts->bkhs', grad, weights.astype(dtype))
  by_weight = _product('bkgth,bkhs->bkgts', grad, v)
  scores_grad = (weights * (by_weight - mean) * scale).astype(dtype)
  q_grad = _product('bkgts,bksh->btkgh', scores_grad, k)
  # As [H, S], so that q is what has to be transposed, and not the scores.
  k_grad = _product('btkgh,bkgts->bkhs', q, scores_grad)
  k_grad = lax.optimization_barrier(k_grad).swapaxes(-1, -2)
  return q_grad.astype(dtype), k_grad.astype(dtype), v_grad.astype(dtype), None


_softmax_product.defvjp(_softmax_product_fwd, _softmax_product_bwd)


def _product(subscripts, a, b):
  """A product of two arrays of one dtype, with sums in float32."""
  if jax.default_backend() == 'cpu':
    # XLA:CPU lacks some products of bfloat16, and is slow at the others.
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


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
    own = [
      s.replace(mask=m, causal=False)
      for s, m in zip(segments, masks, strict=True)
    ]
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
  def __call__(self, x, rope, entry, call, window, ring):
    """One layer's attention.

    Args:
      x: float[B, T, D].
      rope: (cos, sin) of the positions, as `rope.rope_tables` gives.
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
    qkv = keep_heads(qkv)
    batch, length = x.shape[:2]
    q = qkv[..., :groups, :].reshape(batch, length, heads, config.head_dim)
    k, v = qkv[..., groups, :], qkv[..., groups + 1, :]
    if config.qk_norm:
      q, k = self._normalise(q, 'q_norm'), self._normalise(k, 'k_norm')
    q = rotate(q, *rope)
    k = rotate(k, *rope)
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
