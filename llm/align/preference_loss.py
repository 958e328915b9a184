"""From a batch of packed pairs to a preference loss: what each loss reads."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.align.checks import needs_reference
from llm.align.reference import reference_logprobs
from llm.align.scores import score_completions
from llm.losses import preference
from llm.runs.train_model import TrainModel
from llm.train.step import LossFn


@dataclasses.dataclass(frozen=True)
class PairScores:
  """What the losses read of P pairs: float[P] each.

  Attributes:
    chosen, rejected: log-probabilities of the completions.
    chosen_tokens, rejected_tokens: how many tokens they have.
    weights: bool[P], whether there is a pair.
    tokens_per_pair: `tokens_per_pair` of the step's whole batch.
    ref_chosen, ref_rejected: the reference's log-probabilities; None for losses
      without a reference.
    prompt, prompt_tokens: log-probability and tokens of the prompt; None
      where `loss.nll_prompt` is off.
  """

  chosen: jax.Array
  rejected: jax.Array
  chosen_tokens: jax.Array
  rejected_tokens: jax.Array
  weights: jax.Array
  tokens_per_pair: jax.Array
  ref_chosen: jax.Array | None = None
  ref_rejected: jax.Array | None = None
  prompt: jax.Array | None = None
  prompt_tokens: jax.Array | None = None

  def logprobs(self) -> tuple[jax.Array, ...]:
    """Those of the completions and of the reference, as losses take them."""
    return self.chosen, self.rejected, self.ref_chosen, self.ref_rejected

  def tokens(self) -> tuple[jax.Array, jax.Array]:
    """How many tokens the chosen and the rejected completions have."""
    return self.chosen_tokens, self.rejected_tokens


# By name: (pairs, **options) -> sums over the pairs. The options of each are in
# `llm.losses.options`.
LOSSES = {
  'dpo': lambda p, **options: preference.dpo_loss(
    *p.logprobs(), p.weights, **options
  ),
  'cdpo': lambda p, **options: preference.cdpo_loss(
    *p.logprobs(), p.weights, **options
  ),
  'robust_dpo': lambda p, **options: preference.robust_dpo_loss(
    *p.logprobs(), p.weights, **options
  ),
  'hinge': lambda p, **options: preference.hinge_loss(
    *p.logprobs(), p.weights, **options
  ),
  'ipo': lambda p, **options: preference.ipo_loss(
    *p.logprobs(), *p.tokens(), p.weights, **options
  ),
  'dpo_norm': lambda p, **options: preference.dpo_norm_loss(
    *p.logprobs(), *p.tokens(), p.weights, **options
  ),
  'rpo': lambda p, **options: preference.rpo_loss(
    *p.logprobs(), p.chosen_tokens, p.weights, p.tokens_per_pair, **options
  ),
  'simpo': lambda p, **options: preference.simpo_loss(
    p.chosen, p.rejected, *p.tokens(), p.weights, **options
  ),
  'cpo': lambda p, **options: preference.cpo_loss(
    p.chosen,
    p.rejected,
    p.chosen_tokens,
    p.weights,
    p.tokens_per_pair,
    **options,
  ),
  'orpo': lambda p, **options: preference.orpo_loss(
    p.chosen,
    p.rejected,
    *p.tokens(),
    p.weights,
    p.tokens_per_pair,
    prompt=p.prompt,
    prompt_tokens=p.prompt_tokens,
    **options,
  ),
}


def tokens_per_pair(batch: dict[str, np.ndarray], loss: Any) -> np.ndarray:
  """float32[B]: tokens of the chosen completions by pair, over a whole batch.

  With `loss.nll_prompt` those of the prompts too.
  """
  chosen = batch['segment_ids'] % 2 == 1
  inside = chosen & (batch['positions'] > 0)
  counted = inside if loss.nll_prompt else inside & (batch['loss_mask'] > 0)
  pairs = (batch['examples'] >= 0).sum() / 2
  mean = counted.sum() / max(pairs, 1)
  return np.full(len(batch['tokens']), mean, np.float32)


def make_preference_loss(
  train_model: TrainModel, loss: Any, options: dict[str, Any]
) -> LossFn:
  """The loss that `config.loss` names, on batches of pairs.

  Args:
    train_model: the model.
    loss: `config.loss`.
    options: of `checks.check_pair_loss`.

  Returns:
    A loss that reads `ref_logprobs` float[B, S] of the batch where the
    reference is precomputed, and `tokens_per_pair` float[B], of the step's
    whole batch.
  """
  formula, compares = LOSSES[loss.name], needs_reference(loss.name)

  def loss_fn(params, frozen, batch, keys):
    del keys  # no random numbers
    variables = train_model.variables(params, frozen)
    scores = score_completions(
      train_model.model,
      variables,
      batch,
      ld_alpha=loss.ld_alpha,
      prompts=loss.nll_prompt,
    )
    more = {}
    if compares:
      reference = reference_logprobs(train_model, frozen, batch, loss)
      more['ref_chosen'], more['ref_rejected'] = _pairs(reference)
    if loss.nll_prompt:
      more['prompt'] = _pairs(scores.prompts)[0]
      more['prompt_tokens'] = _pairs(scores.prompt_tokens)[0]
    chosen, rejected = _pairs(scores.logprobs)
    chosen_tokens, rejected_tokens = _pairs(scores.tokens)
    pairs = PairScores(
      chosen,
      rejected,
      chosen_tokens,
      rejected_tokens,
      weights=(chosen_tokens > 0) & (rejected_tokens > 0),
      tokens_per_pair=jnp.repeat(
        batch['tokens_per_pair'], scores.tokens.shape[1] // 2
      ),
      **more,
    )
    return formula(pairs, **options)

  return loss_fn


def _pairs(values: jax.Array) -> tuple[jax.Array, jax.Array]:
  """[B, S] of completions -> chosen [P] and rejected [P], P = B · S / 2."""
  pairs = values.reshape(-1, 2)
  return pairs[:, 0], pairs[:, 1]
