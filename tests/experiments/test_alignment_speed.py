"""Alignment speed: rows, ratios and controls; our side of both kinds."""

import json

import pytest

from experiments.alignment_speed import measure, rows
from llm import config_args
from llm.errors import UserError
from llm.text.tokenizer import load_tokenizer

CONFIG = 'experiments/alignment_speed/config.py:smoke'


@pytest.fixture
def make_settings():
  def make(kind):
    config = config_args.load_config(CONFIG)
    config.kind = kind
    return config, json.loads(json.dumps(measure.settings(config)))

  return make


def test_the_control_compares_losses_by_step_and_rewards_by_their_mean():
  first = {
    'ours': {'losses': [3.0, 2.0], 'rewards': [0.0, 0.5]},
    'trl': {'losses': [3.0, 2.5], 'rewards': [0.9, 0.25]},
  }
  assert measure.compare('dpo', first) == {
    'steps': 2,
    'first': 3.0,
    'last': 2.0,
    'loss_apart': 0.5,
  }
  assert measure.compare('grpo', first)['reward_apart'] == 0.25


def test_what_cannot_be_measured_is_refused():
  config = config_args.load_config(CONFIG)
  config.kind = 'ppo'
  with pytest.raises(UserError, match="kind='ppo': use one of dpo"):
    measure.check_fields(config)
  config.kind, config.systems = 'grpo', ('ours', 'jax')
  with pytest.raises(UserError, match="systems has 'jax'"):
    measure.check_fields(config)
  config.systems = ()
  with pytest.raises(UserError, match="'ours' must be one of them"):
    measure.check_fields(config)


def test_words_are_tokens_and_the_reward_counts_even_ones(
  make_settings, tmp_path
):
  config, settings = make_settings('dpo')
  rows.write_model(str(tmp_path), config.model.to_dict(), settings)
  tok = load_tokenizer(str(tmp_path))
  assert tok.encode('w0 w61') == [0, 61] and tok.eos_ids == (62,)
  for pair in rows.draw_pairs(settings):
    assert len(tok.encode(pair['prompt'])) == 4
    whole = tok.encode(pair['prompt'] + pair['chosen'])
    assert 8 <= len(whole) <= 12
  assert rows.even_share('w2 w3 w4 w60 <end>') == 0.75
  assert rows.even_share('') == 0.0


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['dpo', 'grpo'])
def test_our_side_trains(make_settings, tmp_path, kind):
  from experiments.alignment_speed import ours

  config, settings = make_settings(kind)
  rows.write_model(str(tmp_path), config.model.to_dict(), settings)
  train = ours.make_train(str(tmp_path), settings)
  found = train(2) + train(1)
  assert [row['step'] for row in found] == [1, 2, 3]
  if kind == 'dpo':
    assert found[0]['loss'] == pytest.approx(0.693147, abs=1e-5)
  else:
    assert all(0.0 <= row['reward_mean'] <= 1.0 for row in found)
    assert found[0]['logprob_gap'] < 1e-5
