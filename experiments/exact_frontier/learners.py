"""Training on the small language: `llm`'s losses and train step, one program.

Each maker returns a compiled function that trains from the reference and
returns the policy's exact log-probabilities, float32[COUNT]. All steps of a run
are one `lax.scan`.
"""

from collections.abc import Callable
import types
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from experiments.exact_frontier import language
from llm.losses import policy as rl
from llm.train import optim
from llm.train import state as state_lib
from llm.train.step import make_train_step

CLIP_NORM = 1.0
WARMUP = 10  # steps
GROUP_SIZE = 16  # of RLOO and GRPO
EPOCHS = 4  # of PPO, one minibatch each
VALUE_COEF = 0.5
ALGORITHMS = ('rloo', 'ppo', 'grpo', 'grpo_corrected')


class Pairs(NamedTuple):
  """Comparisons: numbers of the better and of the worse string, int[N]."""

  chosen: np.ndarray
  rejected: np.ndarray


class Settings(NamedTuple):
  """Updates, whose learning rate falls to 0 as a cosine; pairs or samples."""

  steps: int  # updates, of PPO too, which takes EPOCHS on the same samples
  rate: float
  batch_size: int
  group_size: int = GROUP_SIZE


class Sampled(NamedTuple):
  """What a step of reinforcement learning knows of its samples."""

  scores: jax.Array  # float32[B]
  logprobs: jax.Array  # float32[B, LENGTH], when they were drawn
  ref: jax.Array  # float32[B, LENGTH]
  values: jax.Array  # float32[B, LENGTH]
  mask: jax.Array  # bool[B, LENGTH]


def make_preference_trainer(
  loss: Callable[..., Any], settings: Settings
) -> Callable[..., jax.Array]:
  """Returns `train(params, pairs, seed, beta)`.

  Args:
    loss: `(chosen, rejected, ref_chosen, ref_rejected, beta=) -> Sums` of
      `llm.losses.preference`, of whole strings.
    settings: see there.

  Returns:
    The function: `params` of the reference, `pairs` that are drawn with
    replacement, the seed of their order, and beta of the loss.
  """

  def pair_loss(params, frozen, batch, keys):
    del keys
    ids = jnp.concatenate([batch.chosen, batch.rejected])
    sums = language.all_logprobs(params)[ids]
    both = (*jnp.split(sums, 2), *jnp.split(frozen['ref'][ids], 2))
    return loss(*both, beta=frozen['beta'])

  tx = _optimizer(settings.rate, settings.steps)
  step = make_train_step(pair_loss, tx, clip_norm=CLIP_NORM)

  @jax.jit
  def train(params, pairs, seed, beta):
    frozen = {'ref': language.all_logprobs(params), 'beta': beta}

    def body(state, _):
      rng = state_lib.step_key(state)
      shape = (settings.batch_size,)
      ids = jax.random.randint(rng, shape, 0, len(pairs.chosen))
      batch = jax.tree.map(lambda x: x[ids], pairs)
      return step(state, batch, rng, frozen)[0], None

    state = state_lib.init_state(params, tx, jax.random.key(seed))
    state, _ = lax.scan(body, state, length=settings.steps)
    return language.all_logprobs(state.params)

  return train


