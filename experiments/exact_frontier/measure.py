"""The run: one part of the experiment in one world, by `config.part`."""

from collections.abc import Callable, Sequence
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import machine
from experiments.exact_frontier import language, learners
from experiments.exact_frontier.language import LENGTH, VOCAB, World
from experiments.exact_frontier.learners import Pairs, Settings
from llm.errors import UserError
from llm.losses import preference
from llm.runs import outputs

BETAS = (0.05, 0.1, 0.2, 0.5, 1.0)  # of DPO
DEVIATION = 0.4  # of the reward, in the labels of DPO and for RLOO and PPO
KL_COEFS = (0.05, 0.2, 0.5)  # of RLOO and PPO
GROUP_COEFS = (0.5, 1.0, 2.0)  # of GRPO, whose rewards have deviation 1
SAMPLES = (2, 4, 8, 16, 32, 64, 128, 256)  # n of best-of-n
BETA = 0.1  # of the control and of DPO against RPO
KL_COEF = 0.2  # of the control
PAIR_LOSSES = ('dpo', 'cdpo', 'robust_dpo')
FLIPPED = (0.2, 0.3, 0.4)  # share of wrong labels


class Labels(NamedTuple):
  """The pairs of wrong labels: how many, and how sure they would be."""

  pairs: int
  deviation: float  # of the reward
  batch_size: int


# DPO at these on the same labels: is the lead of others one over a poor β?
OTHER_BETAS = {
  'sure': (0.1, 0.2, 0.5, 1.0),
  'few': (0.02, 0.05, 0.1, 0.2),
}
NOISE = {
  'sure': Labels(200_000, 3.0, 512),
  'few': Labels(20_000, 1.0, 256),
}


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
  outputs.write_result(workdir, result)


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
  for name, coef in itertools.product(('grpo', 'grpo_corrected'), GROUP_COEFS):
    logprobs = language.grpo_fixed_point(
      world, coef, learners.GROUP_SIZE, name == 'grpo_corrected'
    )
    result[f'fixed_{name}_{coef}'] = _point(world, logprobs)
  for kl in np.arange(0.25, 8.01, 0.25):
    result[f'frontier_{kl:.2f}'] = language.frontier_gain(world, kl)
  return result


def dpo(config, world: World) -> dict:
  """DPO over beta, from many pairs, from few, and on random labels."""
  train = _pair_trainer(preference.dpo_loss, config, config.batch_size)
  result = {}
  for name, count in (('dpo', config.pairs), ('dpo_few', config.few_pairs)):
    pairs = draw_pairs(world, config.seed, count, deviation=DEVIATION)
    policies = train(world, pairs, BETAS)
    for beta, logprobs in zip(BETAS, policies, strict=True):
      result[f'{name}_{beta}'] = _point(world, logprobs)
  coin = draw_pairs(
    world, config.seed, config.pairs, deviation=DEVIATION, flipped=0.5
  )
  return result | {'coin': _point(world, train(world, coin, (BETA,))[0])}


def noise(config, world: World) -> dict:
  """DPO, cDPO and robust DPO where labels are wrong."""
  result = {}
  for key, labels in NOISE.items():
    plain = _pair_trainer(preference.dpo_loss, config, labels.batch_size)
    betas = config.noise_betas[key]
    for flipped, beta in zip(FLIPPED, betas, strict=True):
      pairs = _wrong_pairs(config, world, labels, flipped)
      trainers = {'dpo': plain}
      for name in PAIR_LOSSES[1:]:
        loss = functools.partial(
          getattr(preference, f'{name}_loss'), label_smoothing=flipped
        )
        trainers[name] = _pair_trainer(loss, config, labels.batch_size)
      for name, train in trainers.items():
        policy = train(world, pairs, (beta,))[0]
        result[f'{key}.{name}_{flipped}'] = _point(world, policy)
  return result


def other_betas(config, world: World) -> dict:
  """DPO on the labels of `noise`, at β that suit it better."""
  result = {}
  for key, labels in NOISE.items():
    train = _pair_trainer(preference.dpo_loss, config, labels.batch_size)
    betas = OTHER_BETAS[key]
    for flipped in FLIPPED:
      pairs = _wrong_pairs(config, world, labels, flipped)
      policies = train(world, pairs, betas)
      for beta, logprobs in zip(betas, policies, strict=True):
        result[f'{key}.dpo_{flipped}_{beta}'] = _point(world, logprobs)
  return result


