"""What a preference run refuses, by name and before it reads the weights."""

import math
import pathlib

import pytest

from llm import config_args
from llm.errors import UserError
from llm.tasks import preference, run

ROOT = pathlib.Path(__file__).parents[2]
GOOD = {'prompt': 'q', 'chosen': 'yes', 'rejected': 'no'}
FRESH = {
  'model.embed_dim': 16,
  'model.hidden_dim': 16,
  'model.num_layers': 1,
  'model.num_heads': 2,
  'model.num_kv_heads': 1,
  'model.head_dim': 8,
  'tokenizer.path': 'bytes',
}


@pytest.fixture
def refuse(write_rows, tmp_path, monkeypatch):
  """Runs the task; returns the message, given before any weight is read."""

  def fail(*args):
    raise AssertionError('the weights were read')

  monkeypatch.setattr(preference, 'build_train_model', fail)
  data = write_rows(*[GOOD] * 8, name='data.jsonl')

  def refuse(changes):
    config = config_args.load_config(str(ROOT / 'configs' / 'preference.py'))
    fields = FRESH | {
      'data.path': data,
      'data.max_length': 32,
      'train.steps': 2,
      'train.batch_size': 2,
      'optim.warmup_steps': 0,
    }
    args = [f'--config.{k}={v}' for k, v in (fields | changes).items()]
    config_args.override_config(config, args)
    with pytest.raises(UserError) as caught:
      run.run_task(config, str(tmp_path / 'run'))
    return ' '.join(str(caught.value).split())

  return refuse


FIELDS = {
  'loss.name': [('mse', "loss.name='mse': use one of dpo, cdpo, robust_dpo")],
  'loss.beta': [
    (0.0, 'loss.beta=0.0: use a number above 0'),
    (-0.1, 'loss.beta=-0.1: use a number above 0'),
    (float('nan'), 'loss.beta=nan: use a number above 0'),
  ],
  'loss.label_smoothing': [
    (0.1, 'loss.label_smoothing=0.1: dpo does not read it; it has loss.beta'),
  ],
  'loss.logprobs': [('sum', "loss.logprobs='sum': dpo does not read it")],
  'loss.alpha': [(1.0, 'loss.alpha=1.0: dpo does not read it')],
  'loss.nll': [('token', "loss.nll='token': dpo does not read it")],
  'loss.gamma': [(1.0, 'loss.gamma=1.0: dpo does not read it')],
  'loss.gamma_ratio': [(1.0, 'loss.gamma_ratio=1.0: dpo does not read it')],
  'loss.desirable_weight': [
    (1.0, 'loss.desirable_weight=1.0: dpo does not read it')
  ],
  'loss.nll_prompt': [(True, 'loss.nll_prompt=True: dpo does not read it')],
  'loss.ld_alpha': [
    (1.5, 'loss.ld_alpha=1.5: use a number from 0 to 1'),
    (-0.5, 'loss.ld_alpha=-0.5'),
  ],
  'loss.reference': [
    ('model', "loss.reference='model': use one of precomputed, frozen, base"),
    ('base', 'set lora.rank above 0'),
  ],
  'data.overlong': [('split', "data.overlong='split'")],
  'data.separator': [('#', 'data.separator are of texts')],
  'data.max_length': [(4096, 'data.max_length=4096: the model takes 2048')],
  'data.eval_fraction': [(0.99, 'data.eval_fraction=0.99: of 8 pairs')],
  'train.microbatch_size': [(3, 'train.microbatch_size=3: it must divide')],
}


@pytest.mark.parametrize('field', FIELDS)
def test_wrong_values_are_refused_by_name(refuse, field):
  for value, wanted in FIELDS[field]:
    assert wanted in refuse({field: value})


@pytest.mark.parametrize(
  'name, field, value, wanted',
  [
    ('cdpo', 'label_smoothing', 0.5, 'label_smoothing=0.5'),
    ('robust_dpo', 'label_smoothing', -0.1, 'label_smoothing=-0.1'),
    ('ipo', 'logprobs', 'median', "logprobs='median' must be 'mean' or 'sum'"),
    ('rpo', 'nll', 'word', "nll='word' must be 'token' or 'sequence'"),
    ('rpo', 'alpha', -1.0, 'loss.alpha=-1.0: use a number of at least'),
    ('simpo', 'gamma', math.nan, 'loss.gamma=nan: use a number of at least 0'),
    ('simpo', 'gamma_ratio', math.inf, 'loss.gamma_ratio=inf: use a number'),
    ('simpo', 'reference', 'frozen', 'simpo has no reference; leave it unset'),
    ('simpo', 'label_smoothing', 0.7, 'label_smoothing=0.7'),
  ],
)
def test_wrong_values_of_one_loss(refuse, name, field, value, wanted):
  assert wanted in refuse({'loss.name': name, f'loss.{field}': value})


def test_rows_are_refused_by_number(refuse, write_rows):
  for rows, wanted in [
    ([''], 'holds no rows'),
    ([GOOD, {'prompt': 'a', 'completion': 'b'}], 'row 2: is no preference row'),
    ([GOOD, '{"prompt": '], 'row 2: '),
    ([GOOD | {'rejected': 'yes'}], 'no pair is left'),
    ([GOOD, GOOD | {'margin': 'x'}], "row 2: margin='x'"),
  ]:
    path = write_rows(*rows, name='bad.jsonl')
    message = refuse({'data.path': path})
    assert wanted in message and 'data.path' in message, message
    message = refuse({'data.eval_path': path})
    assert wanted in message and 'data.eval_path' in message
