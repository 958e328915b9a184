"""A language that is small enough to count, its rewards and its optimum.

Strings have LENGTH tokens out of VOCAB, in the order of numbers written in
base VOCAB: [COUNT] arrays below are in that order, and a string's number is its
place there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

VOCAB, LENGTH = 6, 5
COUNT = VOCAB**LENGTH
STRINGS = np.stack(
  np.unravel_index(np.arange(COUNT), (VOCAB,) * LENGTH), axis=1
).astype(np.int32)
WIDTH = 48  # of the policy's state
HEAD_SCALE = 2.0  # of the reference's logits
REWARD_SHAPE = 6.0  # of the gamma variable whose logarithm the rewards are

Params = dict[str, jax.Array]
Tables = tuple[list[jax.Array], list[jax.Array]]


class World(NamedTuple):
  """A reference policy and what is good, both drawn at random.

  `reward` has mean 0 and standard deviation 1 under the reference.
  """

  params: Params  # of the reference
  ref: np.ndarray  # float64[COUNT], log-probabilities
  reward: np.ndarray  # float64[COUNT]


class Point(NamedTuple):
  """A policy in the plane of the frontier."""

  kl: float  # to the reference, nats
  gain: float  # of reward, over the reference
  ratio: float  # of gain to the frontier's at equal KL


def make_world(seed: int) -> World:
  """A world, from its seed alone.

  A string's score is the sum of a random number for its first token and one
  for each two tokens that follow each other, the same at every place; its
  reward is the score graded, `grade`.
  """
  params = init_params(jax.random.key(seed))
  ref = np.asarray(jax.jit(all_logprobs)(params), np.float64)
  ref -= np.logaddexp.reduce(ref)
  rng = np.random.default_rng(seed)
  first, after = rng.normal(size=VOCAB), rng.normal(size=(VOCAB, VOCAB))
  score = first[STRINGS[:, 0]]
  score = score + after[STRINGS[:, :-1], STRINGS[:, 1:]].sum(axis=1)
  weights = np.exp(ref)
  reward = grade(score, weights)
  reward -= weights @ reward
  reward /= np.sqrt(weights @ reward**2)
  return World(params, ref, reward)


def grade(score: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Rewards in the order of the scores, with one distribution in all worlds.

  Under the reference a reward is distributed as the logarithm of a gamma
  variable of shape REWARD_SHAPE: a little skewed, bad strings being further
  from the mean than good ones. How near best-of-n comes to the frontier
  depends on this distribution alone.

  Args:
    score: float[COUNT].
    weights: float[COUNT], the reference's probabilities.
  """
  order = np.argsort(score, kind='stable')
  share = np.cumsum(weights[order]) - weights[order] / 2  # half of its own
  reward = np.empty(len(score))
  quantiles = special.gammaincinv(REWARD_SHAPE, share / weights.sum())
  reward[order] = np.log(quantiles)
  return reward


def init_params(rng: jax.Array) -> Params:
  """A gated recurrent policy (Cho et al., 1406.1078) of random weights."""
  keys = jax.random.split(rng, 4)
  normal = jax.random.normal
  return {
    'start': normal(keys[0], (WIDTH,)),
    'token': normal(keys[1], (VOCAB, 3 * WIDTH)),
    'state': normal(keys[2], (WIDTH, 3 * WIDTH)) / WIDTH**0.5,
    'bias': jnp.zeros(3 * WIDTH),
    'head': HEAD_SCALE * normal(keys[3], (WIDTH, VOCAB)) / WIDTH**0.5,
    'head_bias': jnp.zeros(VOCAB),
    'value': jnp.zeros(WIDTH),
    'value_bias': jnp.zeros(()),
  }


def prefix_tables(params: Params) -> Tables:
  """Log-probability of every token and value after every prefix.

  Each prefix is computed once: strings share their beginnings.

  Returns:
    float32[VOCAB**t, VOCAB] and float32[VOCAB**t] for t = 0, …, LENGTH - 1.
  """
  states = jnp.tanh(params['start'])[None]
  logprobs, values = [], []
  for t in range(LENGTH):
    if t:
      states = _next_states(params, states)
    logits = states @ params['head'] + params['head_bias']
    logprobs.append(jax.nn.log_softmax(logits))
    values.append(states @ params['value'] + params['value_bias'])
  return logprobs, values


def all_logprobs(params: Params) -> jax.Array:
  """float32[COUNT]: log-probability of every string."""
  total = jnp.zeros(1)
  for table in prefix_tables(params)[0]:
    total = (total[:, None] + table).reshape(-1)
  return total


