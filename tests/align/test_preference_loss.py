"""Each loss of pairs gets what its signature names, and the options it has."""

import inspect

import numpy as np
import pytest

from llm.align.checks import needs_reference
from llm.align.preference_loss import LOSSES, PairScores
from llm.losses import preference
from llm.losses.options import PREFERENCE

RNG = np.random.default_rng(0)


def _logprobs():
  return -RNG.random(4).astype(np.float32) - 1.0


PAIRS = PairScores(
  chosen=_logprobs(),
  rejected=_logprobs(),
  chosen_tokens=np.array([1.0, 2.0, 3.0, 4.0]),
  rejected_tokens=np.array([5.0, 4.0, 3.0, 2.0]),
  weights=np.array([True, True, False, True]),
  tokens_per_pair=np.full(4, 2.5),
  ref_chosen=_logprobs(),
  ref_rejected=_logprobs(),
  prompt=_logprobs(),
  prompt_tokens=np.array([2.0, 2.0, 1.0, 3.0]),
)


@pytest.mark.parametrize('name', PREFERENCE)
def test_a_loss_reads_what_it_names(name):
  function = getattr(preference, f'{name}_loss')
  names = set(inspect.signature(function).parameters)
  inputs = {n: getattr(PAIRS, n) for n in names - set(PREFERENCE[name])}
  options = {'beta': 0.3}
  loss, weight, metrics = LOSSES[name](PAIRS, **options)
  wanted, total, others = function(**inputs, **options)
  assert float(loss) == float(wanted) != 0.0
  assert float(weight) == float(total) == 3.0
  assert {k: float(v) for k, v in metrics.items()} == {
    k: float(v) for k, v in others.items()
  }
  assert needs_reference(name) == ('ref_chosen' in names)


def test_every_loss_has_a_formula():
  assert list(LOSSES) == list(PREFERENCE)
