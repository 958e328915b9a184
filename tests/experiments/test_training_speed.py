"""Training speed: how turns become numbers, and what our side reports."""

import json

import numpy as np
import pytest

from experiments.training_speed import measure, rows
from llm import config_args
from llm.checkpoints.hf.save import save_hf
from llm.models.config import ModelConfig
from tests.models import tiny

CONFIG = 'experiments/training_speed/config.py:smoke'


def test_the_largest_difference_of_any_loss_counts():
  losses = {'ours': [3.0, 2.0], 'a': [3.0, 2.5], 'b': [2.75, 2.0]}
  assert measure.compare(losses) == {
    'steps': 2,
    'apart': 0.5,
    'first': 3.0,
    'last': 2.0,
  }


def test_rows_begin_with_a_prompt():
  settings = {
    'seed': 0,
    'rows': 3,
    'tokens': 5,
    'prompt_tokens': 2,
    'vocab_size': 7,
  }
  tokens, mask = rows.draw_rows(settings)
  assert tokens.shape == mask.shape == (3, 5)
  assert tokens.dtype == np.int32 and tokens.max() < 7
  np.testing.assert_array_equal(mask, [[False] * 2 + [True] * 3] * 3)


@pytest.mark.slow
def test_our_side_trains_and_says_where_the_time_goes(tmp_path):
  from experiments.training_speed.ours import Trainer

  config = config_args.load_config(CONFIG)
  shape = ModelConfig(
    **config.model.to_dict(),
    num_kv_heads=config.model.num_heads,
    max_length=config.tokens,
    tie_embeddings=False,
  )
  save_hf(str(tmp_path), shape, tiny.init(shape, factor=1.0))
  settings = json.loads(json.dumps(measure.settings(config)))
  trainer = Trainer(str(tmp_path), settings)
  losses = trainer.train(3)
  # Random tokens: about as likely as any other.
  np.testing.assert_allclose(losses, np.log(64), atol=0.1)
  split = trainer.split(2)
  np.testing.assert_allclose(
    split['data_s'] + split['compute_s'], split['step_s']
  )
  assert min(split[name] for name in split if name != 'compute_s') > 0.0
