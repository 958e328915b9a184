"""The train state: all that a run has to know to go on bit for bit."""

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
    params: nested dict of arrays, as the model reads them.
    opt_state: of the optax transformation.
    step: int32[], optimizer steps done.
    rng: typed key of the run; step i uses `fold_in(rng, i)`, so the key itself
      never changes.
  """

  params: Any
  opt_state: Any
  step: jax.Array
  rng: jax.Array


def init_state(
  params: Any, tx: optax.GradientTransformation, rng: jax.Array
) -> TrainState:
  """The state before the first step."""
  return TrainState(params, tx.init(params), jnp.zeros((), jnp.int32), rng)