def at_tokens(tables: Tables, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each token, and the value before it.

  Args:
    tables: of `prefix_tables`.
    ids: int[B], numbers of strings.

  Returns:
    float32[B, LENGTH] each.
  """
  logprobs, values = [], []
  for t, (table, value) in enumerate(zip(*tables, strict=True)):
    prefix = ids // VOCAB ** (LENGTH - t - 1)  # its first t + 1 tokens
    logprobs.append(table.reshape(-1)[prefix])
    values.append(value[prefix // VOCAB])
  return jnp.stack(logprobs, axis=1), jnp.stack(values, axis=1)


def _next_states(params, states):
  """[N, WIDTH] -> [N * VOCAB, WIDTH], after each token."""
  old = (states @ params['state'] + params['bias'])[:, None]
  token = params['token'][None]
  gates = jax.nn.sigmoid((old + token)[..., : 2 * WIDTH])
  reset, keep = jnp.split(gates, 2, axis=-1)
  new = jnp.tanh(token[..., 2 * WIDTH :] + reset * old[..., 2 * WIDTH :])
  states = (1.0 - keep) * new + keep * states[:, None]
  return states.reshape(-1, WIDTH)


def optimum(world: World, strength: float) -> np.ndarray:
  """Log-probabilities of the best policy, ref · exp(strength · reward) / Z.

  It maximises strength · E[reward] - KL: no policy of its KL has more reward.
  """
  logs = world.ref + strength * world.reward
  return logs - np.logaddexp.reduce(logs)


def grpo_fixed_point(
  world: World, kl_coef: float, group_size: int, corrected: bool
) -> np.ndarray:
  """Log-probabilities of the policy at which GRPO's gradient is 0 on policy.

  GRPO's KL is that of each token, after the prefixes that the policy itself
  draws; what a token does to the KL of later ones is in no gradient. So after
  each prefix the policy has the most of strength · E[reward] - KL of the next
  token alone, given what it does afterwards. k3 times the ratio has the
  gradient of KL(policy, ref), plain k3 that of KL(ref, policy). The strength is
  (1 - 1 / group_size) / (kl_coef · standard deviation of its rewards): a
  group's mean has a share of each completion's own reward.

  Args:
    world: see there.
    kl_coef: the KL's weight in the loss.
    group_size: completions of a group.
    corrected: k3 is multiplied by the ratio.
  """
  conditionals = _conditionals(world.ref)
  reward = world.reward.reshape((VOCAB,) * LENGTH)
  tilt = _reverse_best if corrected else _forward_best
  deviation = 1.0
  for _ in range(100):  # the deviation is the policy's own
    strength = (1.0 - 1.0 / group_size) / (kl_coef * deviation)
    value, logs = reward, []
    for ref in reversed(conditionals):
      logs.append(tilt(ref, strength * value))
      value = (np.exp(logs[-1]) * value).sum(axis=-1)
    total = np.zeros(())
    for table in reversed(logs):
      total = total[..., None] + table
    probs = np.exp(total)
    found = np.sqrt((probs * (reward - value) ** 2).sum())
    deviation = np.sqrt(deviation * found)  # half way: it would swing
  return total.reshape(-1)


def _conditionals(logprobs: np.ndarray) -> list[np.ndarray]:
  """Log-probabilities of the next token, [VOCAB] * (t + 1) after t tokens."""
  total, tables = logprobs.reshape((VOCAB,) * LENGTH), []
  for _ in range(LENGTH):
    before = np.logaddexp.reduce(total, axis=-1)
    tables.append(total - before[..., None])
    total = before
  return tables[::-1]


def _reverse_best(ref, value):
  """log(ref · exp(value) / Z), the most of E[value] - KL(policy, ref)."""
  logs = ref + value
  return logs - np.logaddexp.reduce(logs, axis=-1, keepdims=True)


def _forward_best(ref, value):
  """log(ref / (level - value)), the most of E[value] - KL(ref, policy).

  The level is the one at which the probabilities add up to 1.
  """
  # Between them the sum falls from more than 1 to less.
  low = value.max(axis=-1, keepdims=True)
  high = low + 1.0
  for _ in range(100):
    level = (low + high) / 2
    with np.errstate(divide='ignore'):
      total = (np.exp(ref) / (level - value)).sum(axis=-1, keepdims=True)
    low = np.where(total > 1.0, level, low)
    high = np.where(total > 1.0, high, level)
  logs = ref - np.log(high - value)
  return logs - np.logaddexp.reduce(logs, axis=-1, keepdims=True)


def kl_and_gain(world: World, logprobs: np.ndarray) -> tuple[float, float]:
  """KL to the reference and reward over the reference's, by enumeration."""
  logprobs = np.asarray(logprobs, np.float64)
  probs = np.exp(logprobs)
  seen = probs > 0  # 0 · log 0 is 0
  kl = probs[seen] @ (logprobs - world.ref)[seen]
  return float(kl), float((probs - np.exp(world.ref)) @ world.reward)


def frontier_gain(world: World, kl: float) -> float:
  """The most that a policy of this KL can gain, by bisection."""
  low, high = 0.0, 1e4
  for _ in range(100):
    middle = (low + high) / 2
    below = kl_and_gain(world, optimum(world, middle))[0] < kl
    low, high = (middle, high) if below else (low, middle)
  return kl_and_gain(world, optimum(world, high))[1]


def place(world: World, logprobs: np.ndarray) -> Point:
  """KL, gain and share of a policy, float[COUNT] log-probabilities."""
  logprobs = np.asarray(logprobs, np.float64)
  kl, gain = kl_and_gain(world, logprobs - np.logaddexp.reduce(logprobs))
  return Point(kl, gain, gain / frontier_gain(world, kl))


def best_of_n(world: World, n: int) -> np.ndarray:
  """Log-probabilities of the best of n independent strings of the reference.

  The best has reward r with probability F(r)ⁿ - F(r-)ⁿ, F being the share of
  the reference with at most that reward; among strings of equal reward it is
  whichever came.
  """
  _, rank = np.unique(np.round(world.reward, 9), return_inverse=True)
  weights = np.exp(world.ref)
  share = np.bincount(rank, weights / weights.sum())
  below = np.concatenate([[0.0], np.cumsum(share)]) / share.sum()
  with np.errstate(divide='ignore'):
    best = np.log(np.diff(below**n))
  return (best - np.log(share))[rank] + world.ref


def draw(
  rng: np.random.Generator, logprobs: np.ndarray, count: int
) -> np.ndarray:
  """int[count], numbers of strings drawn from a policy."""
  total = np.cumsum(np.exp(logprobs))
  return np.searchsorted(total / total[-1], rng.random(count), side='right')
