"""Attention by kernels that ship with JAX: cuDNN's on GPUs, Pallas' on TPUs.

Both are for queries that attend to their own keys alone, as in training and in
a prefill; both never form the scores, forwards or backwards. A kernel that does
not apply returns None, and `attention.attend` takes its own products.

They are traced when a program is lowered (see `llm.backend`). JAX looks for
cuDNN while it traces cuDNN's attention. Where there is none, a program that is
lowered for a GPU has the products instead, with a warning. To compile for a GPU
ahead of time, on a machine without one, let
`jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version` return a version
such as 91000.
"""

from collections.abc import Callable
import functools
import warnings

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm.models.cache import OwnMask
from llm.models.placement import ROWS, splits_rows

# The unit of the TPU's kernel; shorter rows are one small product anyway.
_LANES = 128


def cudnn_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array,
  made_of: OwnMask | None,
  *,
  scale: float,
  cap: float | None,
  implementation: str = 'cudnn',
) -> jax.Array | None:
  """`jax.nn.dot_product_attention` of causal queries.

  cuDNN refuses what it cannot do while it is traced: other dtypes than bfloat16
  and float16, heads that are too wide for the device or no multiple of 8,
  gradients of an odd T with segments.

  Args:
    q: float[B, T, K, G, H].
    k, v: float[B, K, T, H] and [B, K, H, T].
    mask: bool[B or 1, T, T], causal.
    made_of: what it is made of; None: only the mask tells.
    scale: factor on the scores.
    cap: soft cap on the scores, which these kernels do not have, or None.
    implementation: 'cudnn', or 'xla' for the same by plain products.

  Returns:
    float[B, T, K, G, H], or None.
  """
  if cap is not None:
    return None
  batch, length, _, _, width = q.shape
  local = None
  if made_of is not None and made_of.segment_ids is None:
    mask = None
    if made_of.window is not None:
      local = made_of.window - 1, 0
  try:
    out = jax.nn.dot_product_attention(
      q.reshape(batch, length, -1, width),
      k.transpose(0, 2, 1, 3),
      v.transpose(0, 3, 1, 2),
      mask=None if mask is None else mask[:, None],
      scale=scale,
      is_causal=True,
      local_window_size=local,
      implementation=implementation,
    )
  except NotImplementedError:
    return None
  except RuntimeError as error:
    warnings.warn(
      f'attention on GPU without cuDNN, which is slower: {error}', stacklevel=2
    )
    return None
  return out.reshape(q.shape)


def pallas_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array,
  made_of: OwnMask | None,
  *,
  scale: float,
  cap: float | None,
  interpret: bool = False,
) -> jax.Array | None:
  """Pallas' splash attention of causal queries, on a TPU.

  Rows are padded to whole blocks. With a mesh in context each device computes
  its own rows and heads. Arguments and result are those of `cudnn_attention`;
  `interpret` runs the kernel on any device, slowly.
  """
  del mask
  if made_of is None or q.shape[1] < _LANES:
    return None
  ids = made_of.segment_ids
  one_row = functools.partial(
    _splash, scale=scale, cap=cap, window=made_of.window, interpret=interpret
  )
  rows = jax.vmap(one_row, in_axes=(0, 0, 0, None if ids is None else 0))
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return rows(q, k, v, ids)
  if not splits_rows(q):
    return None
  heads = 'tensor' if k.shape[1] % mesh.shape['tensor'] == 0 else None
  of_keys = PartitionSpec(ROWS, heads)
  of_queries = PartitionSpec(ROWS, None, heads)
  return jax.shard_map(
    rows,
    in_specs=(of_queries, of_keys, of_keys, PartitionSpec(ROWS)),
    out_specs=of_queries,
    check_vma=False,
  )(q, k, v, ids)


def _splash(q, k, v, ids, *, scale, cap, window, interpret):
  """One row: q [T, K, G, H], k [K, T, H], v [K, H, T] -> [T, K, G, H]."""
  # Imported here: it takes half a second, and only programs for a TPU need it.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  length, kv_heads, groups, width = q.shape
  pad = -length % _LANES
  whole = length + pad
  block = next(size for size in (512, 256, _LANES) if whole % size == 0)
  sizes = splash.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  shape = whole, whole
  mask = splash.CausalMask(shape)
  if window is not None:
    mask = splash.LocalMask(shape, window_size=(window - 1, 0), offset=0)
  heads = kv_heads * groups
  kernel = splash.make_splash_mha(
    splash.MultiHeadMask([mask] * heads),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=cap,
    interpret=interpret,
  )
  fill = ((0, 0), (0, pad), (0, 0))
  queries = (q * scale).reshape(length, heads, width).transpose(1, 0, 2)
  queries, keys, values = (
    jnp.pad(x, fill) for x in (queries, k, v.swapaxes(1, 2))
  )
  if ids is not None:
    ids = jnp.pad(ids, (0, pad))
    ids = splash.SegmentIds(ids, ids)
  out = kernel(queries, keys, values, ids)
  return out[:, :length].transpose(1, 0, 2).reshape(q.shape)


ATTENTION: dict[str, Callable[..., jax.Array | None]] = {
  'cudnn': cudnn_attention,
  'pallas': pallas_attention,
}
