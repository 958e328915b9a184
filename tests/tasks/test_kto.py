"""KTO through the task: any batch, any split, and a KL of the whole batch."""

import dataclasses
import math
import pathlib

import jax
import numpy as np
import pytest

from llm import config_args
from llm.align import kto
from llm.align.checks import resolve_reference
from llm.align.reference import with_reference
from llm.data import pipeline
from llm.data.rated import load_rated
from llm.decode.score import score
from llm.errors import UserError
from llm.losses.kto import kto_kl
from llm.parallel.mesh import make_mesh
from llm.runs import report
from llm.runs.train_model import build_train_model, read_spec
from llm.tasks import run

ROOT = pathlib.Path(__file__).parents[2]
MAX_LENGTH = 16
RATED = [
  {
    'prompt': f'q{i}',
    'completion': ('yes' if i % 3 else 'no') + 'a' * (i % 4),
    'label': bool(i % 3),
  }
  for i in range(8)
]


@pytest.fixture
def make_config(write_rows, model_folder):
  """make_config(rows, {'train.steps': 1}) -> a config of KTO."""

  def make(rows, changes=None):
    config = config_args.load_config(str(ROOT / 'configs' / 'preference.py'))
    fields = {
      'model.path': model_folder,
      'data.path': write_rows(*rows, name='rated.jsonl'),
      'data.max_length': MAX_LENGTH,
      'loss.name': 'kto',
      'train.steps': 3,
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
  """start(rows, {'train.steps': 1}, 'name') -> rows of its metrics."""
  monkeypatch.setattr(report, 'plot_loss', lambda *args: None)  # slow

  def start(rows, changes=None, name='run'):
    run.run_task(make_config(rows, changes), str(tmp_path / name))
    return report.read_rows(str(tmp_path / name))

  return start


def test_the_loss_begins_at_a_half_and_falls(start):
  rows = start(RATED, {'train.steps': 10, 'data.eval_fraction': 0.5})
  assert abs(rows[0]['loss'] - 0.5) < 1e-6 and rows[0]['kl'] == 0.0
  assert rows[-1]['loss'] < rows[0]['loss'] - 0.02
  assert any(row['kl'] > 0 for row in rows)
  assert rows[-1]['eval_loss'] < 0.5
  assert all(math.isfinite(v) for row in rows for v in row.values())


def test_good_answers_only_and_one_at_a_time(start):
  good = [row | {'label': True} for row in RATED]
  changes = {'train.batch_size': 1, 'loss.desirable_weight': 1.5}
  rows = start(good, changes)
  assert abs(rows[0]['loss'] - 0.75) < 1e-6
  # A batch of one has nobody else's answer.
  assert [row['kl'] for row in rows] == [0.0] * 3
  assert [row['skipped'] for row in rows] == [0.0] * 3


def test_microbatches_change_nothing(start):
  """With a KL above 0, which a part of the batch could not know."""
  options = {'data.packing': True, 'data.max_length': 24, 'train.batch_size': 2}
  whole = start(RATED, options, 'whole')
  parts = start(RATED, options | {'train.microbatch_size': 1}, 'parts')
  assert any(row['kl'] > 0 for row in whole)
  for one, other in zip(whole, parts, strict=True):
    for name in ('loss', 'kl', 'grad_norm', 'reward_margin', 'desirable'):
      np.testing.assert_allclose(one[name], other[name], rtol=2e-5, atol=1e-6)


def test_the_kl_is_of_the_whole_batch(make_config):
  """Against answers that are scored one by one, in rows of any company."""
  config = resolve_reference(make_config(RATED))
  assert config.loss.reference == 'frozen'
  spec = read_spec(config)
  train_model = build_train_model(config, spec, make_mesh(config.mesh))
  train_model = with_reference(config, train_model)
  rated, _ = load_rated(config.data.path, spec.tokenizer, max_length=MAX_LENGTH)
  rng = np.random.default_rng(0)
  reference = jax.tree.map(
    lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32),
    train_model.params,
  )
  train_model = dataclasses.replace(
    train_model, frozen={'reference': reference}
  )

  def by_hand(order):
    rows = [
      [256, *(RATED[i]['prompt'] + RATED[j]['completion']).encode(), 257]
      for i, j in zip(order, np.roll(order, -1))
    ]
    now, then = (
      np.array([each[2:].sum() for each in score(train_model.model, p, rows)])
      for p in (train_model.params, reference)
    )
    return kto_kl(now, then)

  for packing, batch_size in ((True, 3), (False, 8)):
    config.train.batch_size = batch_size
    (batch,) = pipeline.eval_batches(
      rated.examples,
      batch_size=batch_size,
      max_length=2 * MAX_LENGTH if packing else MAX_LENGTH,
      packing=packing,
      named=True,
    )
    order = batch['examples'][batch['examples'] >= 0]
    assert sorted(order) == list(range(8))
    assert packing == (order.tolist() != list(range(8)))
    found = kto.make_columns(config, train_model, rated)(
      train_model.params, batch
    )
    want = by_hand(order)
    assert want > 0.1
    np.testing.assert_allclose(found['kl'], want, rtol=1e-4)
    assert found['kl'].shape == (batch_size,)
    there = np.asarray(batch['examples']) >= 0
    np.testing.assert_array_equal(
      np.asarray(found['desirable'])[there], rated.desirable[order]
    )


def test_pairs_and_adapters(start):
  pairs = [
    {'prompt': f'q{i}', 'chosen': 'yes' + 'a' * i, 'rejected': 'no'}
    for i in range(4)
  ]
  rows = start(pairs, {'lora.rank': 2, 'train.steps': 2})
  assert abs(rows[0]['loss'] - 0.5) < 1e-6
  assert rows[1]['loss'] != rows[0]['loss']


@pytest.mark.parametrize(
  'field, value, wanted',
  [
    ('loss.beta', 0.0, 'loss.beta=0.0: use a number above 0'),
    ('loss.desirable_weight', -1.0, 'loss.desirable_weight=-1.0: use 0 or'),
    ('loss.undesirable_weight', math.inf, 'loss.undesirable_weight=inf'),
    ('loss.label_smoothing', 0.1, 'kto does not read it; it has loss.beta'),
    ('loss.ld_alpha', 0.5, 'loss.ld_alpha=0.5: kto does not read it'),
    ('loss.nll_prompt', True, 'loss.nll_prompt=True: kto does not read it'),
    ('loss.logprobs', 'sum', "loss.logprobs='sum': kto does not read it"),
    ('loss.reference', 'precomputed', "use 'frozen' (or, under LoRA, 'base')"),
    ('loss.reference', 'base', 'set lora.rank above 0'),
    ('loss.reference', 'other', "loss.reference='other': use one of"),
  ],
)
def test_wrong_values_are_refused(make_config, tmp_path, field, value, wanted):
  config = make_config(RATED, {field: value})
  with pytest.raises(UserError) as caught:
    run.run_task(config, str(tmp_path / 'run'))
  assert wanted in ' '.join(str(caught.value).split())