def likelihood(config, world: World) -> dict:
  """Log-probabilities of the chosen strings under DPO and RPO."""
  result = {}
  pairs = near_duplicates(world, config.seed, config.few_pairs)
  for name, loss in (('dpo', preference.dpo_loss), ('rpo', _rpo_loss)):
    train = _pair_trainer(loss, config, config.few_batch_size)
    logprobs = train(world, pairs, (BETA,))[0]
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
  right, other = (
    jnp.asarray(DEVIATION * reward, jnp.float32)
    for reward in (world.reward, rng.permutation(world.reward))
  )
  result = {}
  for name in learners.ALGORITHMS:
    coefs = GROUP_COEFS if name.startswith('grpo') else KL_COEFS
    runs = {f'{name}_{coef}': (right, coef) for coef in coefs}
    if name == 'rloo':
      runs['permuted'] = (other, KL_COEF)
    train = learners.make_rl_trainer(name, settings)
    train = jax.jit(jax.vmap(train, in_axes=(None, 0, None, 0)))
    rewards, coefs = (jnp.stack(x) for x in zip(*runs.values(), strict=True))
    policies = train(world.params, rewards, config.seed, coefs)
    for key, logprobs in zip(runs, policies, strict=True):
      result[key] = _point(world, logprobs)
  return result


PARTS: dict[str, Callable[..., dict]] = {
  'exact': exact,
  'dpo': dpo,
  'noise': noise,
  'other_betas': other_betas,
  'likelihood': likelihood,
  'rl': rl,
}


def draw_pairs(
  world: World,
  seed: int,
  count: int,
  *,
  deviation: float = 1.0,
  flipped: float = 0.0,
) -> Pairs:
  """Two strings of the reference each; the better wins by Bradley and Terry.

  Args:
    world: its rewards times `deviation` are those of the labels.
    seed: the strings and first labels depend on it alone.
    count: pairs.
    deviation: standard deviation of the rewards; the larger, the surer a label.
    flipped: the probability with which a label is flipped; 0.5 makes it random.
  """
  rng = np.random.default_rng((seed, 1))
  first, second = (language.draw(rng, world.ref, count) for _ in range(2))
  return _compare(deviation * world.reward, rng, first, second, flipped)


def _wrong_pairs(config, world, labels: Labels, flipped: float) -> Pairs:
  return draw_pairs(
    world,
    config.seed,
    min(labels.pairs, config.pairs),
    deviation=labels.deviation,
    flipped=flipped,
  )


def near_duplicates(world: World, seed: int, count: int) -> Pairs:
  """Pairs that differ in one token, the last of the string."""
  rng = np.random.default_rng((seed, 2))
  first = language.draw(rng, world.ref, count)
  shift = rng.integers(1, VOCAB, count)
  second = first - first % VOCAB + (first + shift) % VOCAB
  return _compare(world.reward, rng, first, second, 0.0)


def _compare(reward, rng, first, second, flipped):
  margin = reward[first] - reward[second]
  wins = rng.random(len(first)) < 1.0 / (1.0 + np.exp(-margin))
  wins ^= rng.random(len(first)) < flipped
  return Pairs(np.where(wins, first, second), np.where(wins, second, first))


def _rpo_loss(chosen, *others, beta):
  tokens = jnp.full(chosen.shape, float(LENGTH))
  return preference.rpo_loss(chosen, *others, tokens, beta=beta)


def _pair_trainer(loss, config, batch_size):
  """(world, pairs, betas) -> log-probabilities [betas, COUNT]."""
  settings = Settings(config.steps, config.rate, batch_size)
  train = learners.make_preference_trainer(loss, settings)
  side_by_side = jax.jit(jax.vmap(train, in_axes=(None, None, None, 0)))

  def run_all(world: World, pairs: Pairs, betas: Sequence[float]):
    pairs = Pairs(*map(jnp.asarray, pairs))
    return side_by_side(world.params, pairs, config.seed, jnp.array(betas))

  return run_all


def _point(world, logprobs) -> dict:
  return language.place(world, logprobs)._asdict()
