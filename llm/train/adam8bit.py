"""Adam with moments of eight bits (Dettmers et al., 2110.02861).

A moment is cut into blocks of 256 values. A block keeps its largest magnitude
in float32 and each value's share of it as one of 256 numbers, which lie closer
the smaller they are: 2.03 bytes per parameter for both moments instead of 8.
The arithmetic of a step is in float32.

Two things differ from the paper, both in the second moment. It is stored as
its square root, whose range is half as many decades; and it is rounded at
random, in proportion to the distances. Rounded to nearest it would not fall at
all: a step multiplies it by b2 = 0.999, and the 256 numbers are 1% apart and
more.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

BLOCK = 256
MIN_SIZE = 4096  # smaller parameters keep float32 moments
_DECADES = 7
_ZERO = 127  # code of 0 where numbers are signed


class Adam8bitState(NamedTuple):
  """Step count and both moments; each tree has the structure of the params.

  Codes are uint8 in the shape of the parameter, or float32 values themselves
  where the parameter is small. Scales are float32 [..., D / 256] where the
  parameter's last axis D is a multiple of 256, else flat; [] where small.
  `nu` is the root of the second moment.
  """

  count: jax.Array
  mu_codes: Any
  mu_scales: Any
  nu_codes: Any
  nu_scales: Any


def scale_by_adam8bit(
  b1: float, b2: float, eps: float = 1e-8
) -> optax.GradientTransformation:
  """Adam's update from moments that are stored in eight bits.

  The random numbers of the rounding are a function of the step's number and of
  the parameter's place in the tree, so a resumed run repeats them.

  Args:
    b1: decay of the mean gradient.
    b2: decay of the mean square.
    eps: added to the root of the mean square.
  """

  def init(params):
    zeros = [jnp.zeros(p.shape, jnp.float32) for p in jax.tree.leaves(params)]
    moments = [(*quantize(x, signed=True), *quantize(x)) for x in zeros]
    return _state(jnp.zeros((), jnp.int32), params, moments)

  def update(grads, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    correct1 = 1.0 - b1 ** count.astype(jnp.float32)
    correct2 = 1.0 - b2 ** count.astype(jnp.float32)
    rng = jax.random.fold_in(jax.random.key(0), count)
    leaves, treedef = jax.tree.flatten(grads)
    old = [treedef.flatten_up_to(tree) for tree in state[1:]]
    updates, moments = [], []
    for i, g in enumerate(leaves):
      mu_codes, mu_scales, nu_codes, nu_scales = (tree[i] for tree in old)
      g32 = g.astype(jnp.float32)
      mu = dequantize(mu_codes, mu_scales, signed=True)
      mu = b1 * mu + (1.0 - b1) * g32
      root = dequantize(nu_codes, nu_scales)
      root = jnp.sqrt(b2 * root**2 + (1.0 - b2) * g32**2)
      u = (mu / correct1) / (root / jnp.sqrt(correct2) + eps)
      updates.append(u.astype(g.dtype))
      rounding = jax.random.fold_in(rng, i)
      moments.append(
        (*quantize(mu, signed=True), *quantize(root, rng=rounding))
      )
    return treedef.unflatten(updates), _state(count, grads, moments)

  return optax.GradientTransformation(init, update)


def _state(count, params, moments):
  treedef = jax.tree.structure(params)
  trees = [treedef.unflatten([m[i] for m in moments]) for i in range(4)]
  return Adam8bitState(count, *trees)


def quantize(
  x: jax.Array, *, signed: bool = False, rng: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """(codes, scales) of float32 values of any shape; see `Adam8bitState`.

  The numbers that a code stands for, as shares of the block's largest
  magnitude, are the dynamic tree of 2110.02861 §1.3: decade i of seven, from
  10^(i-7) to 10^(i-6), is cut into 2^i equal parts for either sign, or 2^(i+1)
  where there is none, with a number in the middle of each; and 0 and 1. Codes
  count them from the least. A value above 0 never becomes 0 where there is no
  sign, so that no denominator vanishes.

  Args:
    x: the values; at least 0 where not `signed`.
    signed: whether there are values below 0.
    rng: key; a value goes to one of its two neighbours with the value as the
      expectation. None: to the nearer one.
  """
  if x.size < MIN_SIZE:
    return x, jnp.zeros((), jnp.float32)
  blocks = _to_blocks(x)
  scales = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True)
  shares = blocks / jnp.where(scales > 0, scales, 1.0)
  sizes = jnp.abs(shares)
  lower, fraction = _rank_below(sizes, signed)
  if rng is None:
    rank = lower + (fraction > 0.5)
  else:
    rank = lower + (jax.random.uniform(rng, shares.shape) < fraction)
  if signed:
    # -1 alone has no code; its neighbour is 0.4% away.
    negative = _ZERO - jnp.minimum(rank, _ZERO)
    codes = jnp.where(shares < 0, negative, _ZERO + rank)
  else:
    codes = jnp.where(sizes > 0, jnp.maximum(rank, 1), 0)
  codes = _from_blocks(codes.astype(jnp.uint8), x.shape)
  return codes, scales[..., 0]


def dequantize(
  codes: jax.Array, scales: jax.Array, *, signed: bool = False
) -> jax.Array:
  """float32 values in the shape of the codes: `quantize` backwards."""
  if codes.dtype != jnp.uint8:
    return codes
  ranks = _to_blocks(codes).astype(jnp.int32)
  if signed:
    ranks = ranks - _ZERO
    shares = _number(jnp.abs(ranks), signed) * jnp.sign(ranks)
  else:
    shares = _number(ranks, signed)
  return _from_blocks(shares * scales[..., None], codes.shape)


def _number(rank, signed):
  """The share of rank 0 (0.0), 1, … of those that are not negative."""
  index = rank if signed else rank + 1  # decade i begins at `first[i]`
  share = jnp.zeros(rank.shape, jnp.float32)
  for i, first in enumerate(_firsts(signed)):
    step = 0.9 * 10.0 ** (i - 6) / first
    begin = 0.1 * 10.0 ** (i - 6) + 0.5 * step
    share = jnp.where(index >= first, begin + (index - first) * step, share)
  return jnp.where(index >= 2 * first, 1.0, share)


def _rank_below(sizes, signed):
  """The rank of the next number below, and how far up to the next above."""
  index = jnp.zeros(sizes.shape, jnp.int32)
  for i, first in enumerate(_firsts(signed)):
    start = 10.0 ** (i - 7)
    part = jnp.floor((sizes - start) * (first / (9.0 * start)))
    part = jnp.clip(part, 0, first - 1).astype(jnp.int32)
    index = jnp.where(sizes >= start, first + part, index)
  rank = index if signed else jnp.maximum(index - 1, 0)
  rank = rank - (_number(rank, signed) > sizes)
  low, high = _number(rank, signed), _number(rank + 1, signed)
  # At 1 itself the fraction is 1, not above.
  return rank, jnp.clip((sizes - low) / (high - low), 0.0, 1.0)


def _firsts(signed):
  return [2 ** (i if signed else i + 1) for i in range(_DECADES)]


def _to_blocks(x):
  """[..., D] -> [..., D / 256, 256], or flat and padded where 256 ∤ D."""
  if x.ndim and x.shape[-1] % BLOCK == 0:
    # No block spans two rows, so sharded rows stay where they are.
    return x.reshape(*x.shape[:-1], -1, BLOCK)
  flat = jnp.pad(x.reshape(-1), (0, -x.size % BLOCK))
  return flat.reshape(-1, BLOCK)


def _from_blocks(blocks, shape):
  return blocks.reshape(-1)[: math.prod(shape)].reshape(shape)
