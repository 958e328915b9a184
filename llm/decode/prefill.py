"""Prefill: a batch of prompts into the cache, in parallel over their tokens.

Prompts are padded on the right to a ladder of lengths, and the true lengths
are traced, so that the number of compilations is bounded whatever the load.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.buckets import bucket, fine_bucket
from llm.models.cache import KVCache, init_cache, make_layer
from llm.models.transformer import Transformer


def prefill_length(longest: int, chunk: int | None = None) -> int:
  """Tokens per row that `prefill` computes for prompts of up to `longest`.

  Whole prompts take their bucket; chunks end with the last one in use.
  """
  whole = bucket(longest)
  if chunk is None or chunk >= whole:
    return whole
  return -(-longest // chunk) * chunk


def pad_rows(
  rows: list[list[int]], length: int, batch: int
) -> tuple[np.ndarray, np.ndarray]:
  """Token lists -> (int32[batch, length], int32[batch]), padded on the right.

  Rows beyond the list are one token of id 0.
  """
  tokens = np.zeros((batch, length), np.int32)
  lengths = np.ones((batch,), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
    lengths[i] = len(row)
  return tokens, lengths


@functools.partial(
  jax.jit,
  static_argnames=('model', 'batch', 'capacity', 'dtype', 'make_layer'),
)
def empty_cache(
  *,
  model: Transformer,
  batch: int,
  capacity: int,
  dtype: Any,
  make_layer: Callable[..., Any] = make_layer,
) -> KVCache:
  """`init_cache` for the model's layout, as one compiled program."""
  return init_cache(
    model.config, batch, capacity, dtype, model.scan_layers, make_layer
  )


@functools.partial(
  jax.jit,
  static_argnames=('model', 'attend_length'),
  donate_argnames=('cache', 'hidden'),
)
def _prefill_chunk(
  params, tokens, lengths, offset, cache, hidden, *, model, attend_length
):
  """One chunk at `offset`; keeps the hidden state of each row's last token."""
  here = jnp.clip(lengths - offset, 0, tokens.shape[1])
  out, cache = model.apply(
    {'params': params},
    tokens,
    cache=cache,
    lengths=here,
    rope_length=lengths,
    attend_length=attend_length,
    method='trunk',
  )
  last = jnp.clip(lengths - 1 - offset, 0, tokens.shape[1] - 1)
  last_hidden = jnp.take_along_axis(out, last[:, None, None], axis=1)
  ends_here = (lengths > offset) & (lengths <= offset + tokens.shape[1])
  return jnp.where(ends_here[:, None, None], last_hidden, hidden), cache


@functools.partial(jax.jit, static_argnames=('model',))
def _last_logits(params, hidden, *, model):
  logits = model.apply({'params': params}, hidden, method='logits')
  return logits[:, 0]


def prefill(
  params: Any,
  tokens: Any,
  lengths: Any,
  cache: KVCache,
  *,
  model: Transformer,
  chunk: int | None = None,
) -> tuple[jax.Array, KVCache]:
  """Reads prompts into an empty cache.

  Args:
    params: the model's parameters.
    tokens: int32[B, T], padded on the right.
    lengths: int32[B], true lengths, at least 1.
    cache: empty, with room for T slots, or for whole chunks up to the longest
      row; donated.
    model: the transformer.
    chunk: tokens per call; None: all at once. The result is the same; memory
      for activations is that of one chunk.

  Returns:
    (logits float32[B, V] after each row's last token, the cache). Only these
    rows go through the output table.

  Raises:
    ValueError: the cache has too few slots.
  """
  batch, width = tokens.shape
  size = min(chunk or width, width)
  end = -(-int(np.max(lengths)) // size) * size
  if cache.capacity is not None and cache.capacity < end:
    raise ValueError(  # writes past the last slot would land on earlier ones
      f'the cache has {cache.capacity} slots and prefill writes {end}: '
      'allocate more'
    )
  tokens = np.pad(tokens, ((0, 0), (0, max(end - width, 0))))
  hidden = jnp.zeros((batch, 1, model.config.embed_dim), model.dtype)
  for offset in range(0, end, size):
    piece = tokens[:, offset : offset + size]
    hidden, cache = _prefill_chunk(
      params,
      piece,
      lengths,
      np.int32(offset),
      cache,
      hidden,
      model=model,
      attend_length=fine_bucket(offset) if offset else 0,
    )
  return _last_logits(params, hidden, model=model), cache


@jax.jit
def fork(tree: Any, rows: jax.Array) -> Any:
  """Copies rows of a cache or of any pytree of [B, …] arrays: int32[B']."""

  def is_cache(x):
    return hasattr(x, 'take_rows')

  def take(x):
    return x.take_rows(rows) if is_cache(x) else x[rows]

  return jax.tree.map(take, tree, is_leaf=is_cache)
