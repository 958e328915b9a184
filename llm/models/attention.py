"""Grouped-query attention over segments of keys, with an optional cache."""

import functools
import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from llm.models.cache import FloatKV, Segment
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
# XLA:CPU multiplies values by the weights of up to this many queries of a key
# head; the other way around it first copies the values of a single row
# transposed, and is slow at several. Measured, a seventh of the time for one
# query and one row, a quarter to a half for four queries and eight rows.
_FEW_QUERIES = 16


def attend(
  q: jax.Array,
  segments: list[Segment],
  *,
  scale: float,
  cap: float | None = None,
) -> jax.Array:
  """softmax(q k' scale) v over the union of the segments' keys.

  The softmax is taken in float32 over all segments together, without
  concatenating them: each contributes its exponentials to one sum. Keys that
  several rows share are read once for them all (Hydragen, 2402.05099).

  Args:
    q: float[B, T, K, G, H].
    segments: keys, values and masks (see `cache.Segment`).
    scale: factor on the scores.
    cap: soft cap on the scaled scores (Gemma 2).

  Returns:
    float[B, T, K, G, H] in the dtype of q.
  """
  length, block = q.shape[1], _CAUSAL_BLOCK
  if length > _QUERY_BLOCK:
    return _attend_in_blocks(q, segments, scale, cap)
  causal = any(segment.causal for segment in segments)
  if not causal or jax.default_backend() != 'cpu' or length <= block:
    return _attend_to_all(q, segments, scale, cap)
  out = []
  for start in range(0, length, block):
    end = min(start + block, length)
    seen = [_seen_by(segment, start, end, length) for segment in segments]
    out.append(_attend_to_all(q[:, start:end], seen, scale, cap))
  return jnp.concatenate(out, axis=1)


def _seen_by(segment, start, end, length):
  """The keys that the queries [start, end) of `length` may look at."""
  mask = segment.mask
  if mask.shape[1] == length:
    mask = mask[:, start:end]
  if not segment.causal:
    return segment.replace(mask=mask)
  return segment.replace(
    k=segment.k[:, :, :end], v=segment.v[..., :end], mask=mask[..., :end]
  )


def _attend_to_all(q, segments, scale, cap):
  ks = tuple(segment.k.astype(q.dtype) for segment in segments)
  vs = tuple(segment.v.astype(q.dtype) for segment in segments)
  masks = tuple(segment.mask for segment in segments)
  if cap is None:
    return _softmax_product(q, ks, vs, masks, scale)
  return _softmax_product_fwd(q, ks, vs, masks, scale, cap)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _softmax_product(q, ks, vs, masks, scale):
  """softmax(q k' scale) v, with a gradient of few passes over the scores.

  Args:
    q: float[B, T, K, G, H].
    ks, vs: of each segment, [R, K, S, H] and [R, K, H, S]; B / R consecutive
      rows of q share a row.
    masks: of each segment, bool, broadcastable to [B, T, S].
    scale: factor on the scores.

  Returns:
    float[B, T, K, G, H].
  """
  return _softmax_product_fwd(q, ks, vs, masks, scale)[0]


def _softmax_product_fwd(q, ks, vs, masks, scale, cap=None):
  shape = q.shape
  scores = []
  for k, mask in zip(ks, masks, strict=True):
    s = _product('btkgh,bksh->bkgts', _joined(q, k), k) * scale
    s = soft_cap(s, cap)
    if k.shape[0] != shape[0]:
      mask = _joined(jnp.broadcast_to(mask, (*shape[:2], k.shape[2])), k)
    scores.append(jnp.where(mask[:, None, None], s, _MASKED))
  tops = [_by_query(s.max(axis=-1, keepdims=True), shape) for s in scores]
  top = lax.stop_gradient(functools.reduce(jnp.maximum, tops))  # cancels out
  weights, total, out = [], 0.0, 0.0
  for s, v in zip(scores, vs, strict=True):
    w = jnp.exp(s - _by_head(top, v))
    weights.append(w)
    total = total + _by_query(w.sum(axis=-1, keepdims=True), shape)
    # Divided afterwards: H numbers of each query, and not S.
    part = _weighted_values(w.astype(q.dtype), v)
    out = out + _by_query(part, shape)
  out = out / total
  return out.astype(q.dtype), (q, ks, vs, weights, total, out)


