"""One optimizer step as a pure function of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm.train.state import TrainState

LossFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array, dict]]


def make_train_step(
  loss_fn: LossFn, tx: optax.GradientTransformation
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
  """Returns `step(state, batch) -> (state, metrics)`, to be jitted by the edge.

  The loss is the weighted mean over the whole batch. It is differentiated as a
  sum and divided by the weights afterwards, so that a batch in parts gives the
  same gradient. A batch without any weight leaves a zero gradient, not a NaN.

  Args:
    loss_fn: `(params, batch, rng) -> (loss_sum, weight_sum, metrics)`, where
      metrics are sums over the weights too.
    tx: optax transformation; `state.opt_state` belongs to it.

  Returns:
    The step. Its metrics, all float32[]: `loss` (mean), `tokens` (weight of
    the batch), `grad_norm` (global, before clipping) and each metric of the
    loss as a mean.
  """

  def summed_loss(params, batch, rng):
    loss_sum, weight_sum, metrics = loss_fn(params, batch, rng)
    return loss_sum, (weight_sum, metrics)

  def step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    (loss_sum, (weight_sum, metrics)), grads = jax.value_and_grad(
      summed_loss, has_aux=True
    )(state.params, batch, rng)
    scale = jnp.where(weight_sum > 0, 1.0 / jnp.maximum(weight_sum, 1e-30), 0.0)
    grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    report = {name: value * scale for name, value in metrics.items()}
    report['loss'] = loss_sum * scale
    report['tokens'] = weight_sum
    report['grad_norm'] = optax.tree.norm(grads)
    return TrainState(params, opt_state, state.step + 1, state.rng), report

  return step
