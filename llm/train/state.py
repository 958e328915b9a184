"""The train state: all that a run needs to resume bit for bit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """A pytree; `make_train_step` returns the next one.

  Attributes:
    params: what is trained, a nested dict of arrays (all parameters, or only
      the adapters).
    opt_state: of the optax transformation.
    step: int32[], steps done, skipped ones included.
    rng: typed key of the run; it never changes, see `step_key`.
    data_position: int32[], batches taken from the data.
    skipped: int32[], steps left out because a gradient was not finite.
    bad_streak: int32[], how many of the last steps were left out in a row.
    ema: exponential moving average of `params`, or None.
  """

  params: Any
  opt_state: Any
  step: jax.Array
  rng: jax.Array
  data_position: jax.Array
  skipped: jax.Array
  bad_streak: jax.Array
  ema: Any = None


def init_state(
  params: Any,
  tx: optax.GradientTransformation,
  rng: jax.Array,
  *,
  ema: bool = False,
) -> TrainState:
  """The state before the first step.

  Args:
    params: what is to be trained.
    tx: optax transformation.
    rng: typed key.
    ema: keep a moving average of the parameters; it starts as a copy of them.
  """
  zero = lambda: jnp.zeros((), jnp.int32)  # no two leaves share a buffer
  return TrainState(
    params=params,
    opt_state=tx.init(params),
    step=zero(),
    rng=rng,
    data_position=zero(),
    skipped=zero(),
    bad_streak=zero(),
    ema=jax.tree.map(jnp.copy, params) if ema else None,
  )


def step_key(state: TrainState) -> jax.Array:
  """Key of the next step: a function of the run's key and the step alone."""
  return jax.random.fold_in(state.rng, state.step)
