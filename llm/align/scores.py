"""Log-probabilities of the completions in packed rows."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llm.align.hidden import hidden_states
from llm.losses.chunked import chunked_logprobs
from llm.losses.language import next_token_targets
from llm.losses.sequences import packed_sequence_logprobs
from llm.models.transformer import output_weight
from llm.parallel.mesh import on_mesh
from llm.runs.train_model import TrainModel


@dataclasses.dataclass(frozen=True)
class Scores:
  """Sums over the completions of packed rows, float32[B, S] each.

  Of pairs, segment 2i of a row is a chosen completion and 2i + 1 the rejected
  one beside it. `prompts` and `prompt_tokens` are those of the tokens before
  the completions.
  """

  logprobs: jax.Array
  tokens: jax.Array
  prompts: jax.Array
  prompt_tokens: jax.Array


def score_completions(
  model: Any,
  variables: Any,
  batch: Any,
  ld_alpha: float | None = None,
  prompts: bool = False,
) -> Scores:
  """Log-probabilities of all completions of a batch.

  Args:
    model: the Transformer.
    variables: what it runs on.
    batch: of `pipeline.make_source`, with `examples`.
    ld_alpha: weight of the part of a completion that is longer than the other
      one of its pair (LD-DPO, 2409.06411); None weighs all alike.
    prompts: compute those of the prompts too; else they are 0.
  """
  segments = batch['examples'].shape[1]
  hidden = hidden_states(model, variables, batch)
  everything = jnp.ones_like(batch['loss_mask'])
  targets, inside = next_token_targets(
    batch['tokens'], everything, batch['segment_ids']
  )
  _, completion = next_token_targets(
    batch['tokens'], batch['loss_mask'], batch['segment_ids']
  )
  logprobs = chunked_logprobs(
    hidden,
    output_weight(variables['params'], model.config),
    targets,
    counts=inside if prompts else completion,
    cap=model.config.final_soft_cap,
  )
  ids = batch['segment_ids']
  weights = None
  if ld_alpha is not None:
    weights = _tail_weights(completion, ids, segments, ld_alpha)
  sums, tokens = packed_sequence_logprobs(
    logprobs, completion, ids, segments, weights
  )
  of_prompts, prompt_tokens = packed_sequence_logprobs(
    logprobs, inside - completion, ids, segments
  )
  return Scores(sums, tokens, of_prompts, prompt_tokens)


def make_score(train_model: TrainModel, ld_alpha: float | None) -> Callable:
  """Jitted (trained tree, frozen, batch) -> `Scores.logprobs` of the model."""

  def score(params, frozen, batch):
    variables = train_model.variables(params, frozen)
    return score_completions(
      train_model.model, variables, batch, ld_alpha
    ).logprobs

  return on_mesh(jax.jit(score), train_model.mesh)


def _tail_weights(completion, ids, segments: int, alpha: float) -> jax.Array:
  """`sequences.tail_weights` in packed rows: float32[B, T]."""
  _, tokens = packed_sequence_logprobs(completion, completion, ids, segments)
  pairs = tokens.reshape(tokens.shape[0], -1, 2).min(axis=-1)
  shared = jnp.repeat(pairs, 2, axis=1)
  # How many tokens of other completions come before each of them.
  before = jnp.cumsum(tokens, axis=1) - tokens
  index = jnp.maximum(ids - 1, 0)
  place = jnp.cumsum(completion, axis=1) - jnp.take_along_axis(before, index, 1)
  tail = place > jnp.take_along_axis(shared, index, 1)
  return jnp.where(tail, alpha, 1.0).astype(jnp.float32)
