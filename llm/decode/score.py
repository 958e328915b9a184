"""Log-probabilities of given tokens, without a [B, T, V] array."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from llm.decode.prefill import bucket, pad_rows
from llm.errors import UserError
from llm.models.layers import linear, soft_cap
from llm.models.transformer import Transformer

_VOCAB_BLOCK = 8192
_TOKEN_BLOCK = 2048


def output_table(params: Any, model: Transformer) -> jax.Array:
  """The [V, D] table that turns hidden states into logits."""
  if model.config.tie_embeddings:
    return params['embedder']['embedding']
  return params['lm_head']['kernel']


def token_logprobs(
  hidden: jax.Array,
  targets: jax.Array,
  table: jax.Array,
  cap: float | None = None,
) -> jax.Array:
  """log softmax(hidden @ table.T)[target], block by block of the vocabulary.

  The running maximum and sum of exponentials are those of online softmax
  (Milakov & Gimelshein, 1805.02867), so that only [tokens, block] logits
  exist at a time.

  Args:
    hidden: float[M, D].
    targets: int32[M].
    table: float[V, D].
    cap: soft cap on the logits.

  Returns:
    float32[M].
  """
  vocab = table.shape[0]
  block = min(_VOCAB_BLOCK, vocab)
  blocks = -(-vocab // block)

  def add(carry, i):
    top, total, target = carry
    # The last block overlaps the one before; its first ids are masked.
    first = jnp.minimum(i * block, vocab - block)
    rows = lax.dynamic_slice_in_dim(table, first, block)
    logits = linear(hidden, rows.astype(hidden.dtype)).astype(jnp.float32)
    logits = soft_cap(logits, cap)
    ids = first + jnp.arange(block)
    own = (ids >= i * block)[None]
    logits = jnp.where(own, logits, -jnp.inf)
    new_top = jnp.maximum(top, logits.max(axis=-1))
    total = total * jnp.exp(top - new_top)
    total = total + jnp.exp(logits - new_top[:, None]).sum(axis=-1)
    hit = own & (ids[None] == targets[:, None])
    target = target + jnp.where(hit, logits, 0.0).sum(axis=-1)
    return (new_top, total, target), None

  rows = targets.shape
  start = (jnp.full(rows, -jnp.inf), jnp.zeros(rows), jnp.zeros(rows))
  (top, total, target), _ = lax.scan(add, start, jnp.arange(blocks))
  return target - top - jnp.log(total)


@functools.partial(jax.jit, static_argnames=('model',))
def score_tokens(
  params: Any, tokens: jax.Array, lengths: jax.Array, *, model: Transformer
) -> jax.Array:
  """float32[B, T-1]: log p(tokens[:, t+1] | tokens[:, :t+1]).

  Args:
    params: the model's parameters.
    tokens: int32[B, T], padded on the right; entries past a row's length are
      meaningless in the result.
    lengths: int32[B].
    model: the transformer.
  """
  hidden, _ = model.apply(
    {'params': params}, tokens, lengths=lengths, method='trunk'
  )
  batch, steps = tokens.shape
  flat = hidden[:, :-1].reshape(-1, hidden.shape[-1])
  targets = tokens[:, 1:].reshape(-1)
  table, cap = output_table(params, model), model.config.final_soft_cap
  size = min(_TOKEN_BLOCK, flat.shape[0])
  pad = -flat.shape[0] % size
  flat = jnp.pad(flat, ((0, pad), (0, 0))).reshape(-1, size, flat.shape[-1])
  targets = jnp.pad(targets, (0, pad)).reshape(-1, size)
  out = lax.map(lambda x: token_logprobs(*x, table, cap), (flat, targets))
  return out.reshape(-1)[: batch * (steps - 1)].reshape(batch, steps - 1)


def score(
  model: Transformer,
  params: Any,
  rows: Sequence[Sequence[int]],
  *,
  batch_size: int = 8,
  on_row: Callable[[int, np.ndarray], None] | None = None,
) -> list[np.ndarray]:
  """Natural-log probability of each token given those before it.

  Args:
    model: the transformer.
    params: its parameters.
    rows: token ids, at least one each.
    batch_size: rows per call; rows of a batch are padded to a common length.
    on_row: called with (row index, log-probabilities) as they come.

  Returns:
    One float32[len(row) - 1] per row: entry t belongs to token t + 1.

  Raises:
    UserError: a row is empty or longer than the model allows.
  """
  limit = model.config.max_length
  if model.config.rope.type == 'dynamic':
    limit = None
  for i, row in enumerate(rows):
    if not len(row):
      raise UserError(f'row {i} has no token: give it at least one')
    if limit is not None and len(row) > limit:
      raise UserError(
        f'row {i} has {len(row)} tokens, and the model takes {limit}: split it'
      )
  out = []
  for first in range(0, len(rows), batch_size):
    group = rows[first : first + batch_size]
    length = bucket(max(len(r) for r in group))
    batch = min(bucket(len(group), 1), bucket(batch_size, 1))
    tokens, lengths = pad_rows(group, length, batch)
    result = np.asarray(score_tokens(params, tokens, lengths, model=model))
    for i, row in enumerate(group):
      out.append(result[i, : len(row) - 1])
      if on_row:
        on_row(first + i, out[-1])
  return out
