"""What an online preference run refuses, before it reads the weights."""

import pytest

from llm import config_args
from llm.errors import UserError
from llm.tasks import online_preference, run
from tests.fixtures import ROOT

GOOD = {'prompt': 'What is it?', 'answer': 'A row.'}
FIELDS = {
  'loss.name': [
    ('mse', "loss.name='mse': use one of dpo, cdpo, robust_dpo"),
    ('kto', "loss.name='kto': learns from single completions"),
  ],
  'loss.beta': [(0.0, 'loss.beta=0.0: use a number above 0')],
  'loss.logprobs': [('sum', "loss.logprobs='sum': dpo does not read it")],
  'loss.nll_prompt': [(True, 'loss.nll_prompt=True: dpo does not read it')],
  'rollout.group_size': [
    (1, 'rollout.group_size=1: a pair needs 2 completions or more')
  ],
  'rollout.max_new_tokens': [
    (0, 'rollout.max_new_tokens=0: use 1 or more'),
    (96, 'rollout.max_new_tokens=96 exceed the model'),
  ],
  'rollout.temperature': [(0.0, 'rollout.temperature=0.0: use a number of')],
  'rollout.minibatches': [
    (3, 'rollout.minibatches=3: use a divisor of train.batch_size=2')
  ],
  'rollout.epochs': [(3, 'train.steps=2: use a multiple of 3')],
  'rollout.reference_every': [
    (-1, 'rollout.reference_every=-1: use 0 (never) or a number of rollouts'),
    (3, 'train.steps=2: use a multiple of 3 (rollout.reference_every · '),
  ],
  'train.microbatch_size': [
    (3, 'train.microbatch_size=3: use a divisor of 2, the pairs of a step')
  ],
  'data.path': [(None, 'data.path is not set')],
  'data.packing': [(True, 'data.packing=True: prompts are neither packed')],
  'rewards': [
    ((), 'rewards=(): give some'),
    ((('passes_tests', 1.0),), "row 1: has no 'tests', which the reward"),
  ],
}


@pytest.fixture
def refuse(model_folder, write_rows, tmp_path, monkeypatch):
  """Runs the task; returns the message, given before any weight is read."""

  def fail(*args):
    raise AssertionError('the weights were read')

  monkeypatch.setattr(online_preference, 'build_train_model', fail)
  path = write_rows(*[GOOD] * 4, name='good.jsonl')

  def refuse(changes):
    config = config_args.load_config(
      str(ROOT / 'configs' / 'online_preference.py')
    )
    fields = {
      'model.path': model_folder,
      'data.path': path,
      'data.max_length': 32,
      'train.steps': 2,
      'train.batch_size': 2,
      'train.eval_every': 0,
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


def test_what_does_not_go_together_is_refused(refuse):
  for changes, wanted in [
    (
      {'loss.name': 'simpo', 'rollout.reference_every': 1},
      'rollout.reference_every=1: simpo has no reference; use 0',
    ),
    (
      {'rollout.reference_every': 2, 'train.checkpoint_every': 1},
      'train.checkpoint_every=1: use a multiple of 2',
    ),
    (
      {'lora.rank': 2, 'lora.dropout': 0.1},
      'lora.dropout=0.1: completions are sampled and rated without it; use 0',
    ),
  ]:
    assert wanted in refuse(changes), changes
