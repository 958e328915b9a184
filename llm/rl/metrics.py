"""What people watch while a policy learns: numbers of one rollout."""

from collections.abc import Sequence

import numpy as np

from llm.decode.completion import Completion
from llm.losses.policy import groups_with_signal
from llm.rewards.rater import Ratings


def rollout_stats(
  completions: Sequence[Completion], ratings: Ratings, group_size: int
) -> dict[str, float]:
  """Rewards, lengths and signal; docs/rl.md explains each."""
  totals = ratings.totals
  rated = totals[np.isfinite(totals)]
  stats = {'unrated': float(len(totals) - len(rated))}
  if len(rated):
    stats |= {
      'reward_mean': float(rated.mean()),
      'reward_std': float(rated.std()),
      'reward_min': float(rated.min()),
      'reward_max': float(rated.max()),
    }
  for name, values in ratings.parts.items():
    finite = values[np.isfinite(values)]
    if len(finite):
      stats[f'reward_{name}'] = float(finite.mean())
  signal = np.asarray(groups_with_signal(totals, group_size))
  stats['groups_with_signal'] = float(signal.mean())
  return stats | _lengths(completions, totals)


def kl_stats(
  logprobs: np.ndarray, ref_logprobs: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
  """The KL of policy and reference on the policy's own completions.

  Args:
    logprobs: float[B, T], at sampling.
    ref_logprobs: float[B, T].
    mask: bool[B, T].

  Returns:
    `kl`, nats per completion (k1), and `kl_k1`, `kl_k2`, `kl_k3` per token.
  """
  delta = (ref_logprobs - logprobs)[mask].astype(np.float64)
  return {
    'kl': float(-delta.sum() / len(mask)),
    'kl_k1': float(-delta.mean()),
    'kl_k2': float(np.mean(delta**2) / 2),
    'kl_k3': float(np.mean(np.expm1(delta) - delta)),
  }


def _lengths(completions, totals) -> dict[str, float]:
  """Tokens of the completions: of all, of those with high and with low rewards.

  The border is half way between the smallest and the largest reward; with
  rewards of 0 and 1 it separates wrong from right.
  """
  lengths = np.array([len(c.token_ids) for c in completions], float)
  stats = {
    'length': float(lengths.mean()),
    'finished': float(
      np.mean([c.finish_reason == 'stop' for c in completions])
    ),
  }
  rated = np.isfinite(totals)
  if rated.any():
    low, high = totals[rated].min(), totals[rated].max()
    if high > low:
      right = rated & (totals > (low + high) / 2)
      stats['length_right'] = float(lengths[right].mean())
      stats['length_wrong'] = float(lengths[rated & ~right].mean())
  return stats
