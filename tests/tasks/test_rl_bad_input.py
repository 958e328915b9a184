"""What a reinforcement run refuses, by name and before it reads the weights."""

import dataclasses
import math
import types

import pytest

from llm import config_args
from llm.checkpoints.source import open_checkpoint
from llm.errors import UserError
from llm.models.transformer import Transformer
from llm.rewards import rater as rl_rewards
from llm.rewards.model import RewardModel
from llm.tasks import rl, run
from tests.fixtures import ROOT

GOOD = {'prompt': 'What is it?', 'answer': 'A row.'}
FIELDS = {
  'loss.name': [('mse', "loss.name='mse': use one of ppo, rloo, reinforce")],
  'loss.kl_coef': [
    (-1.0, 'loss.kl_coef=-1.0: use a number of at least 0'),
    (math.nan, 'loss.kl_coef=nan: use a number of at least 0'),
    (math.inf, 'loss.kl_coef=inf: use a number of at least 0'),
  ],
  'loss.clip_low': [(3.0, 'loss.clip_low=3.0: use a number from 0 to 1')],
  'loss.kl_estimator': [
    ('k4', "loss.kl_estimator='k4': use one of k1, k2, k3")
  ],
  'loss.reduction': [('mean', "loss.reduction='mean': use one of token, seq")],
  'loss.value_coef': [(1.0, 'loss.value_coef=1.0: grpo does not read it; it')],
  'loss.dual_clip': [
    (1.2, 'loss.dual_clip=1.2: use a number above 1 + loss.clip_high = 1.2')
  ],
  'train.best': [
    ('eval_reward_mean', "train.best='eval_reward_mean': nothing is evaluated"),
    ('eval_loss', "train.best='eval_loss': rl evaluates eval_reward_mean"),
  ],
  'loss.lam': [(0.9, 'loss.lam=0.9: grpo does not read it')],
  'loss.kl_target': [(1.0, 'loss.kl_target=1.0: the controller is of ppo and')],
  'rollout.group_size': [
    (0, 'rollout.group_size=0: grpo compares the completions of one prompt'),
    (1, 'rollout.group_size=1: grpo compares the completions of one prompt'),
  ],
  'rollout.max_new_tokens': [
    (0, 'rollout.max_new_tokens=0: use 1 or more'),
    (96, 'rollout.max_new_tokens=96 exceed the model'),
  ],
  'rollout.temperature': [
    (0.0, 'rollout.temperature=0.0: use a number of 0.0001 or more'),
    (float('nan'), 'rollout.temperature=nan'),
  ],
  'rollout.minibatches': [
    (0, 'rollout.minibatches=0'),
    (3, 'rollout.minibatches=3: use a divisor of train.batch_size=2'),
  ],
  'rollout.epochs': [(3, 'train.steps=2: use a multiple of 3')],
  'rollout.max_resamples': [
    (2, 'rollout.max_resamples=2: grpo takes groups as they come'),
  ],
  'loss.kl_horizon': [(1e4, 'loss.kl_horizon=10000.0: is of the controller')],
  'rollout.overlong_margin': [(9, 'rollout.overlong_margin=9: use 0 (off) to')],
  'train.batch_size': [(0, 'train.batch_size=0: use 1 or more')],
  'train.microbatch_size': [
    (-1, 'train.microbatch_size=-1'),
    (
      3,
      'train.microbatch_size=3: use a divisor of 8, the completions of a step',
    ),
  ],
  'train.steps': [(0, 'train.steps=0: use 1 or more')],
  'data.path': [(None, 'data.path is not set')],
  'data.packing': [(True, 'data.packing=True: prompts are neither packed')],
  'data.overlong': [('truncate', "data.overlong='truncate': prompts are")],
  'data.max_length': [
    (4, 'data.path: all 4 prompts are longer than data.max_length=4'),
    (97, 'data.max_length=97: the model takes 96'),
  ],
  'data.eval_fraction': [
    (1.0, 'data.eval_fraction=1.0: of 4 prompts it leaves 0'),
    (0.99, 'data.eval_fraction=0.99: of 4 prompts it leaves 0'),
    (-0.5, 'data.eval_fraction=-0.5'),
  ],
  'data.eval_path': [('/no/x.jsonl', "data.eval_path='/no/x.jsonl' does not")],
  'data.curriculum': [(((0.5, 8),), 'data.curriculum and data.separator are')],
  'rewards': [
    ((), 'rewards=(): give some'),
    ((('exact', 1.0),), "rewards: ('exact', 1.0): no such reward"),
    ((('passes_tests', 1.0),), "row 1: has no 'tests', which the reward"),
    ((('model', 1.0, {'path': '/no'}),), "{'path': '/no'}): "),
  ],
  'optim.lr': [(-1.0, 'optim.lr=-1.0: use a number of at least 0')],
  'optim.groups': [((('no_such', {}),), "optim.groups: pattern 'no_such'")],
}


