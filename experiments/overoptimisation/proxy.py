"""Proxies: reward models that are learned from pairs labelled by gold."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from experiments.exact_frontier.language import Params
from experiments.overoptimisation import networks, training
from llm.losses import reward
from llm.train import state as state_lib
from llm.train.step import make_train_step

HELD_OUT = 4  # one pair of so many is not trained on
_CHECK_EVERY = 20  # steps


class Pairs(NamedTuple):
  """Comparisons: the better and the worse string, int32[N, T]."""

  chosen: jax.Array
  rejected: jax.Array


class Settings(NamedTuple):
  """Of the training; the learning rate falls to 0 as a cosine."""

  width: int
  steps: int
  rate: float
  batch_size: int  # pairs


class Proxy(NamedTuple):
  """A network, and the mean and standard deviation of its scores."""

  params: Params
  mean: jax.Array  # float32[]
  scale: jax.Array  # float32[]


def compare(
  rng: jax.Array, strings: jax.Array, rewards: jax.Array
) -> tuple[Pairs, Pairs]:
  """Pairs labelled by Bradley and Terry, and the same pairs at random.

  Args:
    rng: typed key of the labels.
    strings: int[2N, T]; the first half meets the second.
    rewards: float[2N].
  """
  first, second = jnp.split(strings, 2)
  margin = jnp.subtract(*jnp.split(rewards, 2))
  keys = jax.random.split(rng)
  wins = jax.random.bernoulli(keys[0], jax.nn.sigmoid(margin))
  coin = jax.random.bernoulli(keys[1], 0.5, margin.shape)
  pairs = []
  for label in (wins, coin):
    chosen = jnp.where(label[:, None], first, second)
    pairs.append(Pairs(chosen, jnp.where(label[:, None], second, first)))
  return pairs[0], pairs[1]


def make_trainer(settings: Settings) -> Callable[..., Proxy]:
  """Returns `train(rng, pairs, count, strings, weights)`.

  Of the first `count` pairs a quarter is held out; of the networks after every
  20 steps it returns the one with the least loss there.

  Args:
    settings: see there.

  Returns:
    The function: typed key of weights and order, `Pairs`, int[] how many of
    them are known, int[B, T] strings under which the score is standardised,
    their weights or None.
  """

  def pair_loss(params, frozen, batch, keys):
    del frozen, keys
    return reward.bradley_terry_loss(
      networks.scores(params, batch.chosen),
      networks.scores(params, batch.rejected),
    )

  tx = training.optimizer(settings.rate, settings.steps, 'cosine')
  step = make_train_step(pair_loss, tx, clip_norm=training.CLIP_NORM)

  def train(rng, pairs, count, strings, weights=None):
    known = count - count // HELD_OUT
    places = known + jnp.arange(len(pairs.chosen) // HELD_OUT)
    held_out = jax.tree.map(
      lambda x: jnp.take(x, places, axis=0, mode='clip'), pairs
    )
    counts = places < count

    def advance(state, _):
      key = state_lib.step_key(state)
      ids = jax.random.randint(key, (settings.batch_size,), 0, known)
      batch = jax.tree.map(lambda x: x[ids], pairs)
      return step(state, batch, key)[0], None

    def check(carry, _):
      state, best, least = carry
      state, _ = lax.scan(advance, state, length=_CHECK_EVERY)
      chosen, rejected = (networks.scores(state.params, x) for x in held_out)
      loss, weight, _ = reward.bradley_terry_loss(chosen, rejected, counts)
      better = loss / weight < least
      best = jax.tree.map(
        lambda new, old: jnp.where(better, new, old), state.params, best
      )
      return (state, best, jnp.where(better, loss / weight, least)), None

    keys = jax.random.split(rng)
    params = networks.init_proxy(keys[0], settings.width)
    start = (
      state_lib.init_state(params, tx, keys[1]),
      params,
      jnp.array(jnp.inf),
    )
    turns = max(1, settings.steps // _CHECK_EVERY)
    (_, params, _), _ = lax.scan(check, start, length=turns)
    return standardise(params, strings, weights)

  return train


def standardise(
  params: Params, strings: jax.Array, weights: jax.Array | None = None
) -> Proxy:
  """Measures a network's scores under the reference; arguments as above."""
  scores = networks.scores(params, strings)
  mean = jnp.average(scores, weights=weights)
  variance = jnp.average(jnp.square(scores - mean), weights=weights)
  return Proxy(params, mean, jnp.sqrt(variance))


def score(proxy: Proxy, strings: jax.Array) -> jax.Array:
  """float32[B], the standardised score of a proxy on int[B, T]."""
  return (networks.scores(proxy.params, strings) - proxy.mean) / proxy.scale
