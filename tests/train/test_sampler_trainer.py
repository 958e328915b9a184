"""Log-probabilities kept at sampling are those of the training forward."""

import numpy as np
import pytest

from tests.models import tiny
from tests.models.agreement import gaps

PROMPTS, GROUP = 64, 16  # 1,024 answers


@pytest.mark.slow
@pytest.mark.parametrize(
  'kind, temperature', [('dense', 1.0), ('dense', 0.7), ('local_global', 1.3)]
)
def test_over_a_thousand_answers_they_agree(kind, temperature):
  # The second kind has a window of 5: its cache is a ring, which prompts of 1
  # to 24 tokens with answers of up to 24 go round.
  model, params = tiny.build(kind, num_layers=2 - (kind == 'dense'))
  rng = np.random.default_rng(0)
  prompts = [
    tuple(rng.integers(3, 50, length))
    for length in rng.integers(1, 25, PROMPTS)
  ]
  answers, gap = gaps(
    model,
    params,
    prompts,
    group=GROUP,
    temperature=temperature,
    seed=(0,),
    max_new_tokens=24,
    eos_ids=(1, 2),
  )
  lengths = {len(a.token_ids) for a in answers}
  assert len(answers) >= 1000 and len(lengths) > 10 and max(lengths) == 24
  assert gap.max() < 1e-5
  # It is no accident: these are far from each other at another temperature.
  raw = np.concatenate([a.logprobs for a in answers])
  kept = np.concatenate([a.logprobs_processed for a in answers])
  assert (np.abs(raw - kept).max() > 0.1) == (temperature != 1.0)
