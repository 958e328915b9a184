"""From a batch of packed pairs to a preference loss: what each loss reads."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.align.scores import score_completions
from llm.errors import UserError
from llm.losses import preference
from llm.losses.pairs import Sums
from llm.runs.checks import given_options
from llm.runs.train_model import TrainModel
from llm.train.step import LossFn

KTO = 'kto'  # of rated completions, not of pairs: see `llm.align.kto`
PRECOMPUTED, FROZEN, BASE = 'precomputed', 'frozen', 'base'
REFERENCES = (PRECOMPUTED, FROZEN, BASE)


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


@dataclasses.dataclass(frozen=True)
class PairLoss:
  """One of the losses.

  Attributes:
    formula: (pairs, **options) -> sums over the pairs.
    options: the fields of `config.loss` that it reads, keywords of `formula`.
    reference: True if it compares with a reference model.
  """

  formula: Callable[..., Sums]
  options: tuple[str, ...]
  reference: bool


LOSSES = {
  'dpo': PairLoss(
    lambda p, **o: preference.dpo_loss(*p.logprobs(), p.weights, **o),
    options=('beta',),
    reference=True,
  ),
  'cdpo': PairLoss(
    lambda p, **o: preference.cdpo_loss(*p.logprobs(), p.weights, **o),
    options=('beta', 'label_smoothing'),
    reference=True,
  ),
  'robust_dpo': PairLoss(
    lambda p, **o: preference.robust_dpo_loss(*p.logprobs(), p.weights, **o),
    options=('beta', 'label_smoothing'),
    reference=True,
  ),
  'hinge': PairLoss(
    lambda p, **o: preference.hinge_loss(*p.logprobs(), p.weights, **o),
    options=('beta',),
    reference=True,
  ),
  'ipo': PairLoss(
    lambda p, **o: preference.ipo_loss(
      *p.logprobs(), *p.tokens(), p.weights, **o
    ),
    options=('beta', 'logprobs'),
    reference=True,
  ),
  'dpo_norm': PairLoss(
    lambda p, **o: preference.dpo_norm_loss(
      *p.logprobs(), *p.tokens(), p.weights, **o
    ),
    options=('beta',),
    reference=True,
  ),
  'rpo': PairLoss(
    lambda p, **o: preference.rpo_loss(
      *p.logprobs(), p.chosen_tokens, p.weights, p.tokens_per_pair, **o
    ),
    options=('beta', 'alpha', 'nll'),
    reference=True,
  ),
  'simpo': PairLoss(
    lambda p, **o: preference.simpo_loss(
      p.chosen, p.rejected, *p.tokens(), p.weights, **o
    ),
    options=('beta', 'label_smoothing', 'gamma', 'gamma_ratio'),
    reference=False,
  ),
  'cpo': PairLoss(
    lambda p, **o: preference.cpo_loss(
      p.chosen,
      p.rejected,
      p.chosen_tokens,
      p.weights,
      p.tokens_per_pair,
      **o,
    ),
    options=('beta', 'label_smoothing', 'alpha'),
    reference=False,
  ),
  'orpo': PairLoss(
    lambda p, **o: preference.orpo_loss(
      p.chosen,
      p.rejected,
      *p.tokens(),
      p.weights,
      p.tokens_per_pair,
      prompt=p.prompt,
      prompt_tokens=p.prompt_tokens,
      **o,
    ),
    options=('beta',),
    reference=False,
  ),
}
# The fields of `config.loss` that are options of some loss.
OPTIONS = (
  'beta',
  'label_smoothing',
  'logprobs',
  'alpha',
  'nll',
  'gamma',
  'gamma_ratio',
  'desirable_weight',
  'undesirable_weight',
)


def needs_reference(name: str) -> bool:
  """True for losses that compare with a reference model."""
  return name == KTO or LOSSES[name].reference


def check_loss(loss: Any) -> dict[str, Any]:
  """The options of the loss that the config names, those that are set.

  Args:
    loss: `config.loss` of pairs.

  Raises:
    UserError: an unknown loss, a field that this loss does not read, or a
      value that has no meaning.
  """
  if loss.name not in LOSSES:
    names = ', '.join((*LOSSES, KTO))
    raise UserError(f'loss.name={loss.name!r}: use one of {names}')
  entry = LOSSES[loss.name]
  options = given_options(loss, OPTIONS, entry.options)
  try:  # the loss itself refuses values that have no meaning
    entry.formula(PairScores(*[jnp.zeros(1)] * 10), **options)
  except ValueError as error:
    raise UserError(f'loss.{error}') from None
  if loss.beta is not None and not 0.0 < loss.beta < math.inf:
    raise UserError(f'loss.beta={loss.beta}: use a number above 0')
  for name in ('alpha', 'gamma', 'gamma_ratio'):
    if loss[name] is not None and not 0.0 <= loss[name] < math.inf:
      raise UserError(f'loss.{name}={loss[name]}: use a number of at least 0')
  if loss.ld_alpha is not None and not 0.0 <= loss.ld_alpha <= 1.0:
    raise UserError(f'loss.ld_alpha={loss.ld_alpha}: use a number from 0 to 1')
  if loss.nll_prompt and loss.name != 'orpo':
    raise UserError(
      f'loss.nll_prompt=True: {loss.name} does not read it; orpo does'
    )
  return options


def tokens_per_pair(batch: dict[str, np.ndarray], loss: Any) -> np.ndarray:
  """float32[B]: tokens of the chosen completions by pair, over a whole batch.

  With `loss.nll_prompt` those of the prompts too.
  """
  chosen = batch['segment_ids'] % 2 == 1
  inside = chosen & (batch['positions'] > 0)
  counted = inside if loss.nll_prompt else inside & batch['loss_mask']
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
    options: of `check_loss`.

  Returns:
    A loss that reads `ref_logprobs` float[B, S] of the batch where the
    reference is precomputed, and `tokens_per_pair` float[B], of the step's
    whole batch.
  """
  entry = LOSSES[loss.name]

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
    if entry.reference:
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
    return entry.formula(pairs, **options)

  return loss_fn


def reference_logprobs(train_model, frozen, batch, loss) -> jax.Array:
  """float32[B, S]: from the batch, or of parameters that are not trained."""
  if 'ref_logprobs' in batch:
    return batch['ref_logprobs']
  params = frozen['base' if loss.reference == BASE else 'reference']
  scores = score_completions(
    train_model.model, {'params': params}, batch, loss.ld_alpha
  )
  return jax.lax.stop_gradient(scores.logprobs)


def _pairs(values: jax.Array) -> tuple[jax.Array, jax.Array]:
  """[B, S] of completions -> chosen [P] and rejected [P], P = B · S / 2."""
  pairs = values.reshape(-1, 2)
  return pairs[:, 0], pairs[:, 1]
