"""Reward models: trained, exported, read again; outcomes and steps."""

import json
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm import config_args
from llm.align import reward_data, reward_head, reward_loss
from llm.data.pairs import load_pairs
from llm.data.pipeline import eval_batches
from llm.errors import UserError
from llm.parallel.mesh import make_mesh
from llm.rewards.model import RewardModel, load_reward_model
from llm.runs import report
from llm.runs.train_model import build_train_model, read_spec
from llm.tasks import reward, run

ROOT = pathlib.Path(__file__).parents[2]
LN2 = math.log(2.0)
EOS = 257
PAIRS = [
  {
    'prompt': f'q{i}',
    'chosen': 'yes' + 'a' * (i % 4),
    'rejected': 'no' + 'b' * (i % 5),
  }
  for i in range(12)
]
STEPS = [
  {
    'prompt': f'q{i}:',
    'completions': ['one', 'two', 'bad'][: 2 + i % 2],
    'labels': [True, True, False][: 2 + i % 2],
  }
  for i in range(12)
]


@pytest.fixture
def make_config(write_rows, model_folder):
  """make_config(rows, {'train.steps': 1}) -> a config of a reward model."""

  def make(rows, changes=None):
    config = config_args.load_config(str(ROOT / 'configs' / 'reward.py'))
    fields = {
      'model.path': model_folder,
      'data.path': write_rows(*rows, name='data.jsonl'),
      'data.max_length': 16,
      'train.steps': 10,
      'train.batch_size': 4,
      'optim.lr': 1e-2,
      'optim.warmup_steps': 0,
    }
    args = [f'--config.{k}={v}' for k, v in (fields | (changes or {})).items()]
    config_args.override_config(config, args)
    return config

  return make


@pytest.fixture
def start(make_config, tmp_path, monkeypatch):
  """start(rows, changes) -> (rows of its metrics, result)."""
  monkeypatch.setattr(report, 'plot_loss', lambda *args: None)  # slow

  def start(rows, changes=None):
    workdir = tmp_path / 'run'
    run.run_task(make_config(rows, changes), str(workdir))
    result = json.loads((workdir / 'result.json').read_text())
    return report.read_rows(str(workdir)), result

  return start


def test_trained_exported_and_read_again(start, tmp_path):
  changes = {
    'data.eval_fraction': 0.25,
    'train.eval_first': True,
    'export': str(tmp_path / 'out'),
  }
  rows, result = start(PAIRS, changes)
  assert abs(rows[0]['eval_loss'] - LN2) < 1e-6
  assert abs(rows[1]['loss'] - LN2) < 1e-6
  assert rows[-1]['loss'] < 0.5
  assert result['eval_chance'] == 0.5 and result['eval_count'] == 3
  low, high = (result[f'eval_reward_accuracy_{k}'] for k in ('low', 'high'))
  assert 0 <= low <= result['eval_reward_accuracy'] <= high <= 1
  model = load_reward_model(str(tmp_path / 'out'))
  texts = [
    p['prompt'] + p[k] for p in PAIRS[9:] for k in ('chosen', 'rejected')
  ]
  tokens = [model.tokenizer.encode(text) + [EOS] for text in texts]
  scores = model.rate(tokens)
  assert scores.shape == (6,) and scores.dtype == np.float32
  # Those of the last evaluation, whatever the rows' company.
  np.testing.assert_allclose(
    scores[::2].mean(), result['eval_chosen_reward'], rtol=1e-5
  )
  np.testing.assert_allclose(
    scores[1::2].mean(), result['eval_rejected_reward'], rtol=1e-5
  )
  alone = [model.rate([row])[0] for row in tokens[:2]]
  np.testing.assert_allclose(alone, scores[:2], atol=1e-5)
  for row, match in [
    ([], 'row 0 has no token'),
    ([1] * 97, 'row 0 has 97 tokens, and the reward model takes 96'),
    ([1, 300], 'row 0 has token 300, and the reward model has 259'),
  ]:
    with pytest.raises(UserError, match=match):
      model.rate([row])


@pytest.mark.slow
def test_packed_adapters_in_microbatches(start, tmp_path):
  changes = {
    'data.packing': True,
    'data.max_length': 24,
    'train.batch_size': 2,
    'train.microbatch_size': 1,
    'train.steps': 20,
    'lora.rank': 2,
    'lora.dropout': 0.1,
    'optim.lr': 3e-2,
    'export': str(tmp_path / 'out'),
  }
  rows, result = start(PAIRS, changes)
  assert abs(rows[0]['loss'] - LN2) < 1e-6 and rows[-1]['loss'] < 0.5
  model = load_reward_model(str(tmp_path / 'out'))
  good, bad = model.rate([[256, *b'q1yes', EOS], [256, *b'q1no', EOS]])
  assert good > bad


def test_steps_are_scored_at_their_ends(start, tmp_path):
  changes = {
    'loss.name': 'process',
    'data.max_length': 24,
    'data.packing': True,
    'data.eval_fraction': 0.25,
    'train.batch_size': 2,
    'train.steps': 25,
    'optim.lr': 2e-2,
    'export': str(tmp_path / 'out'),
  }
  rows, result = start(STEPS, changes)
  assert abs(rows[0]['loss'] - LN2) < 1e-6 and rows[-1]['loss'] < 0.4
  steps = sum(len(row['labels']) for row in STEPS[9:])
  right = sum(sum(row['labels']) for row in STEPS[9:]) / steps
  assert result['eval_count'] == steps
  np.testing.assert_allclose(result['eval_label'], right, rtol=1e-6)
  np.testing.assert_allclose(result['eval_chance'], right, rtol=1e-6)
  model = load_reward_model(str(tmp_path / 'out'))
  good, bad = model.rate(
    [[256, *b'q1:one\ntwo\n'], [256, *b'q1:one\ntwo\nbad\n']]
  )
  assert good > bad


