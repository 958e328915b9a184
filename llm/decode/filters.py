"""Filters: they set the logits of unlikely tokens to -inf, one row each.

Every function takes `logits: float32[V]` and traced settings and returns
`float32[V]`, the survivors' logits unchanged; `vmap` them for a batch. Results
are those of the warpers of `transformers` 5. There is no sort: a threshold is
found by bisection over the bits of float32, whose order as integers is that of
the numbers, so that 32 passes of compare and sum find it exactly.

At least `min_keep` (static; the most likely) tokens survive every filter.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

_SIGN = np.uint32(0x80000000)


def top_k(logits: jax.Array, k: jax.Array, *, min_keep: int = 1) -> jax.Array:
  """Keeps the k largest logits, and all that equal the k-th (Fan et al. 2018).

  Trace, k = 2: [3, 1, 2, 2] -> [3, -inf, 2, 2].

  Args:
    logits: float32[V].
    k: int32[], 1 or more; k >= V keeps everything.
    min_keep: smallest number to keep.
  """
  k = jnp.clip(k, min_keep, logits.shape[0])

  def few_enough(value):
    # Holds from the (k+1)-th largest distinct value on: fewer than k above.
    return jnp.sum(logits > value, dtype=jnp.int32) < k

  threshold = _smallest(few_enough, jnp.min(logits), jnp.max(logits))
  return _cut(logits, logits >= threshold)


def top_p(logits: jax.Array, cut: jax.Array, *, min_keep: int = 1) -> jax.Array:
  """Keeps the most likely tokens whose mass reaches p (arXiv:1904.09751).

  From the least likely token upwards, tokens are dropped as long as their mass
  together is at most `cut` = 1 - p. Of equal logits the higher id is dropped
  first, so that the last one left is the greedy choice (in `transformers` it
  depends on the sort).

  Trace, p = 0.8: probabilities [.3, .1, .1, .5] add up from the smallest to .1,
  .2, .5, 1; the first two are at most .2 and are dropped: [.3, 0, 0, .5] stay.

  Args:
    logits: float32[V].
    cut: float32[], 1 - p, best computed in float64.
    min_keep: smallest number to keep.
  """
  probs = jax.nn.softmax(logits)

  def too_much(value):
    return jnp.sum(jnp.where(logits <= value, probs, 0.0)) > cut

  # The smallest logit that is not dropped, or not in all tokens that have it.
  edge = _smallest(too_much, jnp.min(logits), jnp.max(logits))
  tied = logits == edge
  num_tied = jnp.sum(tied, dtype=jnp.int32)
  below = jnp.sum(jnp.where(logits < edge, probs, 0.0))
  each = jnp.max(jnp.where(tied, probs, 0.0))
  gone = jnp.floor((cut - below) / jnp.maximum(each, 1e-37))
  gone = jnp.clip(gone, 0, num_tied - 1).astype(jnp.int32)
  ids = jnp.arange(logits.shape[0])

  def enough_kept(end):
    return jnp.sum(tied & (ids < end), dtype=jnp.int32) >= num_tied - gone

  # An empty interval, which ends the search at once, where none is dropped.
  size = jnp.full_like(gone, logits.shape[0])
  end = _bisect(enough_kept, jnp.where(gone > 0, 0, size), size)
  keep = (logits > edge) | (tied & (ids < end))
  if min_keep > 1:
    keep |= logits >= _kth_largest(logits, min_keep)
  return _cut(logits, keep)


def min_p(
  logits: jax.Array, share: jax.Array, *, min_keep: int = 1
) -> jax.Array:
  """Drops what is less likely than `share` x the likeliest (arXiv:2407.01082).

  Trace, share = 0.3: probabilities [.5, .2, .1, .2] -> below .15 goes .1.

  Args:
    logits: float32[V].
    share: float32[], in [0, 1].
    min_keep: smallest number to keep.
  """
  probs = jax.nn.softmax(logits)
  keep = probs >= share * jnp.max(probs)
  return _cut(logits, keep | (logits >= _kth_largest(logits, min_keep)))


def typical(
  logits: jax.Array, mass: jax.Array, *, min_keep: int = 1
) -> jax.Array:
  """Keeps the tokens whose surprise is nearest to the entropy (2202.00666).

  Tokens are ranked by |-log p - H|; the first ones whose mass reaches `mass`
  stay, and all that equal the last of them.

  Args:
    logits: float32[V].
    mass: float32[], in (0, 1).
    min_keep: smallest number to keep.
  """
  logp = jax.nn.log_softmax(logits)
  probs = jnp.exp(logp)
  surprise = -logp
  entropy = jnp.sum(jnp.where(probs > 0.0, surprise * probs, 0.0))
  distance = jnp.abs(surprise - entropy)

  def enough(value):
    return jnp.sum(jnp.where(distance <= value, probs, 0.0)) >= mass

  threshold = _smallest(enough, jnp.min(distance), jnp.max(distance))
  if min_keep > 1:
    threshold = jnp.maximum(threshold, -_kth_largest(-distance, min_keep))
  return _cut(logits, distance <= threshold)


def epsilon(
  logits: jax.Array, cutoff: jax.Array, *, min_keep: int = 1
) -> jax.Array:
  """Drops tokens less likely than `cutoff` (arXiv:2210.15191).

  Args:
    logits: float32[V].
    cutoff: float32[], in (0, 1).
    min_keep: smallest number to keep.
  """
  keep = jax.nn.softmax(logits) >= cutoff
  return _cut(logits, keep | (logits >= _kth_largest(logits, min_keep)))


def eta(
  logits: jax.Array, cutoff: jax.Array, *, min_keep: int = 1
) -> jax.Array:
  """Drops tokens below min(c, sqrt(c) exp(-entropy)) (arXiv:2210.15191).

  Args:
    logits: float32[V].
    cutoff: float32[], c, in (0, 1).
    min_keep: smallest number to keep.
  """
  logp = jax.nn.log_softmax(logits)
  probs = jnp.exp(logp)
  entropy = -jnp.sum(jnp.where(probs > 0.0, logp * probs, 0.0))
  bound = jnp.minimum(cutoff, jnp.sqrt(cutoff) * jnp.exp(-entropy))
  keep = jax.nn.softmax(logits) >= bound
  return _cut(logits, keep | (logits >= _kth_largest(logits, min_keep)))


def xtc(
  logits: jax.Array,
  probability: jax.Array,
  threshold: jax.Array,
  key: jax.Array,
) -> jax.Array:
  """Drops all likely tokens but the least likely of them, with some chance.

  With chance `probability`, of the tokens with p >= `threshold` only the least
  likely stays (of equals the highest id), as in llama.cpp; where there are
  fewer than two of them, nothing happens. XTC: exclude top choices.

  Trace, threshold 0.1: probabilities [.5, .3, .15, .05] -> .15 and .05 stay.

  Args:
    logits: float32[V].
    probability: float32[], in [0, 1].
    threshold: float32[], in (0, 0.5].
    key: of this row and position, used for this draw alone.
  """
  probs = jax.nn.softmax(logits)
  # What another filter has dropped is no choice, however low the threshold.
  likely = (probs >= threshold) & (probs > 0.0)
  least = jnp.min(jnp.where(likely, probs, jnp.inf))
  ids = jnp.arange(logits.shape[0])
  spared = jnp.max(jnp.where(likely & (probs == least), ids, -1))
  acts = jax.random.uniform(key) < probability
  # One likely token is its own least likely one: nothing is dropped.
  return _cut(logits, ~(acts & likely & (ids != spared)))


def _cut(logits: jax.Array, keep: jax.Array) -> jax.Array:
  return jnp.where(keep, logits, -jnp.inf)


def _kth_largest(x: jax.Array, k: int) -> jax.Array:
  k = min(k, x.shape[0])
  return jnp.max(x) if k == 1 else lax.top_k(x, k)[0][-1]


def _smallest(
  holds: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array
) -> jax.Array:
  """Returns the smallest float32 in [low, high] from which on `holds` is true.

  `holds` must be monotone. It is never called with `high`, where it is taken
  to be true.
  """
  found = _bisect(
    lambda bits: holds(_from_ordered(bits)), _ordered(low), _ordered(high)
  )
  return _from_ordered(found)


def _bisect(holds, low, high):
  """Smallest integer in [low, high] from which on `holds`; true at `high`."""

  def step(state):
    low, high = state
    middle = low + (high - low) // 2
    yes = holds(middle)
    return jnp.where(yes, low, middle + 1), jnp.where(yes, middle, high)

  return lax.while_loop(lambda s: s[0] < s[1], step, (low, high))[1]


def _ordered(x: jax.Array) -> jax.Array:
  """Bits of float32 as uint32 in the order of the numbers; -0 becomes 0."""
  bits = lax.bitcast_convert_type(jnp.where(x == 0.0, 0.0, x), jnp.uint32)
  return jnp.where(bits >= _SIGN, ~bits, bits | _SIGN)


def _from_ordered(bits: jax.Array) -> jax.Array:
  bits = jnp.where(bits >= _SIGN, bits ^ _SIGN, ~bits)
  return lax.bitcast_convert_type(bits, jnp.float32)
