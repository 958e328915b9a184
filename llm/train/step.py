"""One optimizer step as a pure function of state and batch."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from llm.train.state import TrainState

# (params, frozen, batch, keys) -> (loss_sum, weight_sum, metrics)
LossFn = Callable[
  [Any, Any, Any, jax.Array], tuple[jax.Array, jax.Array, dict[str, jax.Array]]
]
Metrics = dict[str, jax.Array]


def make_train_step(
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  *,
  microbatches: int = 1,
  clip_norm: float = 0.0,
  ema_decay: float = 0.0,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """Returns `step(state, batch, rng, frozen=None) -> (state, metrics)`.

  The loss of a step is the weighted mean over its whole batch. It is
  differentiated as a sum, summed over the microbatches and divided by the
  weights of them all, once: any number of microbatches gives the same
  gradient, however unequal their weights.

  A step whose loss or gradient is not finite leaves parameters, optimizer and
  average as they were and is counted in `skipped` and `bad_streak`. A batch
  without any weight changes nothing either; it is not counted.

  Args:
    loss_fn: `(params, frozen, batch, keys) -> (loss_sum, weight_sum,
      metrics)`, all sums over the rows; `keys` is one typed key per row, so
      that a row's random numbers do not depend on the rows beside it.
    tx: optax transformation; `state.opt_state` belongs to it.
    microbatches: k; the batch is taken in k parts of equal size, one after
      the other: part i has rows i, i + k, i + 2k, …, so that rows that are
      sharded over devices stay where they are.
    clip_norm: largest global norm of the gradient; 0 is no limit. A longer
      one is scaled to it (Pascanu et al., 1211.5063).
    ema_decay: d of `ema = d ema + (1 - d) params`; read only where the state
      has an average.

  Returns:
    The step, to be jitted by the edge with its state donated. `batch` is a
    pytree of arrays [B, …] with B a multiple of k, `rng` the step's typed key
    (`state.step_key`), `frozen` what the loss needs and nobody trains. Its
    metrics, all float32[]: `loss` (mean), `weight` (of the whole batch),
    `grad_norm` (global, before clipping), `skipped` and `bad_streak` (as in
    the new state) and each metric of the loss, divided by the weight.
  """

  def summed_loss(params, frozen, batch, keys):
    loss_sum, weight_sum, metrics = loss_fn(params, frozen, batch, keys)
    return loss_sum, (weight_sum, metrics)

  gradient = jax.value_and_grad(summed_loss, has_aux=True)

  def step(state, batch, rng, frozen=None):
    total, grads = _accumulate(
      gradient,
      state.params,
      frozen,
      (batch, _row_keys(rng, batch)),
      microbatches,
    )
    loss_sum, (weight_sum, metrics) = total
    mean = jnp.where(weight_sum > 0, 1.0 / jnp.maximum(weight_sum, 1e-30), 0.0)
    norm = optax.tree.norm(grads).astype(jnp.float32) * mean
    scale = mean
    if clip_norm:
      scale = mean * jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-30))
    good = jnp.isfinite(loss_sum) & jnp.isfinite(norm)

    def update(kept):
      return _update(tx, ema_decay, kept, grads, scale)

    kept = (state.params, state.opt_state, state.ema)
    kept = lax.cond(good & (weight_sum > 0), update, lambda x: x, kept)
    state = _advance(state, kept, good)
    report = {name: value * mean for name, value in metrics.items()}
    report |= {
      'loss': loss_sum * mean,
      'weight': weight_sum,
      'grad_norm': norm,
      'skipped': state.skipped.astype(jnp.float32),
      'bad_streak': state.bad_streak.astype(jnp.float32),
    }
    return state, report

  return step


def make_eval_step(loss_fn: LossFn) -> Callable[..., dict[str, jax.Array]]:
  """Returns `eval_step(params, batch, rng, frozen=None) -> sums`.

  The sums of the loss's metrics plus `loss` and `weight`; added up over the
  batches and divided by the total weight they are exact means.
  """

  def eval_step(params, batch, rng, frozen=None):
    keys = _row_keys(rng, batch)
    loss_sum, weight_sum, metrics = loss_fn(params, frozen, batch, keys)
    return {**metrics, 'loss': loss_sum, 'weight': weight_sum}

  return eval_step


def _row_keys(rng, batch):
  """A typed key for each row of the batch."""
  rows = jax.tree.leaves(batch)[0].shape[0]
  return jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(rows))


def _update(tx, ema_decay, kept, grads, scale):
  """(params, opt_state, ema) after a step along `scale` · `grads`."""
  params, opt_state, ema = kept
  scaled = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
  updates, opt_state = tx.update(scaled, opt_state, params)
  params = optax.apply_updates(params, updates)
  if ema is not None:
    ema = optax.incremental_update(params, ema, 1.0 - ema_decay)
  return params, opt_state, ema


def _advance(state, kept, good):
  """The state of the next step; `good` where the gradient was finite."""
  params, opt_state, ema = kept
  return dataclasses.replace(
    state,
    params=params,
    opt_state=opt_state,
    ema=ema,
    step=state.step + 1,
    data_position=state.data_position + 1,
    skipped=state.skipped + jnp.where(good, 0, 1),
    bad_streak=jnp.where(good, 0, state.bad_streak + 1),
  )


def _accumulate(gradient, params, frozen, rows, microbatches):
  """Sums value and gradient over the microbatches, the gradient in float32."""
  if microbatches == 1:
    return gradient(params, frozen, *rows)
  count = jax.tree.leaves(rows)[0].shape[0]
  if count % microbatches:
    raise ValueError(
      f'a batch of {count} rows does not divide into microbatches='
      f'{microbatches}'
    )

  def split(x):
    x = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:])
    return jnp.swapaxes(x, 0, 1)

  parts = jax.tree.map(split, rows)
  first = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(gradient, params, frozen, *first)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
    shapes,
  )

  def add(total, part):
    new = gradient(params, frozen, *part)
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, new), None

  total, _ = lax.scan(add, zeros, parts)
  return total