def make_rl_trainer(name: str, settings: Settings) -> Callable[..., jax.Array]:
  """Returns `train(params, reward, seed, kl_coef)`.

  Args:
    name: of ALGORITHMS; 'grpo' has the KL as k3 in the loss, and
      'grpo_corrected' the same times the ratio, TRL's default.
    settings: see there.

  Returns:
    The function: `params` of the reference, the reward float[COUNT] of each
    string, the seed of the samples and the weight of the KL. Except for GRPO,
    which divides by a standard deviation, the optimum is
    ref · exp(reward / kl_coef).
  """
  updates = EPOCHS if name == 'ppo' else 1
  tx = _optimizer(settings.rate, settings.steps)

  def policy_loss(params, frozen, batch, keys):
    del keys
    tables = language.prefix_tables(params)
    logprobs, values = language.at_tokens(tables, batch['ids'])
    return _LOSSES[name](logprobs, values, batch, frozen['kl_coef'])

  step = make_train_step(policy_loss, tx, clip_norm=CLIP_NORM)

  @jax.jit
  def train(params, reward, seed, kl_coef):
    ref_tables = language.prefix_tables(params)
    frozen = {'kl_coef': kl_coef}

    def body(state, _):
      rng = state_lib.step_key(state)
      tables = language.prefix_tables(state.params)
      ids = _sample(rng, state.params, settings.batch_size)
      logprobs, values = language.at_tokens(tables, ids)
      ref, _ = language.at_tokens(ref_tables, ids)
      mask = jnp.ones(logprobs.shape, bool)
      sampled = Sampled(reward[ids], logprobs, ref, values, mask)
      batch = {'ids': ids, 'old': logprobs, 'ref': ref, 'mask': mask}
      batch |= _TARGETS[name](sampled, kl_coef, settings.group_size)
      for _ in range(updates):
        state = step(state, batch, rng, frozen)[0]
      return state, None

    state = state_lib.init_state(params, tx, jax.random.key(seed))
    state, _ = lax.scan(body, state, length=settings.steps // updates)
    return language.all_logprobs(state.params)

  return train


def _optimizer(rate, steps):
  """AdamW without decay of the weights."""
  config = types.SimpleNamespace(
    name='adamw',
    lr=rate,
    schedule='cosine',
    warmup_steps=min(WARMUP, steps),
    weight_decay=0.0,
    b1=0.9,
    b2=0.99,
    clip_norm=CLIP_NORM,
  )
  return optim.make_optimizer(config, steps)


def _sample(rng, params, count):
  """int32[count], strings of the policy, by its distribution function."""
  below = jnp.cumsum(jnp.exp(language.all_logprobs(params)))
  points = jax.random.uniform(rng, (count,)) * below[-1]
  ids = jnp.searchsorted(below, points, side='right')
  return jnp.minimum(ids, language.COUNT - 1)


def _rloo_targets(sampled, kl_coef, group_size):
  rewards = rl.sequence_rewards(
    sampled.scores, sampled.logprobs, sampled.ref, sampled.mask, kl_coef=kl_coef
  )
  return {'advantages': rl.rloo_advantages(rewards, group_size)}


def _grpo_targets(sampled, kl_coef, group_size):
  del kl_coef
  return {'advantages': rl.group_advantages(sampled.scores, group_size)}


def _ppo_targets(sampled, kl_coef, group_size):
  del group_size
  rewards, mask = rl.token_rewards(
    sampled.scores, sampled.logprobs, sampled.ref, sampled.mask, kl_coef=kl_coef
  )
  advantages, returns = rl.gae(rewards, sampled.values, mask)
  return {
    'advantages': rl.whiten(advantages, mask),
    'returns': returns,
    'old_values': sampled.values,
  }


def _rloo_loss(logprobs, values, batch, kl_coef):
  del values, kl_coef
  return rl.rloo_loss(
    logprobs, batch['old'], batch['advantages'], batch['mask']
  )


def _grpo_loss(logprobs, values, batch, kl_coef, corrected=False):
  del values
  return rl.grpo_loss(
    logprobs,
    batch['old'],
    batch['advantages'],
    batch['mask'],
    batch['ref'],
    kl_coef=kl_coef,
    kl_corrected=corrected,
    reduction='sequence',
  )


def _corrected_loss(logprobs, values, batch, kl_coef):
  return _grpo_loss(logprobs, values, batch, kl_coef, corrected=True)


def _ppo_loss(logprobs, values, batch, kl_coef):
  del kl_coef
  loss, weight, metrics = rl.ppo_policy_loss(
    logprobs, batch['old'], batch['advantages'], batch['mask']
  )
  error, _, more = rl.ppo_value_loss(
    values, batch['old_values'], batch['returns'], batch['mask'], clip=None
  )
  return loss + VALUE_COEF * error, weight, metrics | more


_TARGETS = {
  'rloo': _rloo_targets,
  'ppo': _ppo_targets,
  'grpo': _grpo_targets,
  'grpo_corrected': _grpo_targets,
}
_LOSSES = {
  'rloo': _rloo_loss,
  'ppo': _ppo_loss,
  'grpo': _grpo_loss,
  'grpo_corrected': _corrected_loss,
}