@pytest.fixture
def refuse(model_folder, write_rows, tmp_path, monkeypatch):
  """Runs the task; returns the message, given before any weight is read."""

  def fail(*args):
    raise AssertionError('the weights were read')

  monkeypatch.setattr(rl, 'build_train_model', fail)
  path = write_rows(*[GOOD] * 4, name='good.jsonl')

  def refuse(changes):
    config = config_args.load_config(str(ROOT / 'configs' / 'rl.py'))
    fields = {
      'model.path': model_folder,
      'data.path': path,
      'data.max_length': 32,
      'train.steps': 2,
      'train.batch_size': 2,
      'rollout.group_size': 4,
      'rollout.max_new_tokens': 8,
    }
    for name, value in (fields | changes).items():
      *groups, last = name.split('.')
      node = config
      for group in groups:
        node = node[group]
      node[last] = value
    with pytest.raises(UserError) as caught:
      run.run_task(config, str(tmp_path / 'run'))
    return ' '.join(str(caught.value).split())

  return refuse


@pytest.mark.parametrize('field', FIELDS)
def test_wrong_values_are_refused_by_name(refuse, field):
  for value, wanted in FIELDS[field]:
    assert wanted in refuse({field: value})


def test_what_only_some_algorithms_read(refuse):
  for changes, wanted in [
    (
      {'loss.name': 'rloo', 'loss.kl_target': 0.0},
      'loss.kl_target=0.0: use a number above 0',
    ),
    (
      {'loss.name': 'ppo', 'loss.kl_target': 1.0, 'loss.kl_coef': 0.0},
      'with loss.kl_coef above 0 to begin with',
    ),
    (
      {'loss.name': 'ppo', 'loss.kl_target': 1.0, 'loss.kl_horizon': 0.0},
      'loss.kl_horizon=0.0: use a number above 0',
    ),
    (
      {'loss.name': 'ppo', 'loss.kl_target': math.nan},
      'loss.kl_target=nan: use a number above 0',
    ),
    (
      {'loss.name': 'rloo', 'loss.kl_target': 1.0, 'loss.kl_horizon': math.inf},
      'loss.kl_horizon=inf: use a number above 0',
    ),
    (
      {'loss.name': 'ppo', 'loss.gamma': 7.0},
      'loss.gamma=7.0: use a number from 0 to 1',
    ),
    (
      {'loss.name': 'dapo', 'loss.kl_corrected': True},
      'loss.kl_corrected=True: there is no KL; set loss.kl_coef above 0',
    ),
    (
      {
        'train.eval_every': 3,
        'data.eval_fraction': 0.25,
        'rollout.minibatches': 2,
      },
      'train.eval_every=3: use a multiple of 2',
    ),
    (
      {'loss.name': 'ppo', 'loss.lam': 2.0},
      'loss.lam=2.0: use a number from 0 to 1',
    ),
    (
      {'loss.name': 'ppo', 'loss.value_clip': math.inf},
      'loss.value_clip=inf: use a number of at least 0',
    ),
    (
      {'loss.name': 'dapo', 'rollout.max_resamples': -1},
      'rollout.max_resamples=-1: use 0 or more',
    ),
    (
      {'loss.name': 'dr_grpo', 'rollout.group_size': 1},
      'dr_grpo compares the completions',
    ),
    (
      {'lora.rank': 2, 'lora.dropout': 0.1},
      'lora.dropout=0.1: completions are sampled and rated without it; use 0',
    ),
  ]:
    assert wanted in refuse(changes), changes


def test_rows_are_refused_by_number(refuse, write_rows):
  for row, wanted in [
    ({'prompt': 'x'}, "row 2: has no 'answer', which the reward exact_answer"),
    ({'answer': 'x'}, 'row 2: has no prompt'),
    ('{"prompt": ', 'row 2: '),
  ]:
    path = write_rows(GOOD, row, name='bad.jsonl')
    for field in ('data.path', 'data.eval_path'):
      message = refuse({field: path})
      assert wanted in message and 'bad.jsonl' in message


def test_reward_models_that_read_other_tokens(
  refuse, model_folder, monkeypatch
):
  shape = open_checkpoint(model_folder).config
  small = dataclasses.replace(shape, vocab_size=shape.vocab_size - 1)
  short = dataclasses.replace(shape, max_length=39)
  other = types.SimpleNamespace(token_bytes=lambda id: b'x')
  for shape, tok, wanted in [
    (small, None, 'it has another vocabulary than the policy'),
    (shape, other, 'it has another vocabulary than the policy'),
    (
      short,
      None,
      'it takes 39 tokens, and data.max_length=32 with',
    ),
  ]:
    model = RewardModel('RM', Transformer(shape), None, tok)
    monkeypatch.setattr(rl_rewards, 'load_reward_model', lambda _: model)
    message = refuse({'rewards': (('model', 0.5, {'path': 'RM'}),)})
    assert wanted in message
    assert message.startswith("rewards: ('model', 0.5, {'path': 'RM'}): ")
