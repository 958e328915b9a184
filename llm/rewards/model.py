"""Reward models: a transformer with a scalar head in place of its output table.

In training the parameters are {'model': those of the transformer (or adapters),
'reward_head': {'kernel': [1, D]}}; on disk a reward model is a Hugging Face
folder, `…ForSequenceClassification` with one label.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.buckets import bucket
from llm.checkpoints.hf.source import open_reward_model
from llm.checkpoints.source import check_dtype, to_dtype
from llm.decode.prefill import pad_rows
from llm.errors import UserError
from llm.losses.reward import at_last_token
from llm.models.config import length_limit
from llm.models.transformer import Transformer
from llm.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class RewardModel:
  """A reward model that is ready to rate texts.

  Attributes:
    path: the folder it came from.
    model: the transformer.
    params: {'model': …, 'reward_head': {'kernel': [1, D]}}.
    tokenizer: its own, or None where the folder has none.
  """

  path: str
  model: Transformer
  params: Any
  tokenizer: Tokenizer | None

  def rate(
    self, rows: Sequence[Sequence[int]], batch_size: int = 8
  ) -> np.ndarray:
    """The score at the last token of each row.

    Args:
      rows: token ids of prompt and completion together, the completion with
        its end mark, as this model's tokenizer makes them; at least one each.
      batch_size: rows per call; a score does not depend on it, nor on the rows
        beside it, but for rounding.

    Returns:
      float32[N]. Of a process reward model it is the logit that the last step
      is right.

    Raises:
      UserError: a row is empty, too long, or has an id that is not there.
    """
    for i, row in enumerate(rows):
      self._check_row(i, row)
    out = np.zeros(len(rows), np.float32)
    for first in range(0, len(rows), batch_size):
      group = rows[first : first + batch_size]
      length = bucket(max(len(row) for row in group))
      batch = min(bucket(len(group), 1), bucket(batch_size, 1))
      tokens, lengths = pad_rows(group, length, batch)
      scores = _score_rows(self.params, tokens, lengths, model=self.model)
      out[first : first + len(group)] = np.asarray(scores)[: len(group)]
    return out

  def _check_row(self, number: int, row: Sequence[int]) -> None:
    config = self.model.config
    name = f'{self.path}: row {number}'
    if not len(row):
      raise UserError(f'{name} has no token: give it at least one')
    limit = length_limit(config)
    if len(row) > limit:
      raise UserError(
        f'{name} has {len(row)} tokens, and the reward model takes '
        f'{limit}: use shorter completions, or another reward model'
      )
    if min(row) < 0 or max(row) >= config.vocab_size:
      raise UserError(
        f'{name} has token {max(row)}, and the reward model has '
        f'{config.vocab_size}: use its own tokenizer'
      )


def load_reward_model(
  path: str, *, dtype: str = 'float32', shardings: Any = None
) -> RewardModel:
  """Reads an exported reward model.

  Args:
    path: a folder that `configs/reward.py` exported, or another
      `…ForSequenceClassification` with one label.
    dtype: of parameters and activations: float32, bfloat16 or float16.
    shardings: one `jax.sharding.Sharding` for all parameters; None: the first
      device.

  Raises:
    UserError: no such folder, or it holds something else; naming the remedy.
  """
  check_dtype(dtype)
  source = open_reward_model(path)
  tokenizer = source.tokenizer  # refused, if it is, before the weights
  params = source.load(to_dtype(dtype), shardings)
  head = params.pop('reward_head')
  return RewardModel(
    path,
    Transformer(source.config, dtype=to_dtype(dtype)),
    {'model': params, 'reward_head': head},
    tokenizer,
  )


def head_scores(hidden: jax.Array, head: Any) -> jax.Array:
  """float32[...]: the head's score of each hidden state [..., D].

  Args:
    hidden: float[..., D].
    head: {'kernel': [1, D]}.
  """
  return jnp.einsum(
    '...d,od->...',
    hidden.astype(jnp.float32),
    head['kernel'].astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )


@functools.partial(jax.jit, static_argnames='model')
def _score_rows(params, tokens, lengths, *, model):
  hidden, _ = model.apply(
    {'params': params['model']}, tokens, lengths=lengths, method='trunk'
  )
  places = jnp.arange(tokens.shape[1])[None]
  scores = head_scores(hidden, params['reward_head'])
  return at_last_token(scores, places < lengths[:, None])
