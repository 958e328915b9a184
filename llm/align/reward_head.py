"""What a reward model's run trains: the transformer and a scalar head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llm.parallel.sharding import param_shardings
from llm.runs.train_model import TrainModel


def with_head(params: Any, width: int) -> dict[str, Any]:
  """What is trained: no output table, and a head whose scores are 0 at first.

  Args:
    params: the transformer's, or adapters.
    width: D.
  """
  model = {k: v for k, v in params.items() if k != 'lm_head'}
  return {
    'model': model,
    'reward_head': {'kernel': jnp.zeros((1, width), jnp.float32)},
  }


def with_reward_head(train_model: TrainModel) -> TrainModel:
  """The model with the parameters of `with_head`, on its mesh."""
  width = train_model.spec.config.embed_dim
  params = with_head(train_model.params, width)
  head = params['reward_head']
  head = jax.device_put(head, param_shardings(head, train_model.mesh))
  frozen = train_model.frozen
  if 'base' in frozen:
    base = {k: v for k, v in frozen['base'].items() if k != 'lm_head'}
    frozen = {**frozen, 'base': base}
  return dataclasses.replace(
    train_model, params=params | {'reward_head': head}, frozen=frozen
  )
