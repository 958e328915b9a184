"""What RL trains: a policy, for PPO with a value head; and its reference."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llm.rl.algorithms import Algorithm
from llm.runs.train_model import TrainModel


def with_value_head(algorithm: Algorithm, width: int, params: Any) -> Any:
  """What is trained; for PPO with a value head, whose values are 0 at first.

  Args:
    algorithm: of the run.
    width: D.
    params: of the policy.
  """
  if algorithm.scale != 'gae':
    return params
  head = {'kernel': jnp.zeros((width,)), 'bias': jnp.zeros(())}
  return {'policy': params, 'value_head': head}


def policy_of(params: Any) -> Any:
  """The language model's part of what is trained."""
  return params['policy'] if 'value_head' in params else params


def with_reference(algorithm: Algorithm, train_model: TrainModel) -> TrainModel:
  """The model, with a copy of itself before training where there is a KL.

  Under fresh adapters that is the base, which is there anyway.
  """
  spec = train_model.spec
  fresh = spec.lora is not None and spec.adapters is None
  if not algorithm.options.get('kl_coef') or fresh:
    return train_model
  # A copy: the first parameters are donated.
  reference = jax.tree.map(jnp.copy, train_model.folded(train_model.params))
  return dataclasses.replace(
    train_model, frozen={**train_model.frozen, 'reference': reference}
  )