def _softmax_product_bwd(scale, residuals, out_grad):
  # With p = weights / total and g the gradient of the output, that of the
  # scores is p (g v' - sum g out), as in FlashAttention (2205.14135); here the
  # division by the total is made on g.
  q, ks, vs, weights, total, out = residuals
  dtype = q.dtype
  grad = out_grad / total
  mean = (grad * out).sum(axis=-1, keepdims=True)
  grad = grad.astype(dtype)
  q_grad, k_grads, v_grads = 0.0, [], []
  for k, v, w in zip(ks, vs, weights, strict=True):
    own = _by_head(grad, k)
    v_grad = _product('bkgth,bkgts->bkhs', own, w.astype(dtype))
    by_weight = _product('bkgth,bkhs->bkgts', own, v)
    scores_grad = (w * (by_weight - _by_head(mean, k)) * scale).astype(dtype)
    part = _product('bkgts,bksh->btkgh', scores_grad, k)
    q_grad = q_grad + part.reshape(q.shape)
    # As [H, S], so that q is what has to be transposed, and not the scores.
    k_grad = _product('btkgh,bkgts->bkhs', _joined(q, k), scores_grad)
    k_grad = lax.optimization_barrier(k_grad).swapaxes(-1, -2)
    k_grads.append(k_grad.astype(dtype))
    v_grads.append(v_grad.astype(dtype))
  return q_grad.astype(dtype), tuple(k_grads), tuple(v_grads), None


_softmax_product.defvjp(_softmax_product_fwd, _softmax_product_bwd)


def _joined(x, keys):
  """[B, T, …] -> [R, B/R · T, …]: the queries that share a row of `keys`."""
  rows = keys.shape[0]
  return x.reshape(rows, x.shape[0] // rows * x.shape[1], *x.shape[2:])


def _by_head(x, keys):
  """[B, T, K, G, X] -> [R, K, G, B/R · T, X], as scores with `keys` are."""
  return _joined(x, keys).transpose(0, 2, 3, 1, 4)


def _by_query(x, shape):
  """The inverse of `_by_head`, for queries of `shape`."""
  return x.transpose(0, 3, 1, 2, 4).reshape(*shape[:4], x.shape[-1])


def _weighted_values(w, v):
  """w [R, K, G, T, S], v [R, K, H, S] -> float32[R, K, G, T, H]."""
  if jax.default_backend() == 'cpu' and w.shape[2] * w.shape[3] <= _FEW_QUERIES:
    part = _product('bkhs,bkgts->bkhgt', v, w)
    return jnp.moveaxis(part, 2, -1)
  return _product('bkgts,bkhs->bkgth', w, v)


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
  def __call__(self, x, rope, entry, call, window):
    """One layer's attention.

    Args:
      x: float[B, T, D].
      rope: (cos, sin) of the positions, as `rope.rope_tables` gives.
      entry: of the cache, see `cache.protocol`.
      call, window: as its `extend` takes them.

    Returns:
      (float[B, T, D], the part of the cache entry that changed).
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
    new = FloatKV(k=k.transpose(0, 2, 1, 3), v=v.transpose(0, 2, 3, 1))
    segments, part = entry.extend(new, call, window)
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
    return out, part

  def _normalise(self, x, name):
    """RMS over each head (Qwen 3, Gemma 3) or over all heads (OLMo 2)."""
    config = self.config
    norm = RMSNorm(
      config.norm_eps, config.norm_offset, config.norm_float32_scale, name=name
    )
    if config.qk_norm == 'head':
      return norm(x)
    return norm(x.reshape(*x.shape[:-2], -1)).reshape(x.shape)
