"""Scans over blocks of tokens, along the last axis of the tokens.

A batch whose first axis is spread over devices stays where it is: each device
scans its own rows, and only sums cross between them.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp


def over_blocks(one, carry, xs, counts, block):
  """A scan of `one` over blocks of tokens, skipping tokens that do not count.

  Args:
    one: (carry, block of xs) -> (carry, outputs).
    carry: the initial carry.
    xs: tree of arrays [..., T, *].
    counts: bool[..., T].
    block: tokens in a block, at most.

  Returns:
    (carry, outputs [..., T, *]); outputs of blocks that were left out are 0.
  """
  shape = counts.shape
  order = jnp.argsort(~counts, axis=-1, stable=True)
  place = jnp.argsort(order, axis=-1)
  parts = split_tokens(_reordered(xs, order), shape, block)
  size = jax.tree.leaves(parts)[0].shape[len(shape)]
  used = -(-counts.sum(axis=-1).max() // size)

  def body(i, state):
    carry, out = state
    part = jax.tree.map(
      lambda x: lax.dynamic_index_in_dim(x, i, 0, False), parts
    )
    carry, new = one(carry, part)
    put = lambda x, n: lax.dynamic_update_index_in_dim(x, n, i, 0)
    return carry, jax.tree.map(put, out, new)

  first = jax.tree.map(lambda x: x[0], parts)
  _, shapes = jax.eval_shape(one, carry, first)
  blocks = jax.tree.leaves(parts)[0].shape[0]
  out = jax.tree.map(lambda x: jnp.zeros((blocks, *x.shape), x.dtype), shapes)
  carry, out = lax.fori_loop(0, used, body, (carry, out))
  out = jax.tree.map(lambda x: _join(x, shape), out)
  return carry, _reordered(out, place)


def _reordered(xs, order):
  """Each array [..., T, *] of a tree by int[..., T], places within its row."""

  def take(x):
    at = order.reshape(order.shape + (1,) * (x.ndim - order.ndim))
    return jnp.take_along_axis(x, at, axis=order.ndim - 1)

  return jax.tree.map(take, xs)


def split_tokens(xs, shape, block):
  """Cuts the last token axis: [..., T, *] -> [blocks, ..., T / blocks, *].

  Args:
    xs: tree of arrays, each of the tokens' `shape` and any trailing axes.
    shape: [..., T].
    block: tokens in a block, at most.
  """
  axis = len(shape) - 1
  length, others = shape[-1], math.prod(shape[:-1])
  blocks = -(-length // max(block // max(others, 1), 1))
  size = -(-length // max(blocks, 1))

  def cut(x):
    width = [(0, 0)] * x.ndim
    width[axis] = (0, blocks * size - length)
    x = jnp.pad(x, width)
    x = x.reshape(*shape[:-1], blocks, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)

  return jax.tree.map(cut, xs)


def _join(x, shape):
  """The inverse of `split_tokens` for one array; `shape` is the tokens'."""
  axis = len(shape) - 1
  x = jnp.moveaxis(x, 0, axis)
  x = x.reshape(*shape[:-1], -1, *x.shape[axis + 2 :])
  return lax.slice_in_dim(x, 0, shape[-1], axis=axis)
