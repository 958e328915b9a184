"""The run: one part of the experiment in one world, by `config.part`."""

from collections.abc import Callable
import functools

import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import machine
from experiments.exact_frontier import language, learners
from experiments.exact_frontier.language import LENGTH, VOCAB, World
from experiments.exact_frontier.learners import Pairs, Settings
from llm.errors import UserError
from llm.losses import preference
from llm.tasks import run as run_lib

BETAS = (0.05, 0.1, 0.2, 0.5, 1.0)  # of DPO
KL_COEFS = (0.05, 0.2, 0.5, 1.0, 2.0)  # of reinforcement learning
SAMPLES = (2, 4, 8, 16, 32, 64, 128, 256)  # n of best-of-n
FLIPPED = (0.2, 0.3, 0.4)  # share of wrong labels
NOISE_BETAS = (0.05, 0.1, 0.5)
BETA = 0.1  # where it is not varied
KL_COEF = 0.5  # of the control
PAIR_LOSSES = ('dpo', 'cdpo', 'robust_dpo')


def run(config: ml_collections.ConfigDict, workdir: str | None) -> None:
  """Measures one part and writes `result.json`.

  Raises:
    UserError: no workdir, or an unknown part.
  """
  if not workdir:
    raise UserError('no --workdir: name a folder for result.json')
  if config.part not in PARTS:
    raise UserError(
      f'part={config.part!r}: use one of {", ".join(sorted(PARTS))}'
    )
  result = {'machine': machine.describe()}
  world = language.make_world(config.seed)
  result |= PARTS[config.part](config, world)
  run_lib.write_result(workdir, result)


def exact(config, world: World) -> dict:
  """What needs no training: the frontier, and best-of-n."""
  del config
  result = {
    'entropy': -np.exp(world.ref) @ world.ref,
    'largest_reward': world.reward.max(),
  }
  for n in SAMPLES:
    point = _point(world, language.best_of_n(world, n))
    point['formula'] = np.log(n) - (n - 1) / n
    result[f'best_of_{n}'] = point
  for kl in np.arange(0.25, 8.01, 0.25):
    result[f'frontier_{kl:.2f}'] = language.frontier_gain(world, kl)
  return result


def dpo(config, world: World) -> dict:
  """DPO over beta, and on the labels of a coin (control)."""
  train = _pair_trainer(preference.dpo_loss, config, world)
  pairs = draw_pairs(world, config.seed, config.pairs)
  result = {f'dpo_{b}': _point(world, train(pairs, b)) for b in BETAS}
  coin = draw_pairs(world, config.seed, config.pairs, flipped=0.5)
  return result | {'coin': _point(world, train(coin, BETA))}


def noise(config, world: World) -> dict:
  """DPO, cDPO and robust DPO where labels are wrong."""
  result = {}
  for name in PAIR_LOSSES:
    for flipped in FLIPPED:
      loss = getattr(preference, f'{name}_loss')
      if name != 'dpo':
        loss = functools.partial(loss, label_smoothing=flipped)
      pairs = draw_pairs(world, config.seed, config.pairs, flipped=flipped)
      train = _pair_trainer(loss, config, world)
      for beta in NOISE_BETAS:
        point = _point(world, train(pairs, beta))
        result[f'{name}_{flipped}_{beta}'] = point
  return result


def likelihood(config, world: World) -> dict:
  """What becomes of the chosen strings under DPO and RPO."""
  result = {}
  pairs = near_duplicates(world, config.seed, config.pairs)
  for name, loss in (('dpo', preference.dpo_loss), ('rpo', _rpo_loss)):
    logprobs = _pair_trainer(loss, config, world)(pairs, BETA)
    change = np.asarray(logprobs, np.float64) - world.ref
    result[name] = _point(world, logprobs) | {
      'chosen': change[pairs.chosen].mean(),
      'rejected': change[pairs.rejected].mean(),
    }
  return result


def rl(config, world: World) -> dict:
  """Reinforcement learning with the true reward, and with another one."""
  settings = Settings(config.rl_steps, config.rl_rate, config.samples)
  rng = np.random.default_rng((config.seed, 3))
  other = rng.permutation(world.reward)
  result = {}
  for name in learners.ALGORITHMS:
    train = learners.make_rl_trainer(name, settings)
    rewards = {f'{name}_{coef}': (world.reward, coef) for coef in KL_COEFS}
    if name == 'rloo':
      rewards['permuted'] = (other, KL_COEF)
    for key, (reward, coef) in rewards.items():
      reward = jnp.asarray(reward, jnp.float32)
      logprobs = train(world.params, reward, config.seed, coef)
      result[key] = _point(world, logprobs)
  return result


PARTS: dict[str, Callable[..., dict]] = {
  'exact': exact,
  'dpo': dpo,
  'noise': noise,
  'likelihood': likelihood,
  'rl': rl,
}


def draw_pairs(
  world: World, seed: int, count: int, *, flipped: float = 0.0
) -> Pairs:
  """Two strings of the reference each; the better wins by Bradley and Terry.

  The labels are flipped with the given probability: 0.5 says nothing. Strings
  and first labels depend on the seed alone.
  """
  rng = np.random.default_rng((seed, 1))
  first, second = (language.draw(rng, world.ref, count) for _ in range(2))
  return _compare(world, rng, first, second, flipped)


def near_duplicates(world: World, seed: int, count: int) -> Pairs:
  """Pairs that differ in one token, the last of the string."""
  rng = np.random.default_rng((seed, 2))
  first = language.draw(rng, world.ref, count)
  shift = rng.integers(1, VOCAB, count)
  second = first - first % VOCAB + (first + shift) % VOCAB
  return _compare(world, rng, first, second, 0.0)


def _compare(world, rng, first, second, flipped):
  margin = world.reward[first] - world.reward[second]
  wins = rng.random(len(first)) < 1.0 / (1.0 + np.exp(-margin))
  wins ^= rng.random(len(first)) < flipped
  return Pairs(np.where(wins, first, second), np.where(wins, second, first))


def _rpo_loss(chosen, *others, beta):
  tokens = jnp.full(chosen.shape, float(LENGTH))
  return preference.rpo_loss(chosen, *others, tokens, beta=beta)


def _pair_trainer(loss, config, world):
  """(pairs, beta) -> log-probabilities."""
  settings = Settings(config.steps, config.rate, config.batch_size)
  train = learners.make_preference_trainer(loss, settings)
  return lambda pairs, beta: train(world.params, pairs, config.seed, beta)


def _point(world, logprobs) -> dict:
  return language.place(world, logprobs)._asdict()
