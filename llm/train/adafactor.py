"""Adafactor (1804.04235) over the matrices that the parameters hold."""

from typing import Any

import jax
import optax

from llm.train import matrices

_MIN_FACTORED = 32  # smaller sides keep a full second moment: it costs little


def scale_by_adafactor() -> optax.GradientTransformation:
  """Gradients to updates whose RMS is at most the parameter's own.

  The second moment is factored into rows and columns, with decay 1 - t^-0.8;
  the update is clipped to RMS 1 and multiplied by max(0.001, RMS(parameter)),
  so that the learning rate is relative to the weights. There is no momentum.
  All of it is done for each matrix by itself (`matrices.split`), by optax.

  Returns:
    A transformation whose update needs the params. Its state has a tuple of
    optax states, one for each kind of matrix, at each parameter.
  """
  tx = optax.chain(
    optax.scale_by_factored_rms(min_dim_size_to_factor=_MIN_FACTORED),
    optax.clip_by_block_rms(1.0),
    optax.scale_by_param_block_rms(),
  )

  def init(params):
    def one(path, p):
      parts = matrices.split(matrices.path_name(path), p)
      return tuple(jax.vmap(tx.init)(part) for part in parts)

    return jax.tree_util.tree_map_with_path(one, params)

  def update(grads, state, params=None):
    def one(path, g, states, p):
      path = matrices.path_name(path)
      parts = zip(
        matrices.split(path, g), states, matrices.split(path, p), strict=True
      )
      done = [jax.vmap(tx.update)(*part) for part in parts]
      updates = matrices.join(path, [u for u, _ in done], g.shape)
      return updates.astype(g.dtype), tuple(s for _, s in done)

    both = jax.tree_util.tree_map_with_path(one, grads, state, params)
    return _unzip(grads, both)

  return optax.GradientTransformation(init, update)


def _unzip(tree: Any, pairs: Any) -> tuple[Any, Any]:
  """A tree of pairs at the leaves of `tree` -> a pair of trees."""
  first = jax.tree.map(lambda _, pair: pair[0], tree, pairs)
  return first, jax.tree.map(lambda _, pair: pair[1], tree, pairs)
