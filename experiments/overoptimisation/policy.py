"""Reinforcement learning on a proxy, watched by the gold reward."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from experiments.overoptimisation import networks, training
from llm.losses import policy as rl
from llm.train import state as state_lib
from llm.train.step import make_train_step


class Settings(NamedTuple):
  """Of RLOO; the weight of the KL falls geometrically from first to last."""

  length: int  # tokens of a string
  steps: int
  rate: float
  batch_size: int  # samples of a step, which is one group
  first_kl: float
  last_kl: float
  watch_every: int  # steps
  watched: int  # samples of a watch


class Log(NamedTuple):
  """Before the first step, then after every `watch_every`: float32[W]."""

  kl: jax.Array
  proxy: jax.Array
  gold: jax.Array


def make_trainer(settings: Settings) -> Callable[..., Log]:
  """Returns `train(rng, params, proxy, gold)`.

  Returns:
    The function: typed key, the reference's parameters, and the two rewards,
    functions of strings.
  """
  tx = training.optimizer(settings.rate, settings.steps, 'constant')

  def policy_loss(params, frozen, batch, keys):
    del frozen, keys
    strings = batch['strings']
    logprobs = networks.taken(networks.token_logprobs(params, strings), strings)
    return rl.rloo_loss(
      logprobs, batch['old'], batch['advantages'], batch['mask']
    )

  step = make_train_step(policy_loss, tx, clip_norm=training.CLIP_NORM)

  def train(rng, params, proxy, gold):
    def advance(state, _):
      key = state_lib.step_key(state)
      strings, logprobs = networks.sample(
        state.params, key, settings.batch_size, settings.length
      )
      old = networks.taken(logprobs, strings)
      ref = networks.taken(networks.token_logprobs(params, strings), strings)
      mask = jnp.ones(strings.shape, bool)
      share = state.step / settings.steps
      kl_coef = settings.first_kl * (
        (settings.last_kl / settings.first_kl) ** share
      )
      rewards = rl.sequence_rewards(
        proxy(strings), old, ref, mask, kl_coef=kl_coef
      )
      batch = {'strings': strings, 'old': old, 'mask': mask}
      batch['advantages'] = rl.rloo_advantages(rewards, settings.batch_size)
      return step(state, batch, key)[0], None

    def look(state):
      key = jax.random.fold_in(watch_key, state.step)
      strings, logprobs = networks.sample(
        state.params, key, settings.watched, settings.length
      )
      kl = kl_of_prefixes(logprobs, networks.token_logprobs(params, strings))
      return Log(kl, proxy(strings).mean(), gold(strings).mean())

    def turn(state, _):
      state, _ = lax.scan(advance, state, length=settings.watch_every)
      return state, look(state)

    train_key, watch_key = jax.random.split(rng)
    state = state_lib.init_state(params, tx, train_key)
    first = look(state)
    turns = settings.steps // settings.watch_every
    _, log = lax.scan(turn, state, length=turns)
    return jax.tree.map(lambda x, y: jnp.append(x[None], y), first, log)

  return train


def kl_of_prefixes(logprobs: jax.Array, ref: jax.Array) -> jax.Array:
  """KL of two policies from samples of the first, nats of a whole string.

  At each prefix that was drawn the KL of the next token is exact, a sum over
  the vocabulary; so the mean over the samples spreads much less than that of
  log-ratios (k1).

  Args:
    logprobs: float32[B, T, VOCAB] of the policy that drew the strings.
    ref: float32[B, T, VOCAB].
  """
  return jnp.mean(jnp.sum(jnp.exp(logprobs) * (logprobs - ref), axis=(1, 2)))
