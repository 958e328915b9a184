"""From a batch of packed pairs to a preference loss: what each loss reads."""

from collections.abc import Callable
import dataclasses
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.errors import UserError
from llm.losses import preference
from llm.losses.chunked import chunked_logprobs
from llm.losses.language import next_token_targets
from llm.losses.sequences import packed_sequence_logprobs
from llm.models.transformer import output_weight
from llm.runs.checks import given_options
from llm.runs.train_model import TrainModel
from llm.train.step import LossFn

LOSSES = {
  'dpo': preference.dpo_loss,
  'cdpo': preference.cdpo_loss,
  'robust_dpo': preference.robust_dpo_loss,
  'hinge': preference.hinge_loss,
  'ipo': preference.ipo_loss,
  'dpo_norm': preference.dpo_norm_loss,
  'rpo': preference.rpo_loss,
  'simpo': preference.simpo_loss,
  'cpo': preference.cpo_loss,
  'orpo': preference.orpo_loss,
}
# The fields of `config.loss` that are keywords of some loss.
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
KTO = 'kto'  # of rated answers, not of pairs: `llm.tasks.kto`
PRECOMPUTED, FROZEN, BASE = 'precomputed', 'frozen', 'base'
REFERENCES = (PRECOMPUTED, FROZEN, BASE)


@dataclasses.dataclass(frozen=True)
class Scores:
  """Sums over the answers of packed rows, float32[B, S] each.

  Segment 2i of a row is a chosen answer and 2i + 1 the rejected one beside it.
  `prompts` and `prompt_tokens` are those of the tokens before the answers.
  """

  logprobs: jax.Array
  tokens: jax.Array
  prompts: jax.Array
  prompt_tokens: jax.Array


def needs_reference(name: str) -> bool:
  """True for losses that compare with a reference model."""
  return (
    name == KTO or 'ref_chosen' in inspect.signature(LOSSES[name]).parameters
  )


def loss_options(loss: Any) -> dict[str, Any]:
  """The keywords of the loss that the config names, those that are set.

  Raises:
    UserError: an unknown loss, or a field that this loss does not read.
  """
  if loss.name not in LOSSES:
    names = ', '.join((*LOSSES, KTO))
    raise UserError(f'loss.name={loss.name!r}: use one of {names}')
  known = inspect.signature(LOSSES[loss.name]).parameters
  given = given_options(loss, OPTIONS, [n for n in OPTIONS if n in known])
  pairs = jnp.zeros(1)
  try:  # values that have no meaning are refused by the loss itself
    _call(loss, given, {n: pairs for n in known if n not in OPTIONS})
  except ValueError as error:
    raise UserError(f'loss.{error}') from None
  return given


def check_loss(loss: Any) -> None:
  """Refuses a `config.loss` of pairs that has no meaning."""
  loss_options(loss)
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


def tokens_per_pair(batch: dict[str, np.ndarray], loss: Any) -> np.ndarray:
  """float32[B]: tokens of the chosen answers by pair, over a whole batch.

  With `loss.nll_prompt` those of the prompts too.
  """
  chosen = batch['segment_ids'] % 2 == 1
  inside = chosen & (batch['positions'] > 0)
  counted = inside if loss.nll_prompt else inside & batch['loss_mask']
  pairs = (batch['examples'] >= 0).sum() / 2
  mean = counted.sum() / max(pairs, 1)
  return np.full(len(batch['tokens']), mean, np.float32)


def score_completions(
  model: Any,
  variables: Any,
  batch: Any,
  ld_alpha: float | None = None,
  prompts: bool = False,
) -> Scores:
  """Log-probabilities of all answers of a batch.

  Args:
    model: the Transformer.
    variables: what it runs on.
    batch: of `pipeline.make_source(group=2)`.
    ld_alpha: weight of the part of an answer that is longer than the other one
      (LD-DPO, 2409.06411); None weighs all alike.
    prompts: those of the prompts are wanted too; else they are 0.
  """
  segments = batch['examples'].shape[1]
  hidden, _ = model.apply(
    variables,
    batch['tokens'],
    positions=batch['positions'],
    segment_ids=batch['segment_ids'],
    method='trunk',
  )
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


def make_preference_loss(train_model: TrainModel, loss: Any) -> LossFn:
  """The loss that `config.loss` names, on batches of pairs.

  Reads `ref_logprobs` float[B, S] of the batch where the reference is
  precomputed, and `tokens_per_pair` float[B], of the step's whole batch.
  """
  options = loss_options(loss)

  def loss_fn(params, frozen, batch, keys):
    del keys  # nothing is drawn
    variables = train_model.variables(params, frozen)
    scores = score_completions(
      train_model.model,
      variables,
      batch,
      ld_alpha=loss.ld_alpha,
      prompts=loss.nll_prompt,
    )
    chosen, rejected = _pairs(scores.logprobs)
    chosen_tokens, rejected_tokens = _pairs(scores.tokens)
    inputs = {
      'chosen': chosen,
      'rejected': rejected,
      'chosen_tokens': chosen_tokens,
      'rejected_tokens': rejected_tokens,
      'weights': (chosen_tokens > 0) & (rejected_tokens > 0),
    }
    if needs_reference(loss.name):
      reference = reference_logprobs(train_model, frozen, batch, loss)
      inputs['ref_chosen'], inputs['ref_rejected'] = _pairs(reference)
    if loss.nll_prompt:
      inputs['prompt'] = _pairs(scores.prompts)[0]
      inputs['prompt_tokens'] = _pairs(scores.prompt_tokens)[0]
    pairs = scores.tokens.shape[1] // 2
    inputs['tokens_per_pair'] = jnp.repeat(batch['tokens_per_pair'], pairs)
    return _call(loss, options, inputs)

  return loss_fn


def reference_logprobs(train_model, frozen, batch, loss) -> jax.Array:
  """float32[B, S]: from the batch, or from parameters that nobody trains."""
  if 'ref_logprobs' in batch:
    return batch['ref_logprobs']
  params = frozen['base' if loss.reference == BASE else 'reference']
  scores = score_completions(
    train_model.model, {'params': params}, batch, loss.ld_alpha
  )
  return jax.lax.stop_gradient(scores.logprobs)


def _call(loss, options, inputs):
  """The loss on those of the inputs that it has a name for."""
  function: Callable = LOSSES[loss.name]
  known = inspect.signature(function).parameters
  inputs = {k: v for k, v in inputs.items() if k in known}
  return function(**inputs, **options)


def _pairs(values: jax.Array) -> tuple[jax.Array, jax.Array]:
  """[B, S] of answers -> chosen [P] and rejected [P], P = B · S / 2."""
  pairs = values.reshape(-1, 2)
  return pairs[:, 0], pairs[:, 1]


def _tail_weights(completion, ids, segments: int, alpha: float) -> jax.Array:
  """`sequences.tail_weights` in packed rows: float32[B, T]."""
  _, tokens = packed_sequence_logprobs(completion, completion, ids, segments)
  pairs = tokens.reshape(tokens.shape[0], -1, 2).min(axis=-1)
  shared = jnp.repeat(pairs, 2, axis=1)
  before = jnp.cumsum(tokens, axis=1) - tokens  # answers' tokens of others
  index = jnp.maximum(ids - 1, 0)
  place = jnp.cumsum(completion, axis=1) - jnp.take_along_axis(before, index, 1)
  tail = place > jnp.take_along_axis(shared, index, 1)
  return jnp.where(tail, alpha, 1.0).astype(jnp.float32)
