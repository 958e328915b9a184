"""The run: one length of strings in one world, by `config.part`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import machine
from experiments.exact_frontier import language, learners
from experiments.exact_frontier.language import World
from experiments.overoptimisation import curves, networks, policy
from experiments.overoptimisation import gold as gold_lib
from experiments.overoptimisation import proxy as proxy_lib
from llm.errors import UserError
from llm.runs import outputs

SIZES = (30, 100, 300, 1000, 3000)  # pairs, the first ones of the largest
COIN, GOLD = 'coin', 'gold'  # controls
JUDGES = (*map(str, SIZES), COIN)  # what there is a proxy for
SAMPLES = tuple(2**k for k in range(13))  # n of best-of-n
STRENGTHS = tuple(0.1 * 1.3**k for k in range(25))  # of the best policies
SHORT_KL_COEFS = (0.1, 0.3, 1.0)  # of RLOO beside them
SHORT_PAIRS = '300'  # judge of RLOO beside them
_STANDARD = 16_384  # samples under which a proxy is standardised


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
  result |= PARTS[config.part](config)
  outputs.write_result(workdir, result)


def long(config) -> dict:
  """Sampled strings: RLOO over its course, and best-of-n from samples."""
  train = make_long(config)
  pool, logs = jax.tree.map(np.asarray, train(config.seed))
  result = {'largest_gold': float(pool.gold.max())}
  for i, judge in enumerate(JUDGES):
    result[f'agreement_{judge}'] = _correlation(pool.proxy[i], pool.gold)
    points = [curves.best_of_n(pool.proxy[i], pool.gold, n) for n in SAMPLES]
    scores, values = zip(*points)
    kl = [curves.best_of_n_kl(n) for n in SAMPLES]
    result[f'best_{judge}'] = _curve(kl, scores, values)
  for i, judge in enumerate((*JUDGES, GOLD)):
    result[f'rl_{judge}'] = _curve(*(log[i] for log in logs))
  return result


def short(config) -> dict:
  """Counted strings: the best policies, best-of-n, and RLOO, exactly."""
  params, gold, scores = make_short(config)(config.seed)
  ref = np.asarray(jax.jit(language.all_logprobs)(params), np.float64)
  ref -= np.logaddexp.reduce(ref)
  gold, scores = np.asarray(gold, np.float64), np.asarray(scores, np.float64)
  result = {'largest_gold': gold.max()}
  for judge, proxy in zip((*JUDGES, GOLD), (*scores, gold)):
    by_proxy, by_gold = World(params, ref, proxy), World(params, ref, gold)
    chosen = {
      'rl': [language.optimum(by_proxy, s) for s in STRENGTHS],
      'best': [language.best_of_n(by_proxy, n) for n in SAMPLES],
    }
    for name, policies in chosen.items():
      result[f'{name}_{judge}'] = _exact_curve(by_proxy, by_gold, policies)
    if judge == SHORT_PAIRS:
      result |= _followed(config, by_proxy, by_gold)
  return result


PARTS: dict[str, Callable[..., dict]] = {'long': long, 'short': short}


class Pool(NamedTuple):
  """Samples of the reference, for best-of-n."""

  gold: jax.Array  # float32[M]
  proxy: jax.Array  # float32[JUDGES, M]


def make_long(config) -> Callable[[int], tuple[Pool, policy.Log]]:
  """Returns the compiled `train(seed)`: all proxies, and RLOO on each.

  The log is of JUDGES and GOLD, [7, W].
  """
  train_policy = policy.make_trainer(
    policy.Settings(length=config.length, **config.rl)
  )

  @jax.jit
  def train(seed):
    keys = jax.random.split(jax.random.key(seed), 5)
    params = language.init_params(keys[0])
    pool, _ = networks.sample(params, keys[1], config.pool, config.length)
    gold = gold_lib.make_gold(keys[2], pool)
    judges = _train_judges(config, keys[3], params, gold, pool[:_STANDARD])

    def learn(judge):
      proxy, is_gold = judge

      def reward(strings):
        score = proxy_lib.score(proxy, strings)
        return jnp.where(is_gold, gold_lib.score(gold, strings), score)

      value = lambda strings: gold_lib.score(gold, strings)
      return train_policy(keys[4], params, reward, value)

    # In the last turn, gold itself, the proxy is not used.
    again = jax.tree.map(lambda x: jnp.concatenate([x, x[-1:]]), judges)
    logs = lax.map(learn, (again, jnp.arange(len(JUDGES) + 1) == len(JUDGES)))
    scores = lax.map(lambda judge: proxy_lib.score(judge, pool), judges)
    return Pool(gold_lib.score(gold, pool), scores), logs

  return train


def make_short(config) -> Callable:
  """Returns the compiled `train(seed)`: the reference, gold and proxies.

  Gold float32[COUNT] and proxies float32[JUDGES, COUNT] are of all strings,
  with mean 0 and standard deviation 1 under the reference.
  """

  @jax.jit
  def train(seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    params = language.init_params(keys[0])
    strings = jnp.asarray(language.STRINGS)
    weights = jnp.exp(language.all_logprobs(params))
    gold = gold_lib.make_gold(keys[2], strings, weights)
    judges = _train_judges(config, keys[3], params, gold, strings, weights)
    scores = lax.map(lambda judge: proxy_lib.score(judge, strings), judges)
    return params, gold_lib.score(gold, strings), scores

  return train


def _train_judges(config, rng, params, gold, strings, weights=None):
  """A Proxy for each of JUDGES, stacked; standardised on the strings."""
  keys = jax.random.split(rng, 3)
  length = strings.shape[1]
  drawn, _ = networks.sample(params, keys[0], 2 * SIZES[-1], length)
  pairs = proxy_lib.compare(keys[1], drawn, gold_lib.score(gold, drawn))
  train = proxy_lib.make_trainer(proxy_lib.Settings(**config.proxy))
  both = jax.tree.map(lambda *x: jnp.stack(x), *pairs)

  def learn(judge):
    count, label = judge
    mine = jax.tree.map(lambda x: x[label], both)
    return train(keys[2], mine, count, strings, weights)

  counts = jnp.array([*SIZES, SIZES[-1]])
  return lax.map(learn, (counts, jnp.arange(len(JUDGES)) // len(SIZES)))


def _followed(config, by_proxy: World, by_gold: World) -> dict:
  """RLOO on a proxy of the short language, and the best policy it aims at."""
  settings = learners.Settings(
    config.short_rl.steps, config.short_rl.rate, config.short_rl.batch_size
  )
  train = learners.make_rl_trainer('rloo', settings)
  reward = jnp.asarray(by_proxy.reward, jnp.float32)
  result = {}
  for coef in SHORT_KL_COEFS:
    logprobs = train(by_proxy.params, reward, config.seed, coef)
    logprobs = np.asarray(logprobs, np.float64)
    logprobs -= np.logaddexp.reduce(logprobs)
    aim = language.optimum(by_proxy, 1.0 / coef)
    kl, found = language.kl_and_gain(by_gold, logprobs)
    aim_kl, expected = language.kl_and_gain(by_gold, aim)
    result[f'follows_{coef}'] = {
      'kl': kl, 'gold': found, 'aim_kl': aim_kl, 'aim_gold': expected
    }  # fmt: skip
  return result


def _exact_curve(by_proxy, by_gold, policies) -> dict:
  points = [language.kl_and_gain(by_gold, policy) for policy in policies]
  kl, values = zip(*points)
  scores = [language.kl_and_gain(by_proxy, policy)[1] for policy in policies]
  return _curve(kl, scores, values)


def _curve(kl: Sequence, proxy: Sequence, gold: Sequence) -> dict:
  """Numbered points, one column of the csv each."""
  columns = {'kl': kl, 'proxy': proxy, 'gold': gold}
  return {
    name: {f'{i:02d}': float(value) for i, value in enumerate(values)}
    for name, values in columns.items()
  }


def _correlation(first, second) -> float:
  return float(np.corrcoef(first, second)[0, 1])
