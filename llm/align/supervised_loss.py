"""The loss of pretraining and fine-tuning, from a batch to three sums."""

import jax

from llm.align.hidden import hidden_states
from llm.losses.chunked import chunked_cross_entropy_loss
from llm.losses.language import next_token_targets
from llm.models.transformer import output_weight
from llm.runs.train_model import TrainModel
from llm.train.neftune import neftune_noise
from llm.train.step import LossFn


def make_loss(train_model: TrainModel) -> LossFn:
  """The loss as it is evaluated, without random numbers."""

  def loss_fn(params, frozen, batch, keys):
    del keys
    variables = train_model.variables(params, frozen)
    return _cross_entropy(train_model, variables, batch, None)

  return loss_fn


def make_training_loss(train_model: TrainModel, neftune_alpha: float) -> LossFn:
  """The loss as it is trained: with LoRA's dropout and NEFTune's noise.

  Args:
    train_model: the model.
    neftune_alpha: size of the noise on the embeddings; 0 is none.
  """
  model = train_model.model

  def loss_fn(params, frozen, batch, keys):
    fold = lambda i: jax.vmap(jax.random.fold_in, (0, None))(keys, i)
    variables = train_model.variables(params, frozen, fold(0))
    noise = None
    if neftune_alpha:
      noise = neftune_noise(
        fold(1),
        batch['segment_ids'],
        model.config.embed_dim,
        neftune_alpha,
        model.dtype,
      )
    return _cross_entropy(train_model, variables, batch, noise)

  return loss_fn


def _cross_entropy(train_model, variables, batch, noise):
  model = train_model.model
  hidden = hidden_states(model, variables, batch, embed_noise=noise)
  targets, weights = next_token_targets(
    batch['tokens'], batch['loss_mask'], batch['segment_ids']
  )
  loss_sum, weight_sum, sums = chunked_cross_entropy_loss(
    hidden,
    output_weight(variables['params'], model.config),
    targets,
    weights,
    cap=model.config.final_soft_cap,
  )
  return loss_sum, weight_sum, {'accuracy': sums['correct']}
