"""Grouped-query attention over segments of keys, with an optional cache."""

import dataclasses
import functools
import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from llm.backend import CPU, Backend, by_backend
from llm.models import fused
from llm.models.cache import FloatKV, Segment
from llm.models.config import ModelConfig
from llm.models.layers import Linear, RMSNorm, soft_cap
from llm.models.placement import keep_heads
from llm.models.rope import rotate

# Longer queries are attended to in blocks, so that scores take
# [B, N, _QUERY_BLOCK, S] and not [B, N, T, S].
_QUERY_BLOCK = 512
_MASKED = -1e30  # finite, so that a row without any key stays finite


@dataclasses.dataclass(frozen=True)
class _Rule:
  """What of `attend`'s arguments is static.

  Attributes:
    scale, cap: see there.
    causal: of each segment, whether its mask admits no key s > t.
  """

  scale: float
  cap: float | None
  causal: tuple[bool, ...]


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
  several rows share are read once for them all (Hydragen, 2402.05099). Where
  the only keys are those of the queries themselves, as in training and in a
  prefill, GPUs and TPUs use a fused kernel (`llm.models.fused`).

  Args:
    q: float[B, T, K, G, H].
    segments: keys, values and masks (see `cache.Segment`).
    scale: factor on the scores.
    cap: soft cap on the scaled scores (Gemma 2).

  Returns:
    float[B, T, K, G, H] in the dtype of q.
  """
  rule = _Rule(scale, cap, tuple(segment.causal for segment in segments))
  ks = tuple(segment.k.astype(q.dtype) for segment in segments)
  vs = tuple(segment.v.astype(q.dtype) for segment in segments)
  masks = tuple(segment.mask for segment in segments)
  return _attention(rule, q, ks, vs, masks, segments[0].made_of)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(rule, q, ks, vs, masks, made_of):
  return by_backend(_forward, q, ks, vs, masks, made_of, rule=rule)


def _attention_fwd(rule, q, ks, vs, masks, made_of):
  arrays = q, ks, vs, masks, made_of
  out, kept = by_backend(_forward_keeping, *arrays, rule=rule)
  return out, (*arrays, kept)


def _attention_bwd(rule, residuals, out_grad):
  grads = by_backend(_backward, *residuals, out_grad, rule=rule)
  return (*grads, None, None)


_attention.defvjp(_attention_fwd, _attention_bwd)


def _forward(backend: Backend, q, ks, vs, masks, made_of, *, rule):
  if rule.causal == (True,) and backend.fused_attention:
    kernel = fused.ATTENTION[backend.fused_attention]
    out = kernel(
      q, ks[0], vs[0], masks[0], made_of, scale=rule.scale, cap=rule.cap
    )
    if out is not None:
      return out
  if q.shape[1] > _QUERY_BLOCK:
    return _in_blocks(backend, q, ks, vs, masks, rule)
  settings = backend, rule.scale, rule.cap
  out = [
    _softmax_product(settings, *part)
    for part in _parts(backend, q, ks, vs, masks, rule)
  ]
  return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)


def _forward_keeping(backend: Backend, q, ks, vs, masks, made_of, *, rule):
  """(what `_forward` gives, what its backward pass needs besides the arrays).

  The CPU keeps the weights where there are few queries. Other backends
  recompute them, and keep zeros of the same shape, which are not read.
  """
  arrays = q, ks, vs, masks, made_of
  if q.shape[1] > _QUERY_BLOCK:
    return _forward(backend, *arrays, rule=rule), ()
  if not backend.keep_weights:
    _, kept = jax.eval_shape(
      functools.partial(_forward_keeping, CPU, rule=rule), *arrays
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), kept)
    return _forward(backend, *arrays, rule=rule), zeros
  settings = backend, rule.scale, rule.cap
  out, kept = [], []
  for part in _parts(backend, q, ks, vs, masks, rule):
    values, residuals = _softmax_product_fwd(settings, *part)
    out.append(values)
    kept.append(residuals[-1])
  return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1), kept


def _backward(
  backend: Backend, q, ks, vs, masks, made_of, kept, out_grad, *, rule
):
  """Gradients of q, ks and vs."""
  if not (backend.keep_weights and kept):
    forward = lambda q, ks, vs: _forward(
      backend, q, ks, vs, masks, made_of, rule=rule
    )
    return jax.vjp(forward, q, ks, vs)[1](out_grad)
  settings = backend, rule.scale, rule.cap
  parts = list(_parts(backend, q, ks, vs, masks, rule))
  q_grads, total, end = [], None, q.shape[1]
  for part, own in zip(reversed(parts), reversed(kept), strict=True):
    start = end - part[0].shape[1]
    q_grad, k_grads, v_grads, _ = _softmax_product_bwd(
      settings, (*part[:3], own), out_grad[:, start:end]
    )
    q_grads.insert(0, q_grad)
    new = (
      tuple(_padded(g, k, 2) for g, k in zip(k_grads, ks, strict=True)),
      tuple(_padded(g, v, 3) for g, v in zip(v_grads, vs, strict=True)),
    )
    total = new if total is None else jax.tree.map(jnp.add, total, new)
    end = start
  q_grad = q_grads[0] if len(q_grads) == 1 else jnp.concatenate(q_grads, axis=1)
  return q_grad, *total


def _padded(grad, like, axis):
  """The gradient of the first keys, padded with zeros to all keys."""
  width = [(0, 0)] * grad.ndim
  width[axis] = (0, like.shape[axis] - grad.shape[axis])
  return jnp.pad(grad, width)


def _parts(backend, q, ks, vs, masks, rule):
  """Yields (q, ks, vs, masks) of blocks of queries, with the keys they see."""
  length, block = q.shape[1], backend.causal_block
  if block is None or length <= block or not any(rule.causal):
    yield q, ks, vs, masks
    return
  for start in range(0, length, block):
    end = min(start + block, length)
    seen = [
      _seen(start, end, length, *segment)
      for segment in zip(ks, vs, masks, rule.causal, strict=True)
    ]
    yield q[:, start:end], *zip(*seen, strict=True)


def _seen(start, end, length, k, v, mask, causal):
  """(k, v, mask) that the queries [start, end) of `length` may look at."""
  if mask.shape[1] == length:
    mask = mask[:, start:end]
  if not causal:
    return k, v, mask
  return k[:, :, :end], v[..., :end], mask[..., :end]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax_product(settings, q, ks, vs, masks):
  """softmax(q k' scale) v, with a gradient of few passes over the scores.

  Args:
    settings: backend, scale and cap.
    q: float[B, T, K, G, H].
    ks, vs: of each segment, [R, K, S, H] and [R, K, H, S]; B / R consecutive
      rows of q share a row.
    masks: of each segment, bool, broadcastable to [B, T, S].

  Returns:
    float[B, T, K, G, H].
  """
  return _softmax_product_fwd(settings, q, ks, vs, masks)[0]


def _softmax_product_fwd(settings, q, ks, vs, masks):
  backend, scale, cap = settings
  shape = q.shape
  scores, slopes = [], []
  for k, mask in zip(ks, masks, strict=True):
    # The barrier makes the queries another array, so that XLA does not merge
    # the two products (see `Backend.merges_products`).
    apart = scores and backend.merges_products
    own = lax.optimization_barrier(q) if apart else q
    s = backend.product('btkgh,bksh->bkgts', _joined(own, k), k) * scale
    s = soft_cap(s, cap)
    slopes.append(None if cap is None else 1.0 - jnp.square(s / cap))
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
    part = _weighted_values(backend, w.astype(q.dtype), v)
    out = out + _by_query(part, shape)
  out = out / total
  return out.astype(q.dtype), (q, ks, vs, (weights, slopes, total, out))


def _softmax_product_bwd(settings, residuals, out_grad):
  # With p = weights / total and g the gradient of the output, that of the
  # scores is p (g v' - sum g out), as in FlashAttention (2205.14135); here the
  # division by the total is made on g.
  backend, scale, _ = settings
  q, ks, vs, (weights, slopes, total, out) = residuals
  dtype = q.dtype
  grad = out_grad / total
  mean = (grad * out).sum(axis=-1, keepdims=True)
  grad = grad.astype(dtype)
  q_grad, k_grads, v_grads = 0.0, [], []
  for k, v, w, slope in zip(ks, vs, weights, slopes, strict=True):
    own = _by_head(grad, k)
    v_grad = backend.product('bkgth,bkgts->bkhs', own, w.astype(dtype))
    by_weight = backend.product('bkgth,bkhs->bkgts', own, v)
    scores_grad = w * (by_weight - _by_head(mean, k)) * scale
    if slope is not None:
      scores_grad = scores_grad * slope
    scores_grad = scores_grad.astype(dtype)
    part = backend.product('bkgts,bksh->btkgh', scores_grad, k)
    q_grad = q_grad + part.reshape(q.shape)
    # As [H, S], so that q is what has to be transposed, and not the scores.
    k_grad = backend.product('btkgh,bkgts->bkhs', _joined(q, k), scores_grad)
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


def _weighted_values(backend, w, v):
  """w [R, K, G, T, S], v [R, K, H, S] -> float32[R, K, G, T, H]."""
  if w.shape[2] * w.shape[3] <= backend.values_first:
    part = backend.product('bkhs,bkgts->bkhgt', v, w)
    return jnp.moveaxis(part, 2, -1)
  return backend.product('bkgts,bkhs->bkgth', w, v)


def _in_blocks(backend, q, ks, vs, masks, rule):
  """Attention over blocks of queries, one after the other."""
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
    settings = backend, rule.scale, rule.cap
    return carry, _softmax_product(settings, query, ks, vs, masks)

  masks = tuple(split(mask, 1) for mask in masks)
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