@pytest.fixture
def parts(make_config):
  """(config, model, pairs) with a head that is not 0."""
  rows = [row | {'margin': 0.3 * (i % 3)} for i, row in enumerate(PAIRS[:8])]
  config = make_config(rows, {'loss.center_coef': 0.05})
  spec = read_spec(config)
  train_model = build_train_model(config, spec, make_mesh(config.mesh))
  pairs, _ = load_pairs(config.data.path, spec.tokenizer, max_length=16)
  return config, reward_head.with_reward_head(train_model), pairs


def test_packed_loss_gradient_and_splits_by_hand(parts):
  config, train_model, pairs = parts
  head = np.random.default_rng(0).normal(size=(1, 16)).astype(np.float32)
  params = train_model.params | {'reward_head': {'kernel': jnp.asarray(head)}}
  loss_fn = reward_loss.make_reward_loss(train_model, config.loss, False)
  add = reward_data.make_columns(config, pairs)

  @jax.jit
  def both(params, batch):
    def total(params):
      loss, weight, sums = loss_fn(params, {}, batch, None)
      return loss, (weight, sums['chosen_reward'])

    return jax.value_and_grad(total, has_aux=True)(params)

  def made(packing, rows):
    (batch,) = eval_batches(
      pairs.examples,
      batch_size=rows,
      max_length=16,
      packing=packing,
      group=2,
    )
    return add(batch)

  single = made(False, 8)
  (loss, (weight, chosen)), grads = both(params, single)
  # By hand: one answer in a row, its score at its last token.
  alone = RewardModel('', train_model.model, params, None)
  scores = alone.rate([e.tokens.tolist() for e in pairs.examples], 16)
  good, bad = np.array(scores).reshape(-1, 2).T
  want = np.log1p(np.exp(-(good - bad - pairs.margins)))
  want += 0.05 * (good + bad) ** 2
  np.testing.assert_allclose(loss, want.sum(), rtol=1e-5)
  np.testing.assert_allclose(chosen, good.sum(), rtol=1e-5, atol=1e-5)
  assert weight == 8 and pairs.margins.max() > 0.5
  # Packed, and in parts: the same.
  packed = made(True, 8)
  assert packed['margins'].shape[1] > 1
  halves = [{k: v[i::2] for k, v in packed.items()} for i in range(2)]
  for pieces in ([packed], halves):
    found = [both(params, piece) for piece in pieces]
    total = sum(float(f[0][0]) for f in found)
    np.testing.assert_allclose(total, loss, rtol=2e-6)
    gradient = jax.tree.map(lambda *x: sum(x), *[f[1] for f in found])
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(grads)):
      np.testing.assert_allclose(a, b, atol=2e-6 * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
  'changes, wanted',
  [
    (
      {'loss.name': 'dpo'},
      "loss.name='dpo': use one of bradley_terry, process",
    ),
    ({'loss.center_coef': -1.0}, 'loss.center_coef=-1.0: use 0 (off) or more'),
    (
      {'loss.name': 'process', 'loss.center_coef': 0.1},
      'loss.center_coef=0.1: process does not read it',
    ),
    ({'data.step_separator': '#'}, "data.step_separator='#': bradley_terry"),
    ({'sample.prompts': "('a',)"}, 'sample.prompts: a reward model writes no'),
    ({'lora.rank': 2, 'lora.export': 'x'}, 'adapters alone lack the head'),
    ({'lora.rank': 2, 'lora.targets': "('lm_head',)"}, "lora.targets: 'lm_h"),
    ({'data.overlong': 'split'}, "data.overlong='split'"),
    ({'data.separator': '#'}, 'data.separator are of texts'),
    ({'loss.name': 'process'}, "row 1: has no 'completions'"),
  ],
)
def test_wrong_values_are_refused(
  make_config, tmp_path, monkeypatch, changes, wanted
):
  def fail(*args):
    raise AssertionError('the weights were read')

  monkeypatch.setattr(reward, 'build_train_model', fail)
  config = make_config(PAIRS, changes)
  with pytest.raises(UserError) as caught:
    run.run_task(config, str(tmp_path / 'run'))
  assert wanted in ' '.join(str(caught.value).split())


def test_a_folder_of_another_kind_is_no_reward_model(model_folder, tmp_path):
  with pytest.raises(UserError, match='holds a LlamaForCausalLM, and a reward'):
    load_reward_model(model_folder)
  with pytest.raises(UserError, match='no such folder'):
    load_reward_model(str(tmp_path / 'none'))


def test_an_export_over_a_language_model_is_refused(
  make_config, model_folder, tmp_path
):
  copy = shutil.copytree(model_folder, tmp_path / 'model')
  with pytest.raises(UserError, match='holds another model, whose archi'):
    run.run_task(make_config(PAIRS, {'export': copy}), str(tmp_path / 'run'))
