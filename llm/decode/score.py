"""Log-probabilities of given tokens, without a [B, T, V] array."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import numpy as np

from llm.buckets import bucket
from llm.decode.prefill import pad_rows
from llm.errors import UserError
from llm.losses.chunked import chunked_logprobs
from llm.models.config import length_limit
from llm.models.transformer import Transformer, output_weight


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
  return chunked_logprobs(
    hidden[:, :-1],
    output_weight(params, model.config),
    tokens[:, 1:],
    cap=model.config.final_soft_cap,
  )


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
  limit = length_limit(model.config)
  for i, row in enumerate(rows):
    if not len(row):
      raise UserError(f'row {i} has no token: give it at least one')
    if len(row) > limit:
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
