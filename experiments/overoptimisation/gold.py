"""The gold reward: what is truly good, and few pairs reveal."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.exact_frontier.language import VOCAB

TRIPLE = 3
PENALTY = 0.5  # for each two equal triples, in standard deviations of a worth


class Gold(NamedTuple):
  """`worth` of each three tokens (numbers in base VOCAB), and how to scale."""

  worth: jax.Array  # float32[VOCAB**3]
  mean: jax.Array  # float32[], under the reference
  scale: jax.Array  # float32[], standard deviation under the reference


def make_gold(
  rng: jax.Array, strings: jax.Array, weights: jax.Array | None = None
) -> Gold:
  """A gold reward with mean 0 and standard deviation 1 under the reference.

  Args:
    rng: typed key of the worths.
    strings: int[B, T], the reference's samples, or all strings there are.
    weights: float[B], probabilities of the strings; None: they are samples.
  """
  worth = jax.random.normal(rng, (VOCAB**TRIPLE,))
  plain = score(Gold(worth, jnp.zeros(()), jnp.ones(())), strings)
  mean = jnp.average(plain, weights=weights)
  variance = jnp.average(jnp.square(plain - mean), weights=weights)
  return Gold(worth, mean, jnp.sqrt(variance))


def score(gold: Gold, strings: jax.Array) -> jax.Array:
  """float32[B], of int[B, T].

  Each three tokens that follow each other have a worth, the same at every
  place; each two of them that are equal cost PENALTY. Strings of the reference
  repeat little, so that this cost is hard to see in them; in a loop, which has
  the best triples again and again, it grows as the square of its turns.
  """
  places = strings.shape[1] - TRIPLE + 1
  triples = sum(
    strings[:, i : i + places] * VOCAB ** (TRIPLE - 1 - i)
    for i in range(TRIPLE)
  )
  equal = jnp.sum(triples[:, :, None] == triples[:, None, :], axis=(1, 2))
  repeats = (equal - places) / 2
  total = jnp.sum(gold.worth[triples], axis=1) - PENALTY * repeats
  return (total - gold.mean) / gold.scale
