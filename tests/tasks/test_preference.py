"""Preference runs on a tiny model: losses, references, packing, splits."""

import functools
import json
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm import config_args
from llm.align import checks, pair_columns, preference_loss
from llm.align.reference import with_reference
from llm.align.scores import score_completions
from llm.data import pairs as pairs_lib
from llm.data import pipeline
from llm.decode.score import score
from llm.losses.sequences import sequence_logprobs, tail_weights
from llm.parallel.mesh import make_mesh
from llm.runs import report
from llm.runs.train_model import build_train_model, read_spec
from llm.tasks import run

ROOT = pathlib.Path(__file__).parents[2]
LN2 = math.log(2.0)
# The loss while the policy is the reference; None: it depends on the model.
FIRST = {
  'dpo': LN2,
  'cdpo': LN2,
  'robust_dpo': LN2,
  'hinge': 1.0,
  'ipo': 25.0,  # (1 / (2 beta))²
  'dpo_norm': LN2,
  'rpo': None,
  'simpo': None,
  'cpo': None,
  'orpo': None,
}
MAX_LENGTH = 16
RNG = np.random.default_rng(0)
PAIRS = [
  {
    'prompt': 'q' * int(RNG.integers(1, 4)),
    'chosen': 'yes'[: RNG.integers(1, 4)] + 'a' * int(RNG.integers(1, 6)),
    'rejected': 'no' + 'b' * int(RNG.integers(1, 6)),
  }
  for _ in range(8)
]
LORA = {'lora.rank': 2, 'lora.alpha': 4.0}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  path = tmp_path_factory.mktemp('data') / 'pairs.jsonl'
  path.write_text('\n'.join(map(json.dumps, PAIRS)) + '\n')
  return str(path)


@pytest.fixture(scope='module')
def make_config(data, model_folder):
  """make_config({'loss.name': 'ipo'}) -> a preference config."""

  def make(changes=None):
    config = config_args.load_config(str(ROOT / 'configs' / 'preference.py'))
    fields = {
      'model.path': model_folder,
      'data.path': data,
      'data.max_length': MAX_LENGTH,
      'loss.reference': 'precomputed',
      'train.steps': 2,
      'train.batch_size': 4,
      'optim.lr': 1e-3,
      'optim.warmup_steps': 0,
    }
    fields |= changes or {}
    if not checks.needs_reference(fields.get('loss.name', 'dpo')):
      del fields['loss.reference']
    args = [f'--config.{k}={v}' for k, v in fields.items()]
    config_args.override_config(config, args)
    return config

  return make


@pytest.fixture(scope='module')
def build(make_config):
  """build(changes) -> (config, model with its reference, pairs)."""

  @functools.cache
  def made(changes):
    config = make_config(dict(changes))
    spec = read_spec(config)
    train_model = build_train_model(config, spec, make_mesh(config.mesh))
    pairs, _ = pairs_lib.load_pairs(
      config.data.path, spec.tokenizer, max_length=MAX_LENGTH
    )
    return config, with_reference(config, train_model), pairs

  return lambda changes=None: made(tuple((changes or {}).items()))


def moved(train_model):
  """The model's parameters, away from where they began."""
  leaves, tree = jax.tree.flatten(train_model.params)
  rng = np.random.default_rng(1)
  leaves = [x + 0.1 * rng.normal(size=x.shape).astype(x.dtype) for x in leaves]
  return jax.tree.unflatten(tree, leaves)


def several_losses(config, train_model):
  """(params, batch) -> float32[L, 2]: sum and weight of some of the losses.

  One that every answer enters in the same way, and those with a mean over the
  tokens of the batch.
  """
  functions = []
  for name, prompt in (('dpo', 0), ('rpo', 0), ('cpo', 0), ('orpo', 1)):
    options = config.loss.copy_and_resolve_references()
    options.name, options.nll_prompt = name, bool(prompt)
    functions.append(
      preference_loss.make_preference_loss(
        train_model, options, checks.check_pair_loss(options)
      )
    )

  def sums(params, batch):
    found = [f(params, train_model.frozen, batch, None)[:2] for f in functions]
    return jnp.stack([jnp.stack(pair) for pair in found])

  return sums


def values_and_gradient(sums, params, parts):
  """Mean of each loss over all parts, and the gradient of their total."""

  @jax.jit
  def both(params, batch):
    def total(params):
      found = sums(params, batch)
      return found[:, 0].sum(), found

    (_, found), grads = jax.value_and_grad(total, has_aux=True)(params)
    return found, jnp.concatenate([x.ravel() for x in jax.tree.leaves(grads)])

  total, gradient = 0.0, 0.0
  for part in parts:
    value, grads = both(params, part)
    total, gradient = total + value, gradient + grads
  return total[:, 0] / total[:, 1], gradient / np.abs(gradient).max()


def columns(config, train_model, pairs, packing, rows):
  add = pair_columns.make_pair_columns(config, train_model, pairs)
  made = pipeline.eval_batches(
    pairs.examples,
    batch_size=rows,
    max_length=MAX_LENGTH,
    packing=packing,
    group=2,
  )
  return [add(batch) for batch in made]


@pytest.fixture(scope='module')
def whole(build):
  """(sums, params, one unpacked batch of all pairs, its losses, gradient)."""
  config, train_model, pairs = build()
  sums, params = several_losses(config, train_model), moved(train_model)
  (batch,) = columns(config, train_model, pairs, False, len(PAIRS))
  return sums, params, batch, *values_and_gradient(sums, params, [batch])


def test_packed_rows_have_the_loss_and_gradient_of_single_ones(build, whole):
  config, train_model, pairs = build()
  sums, params, _, losses, expected = whole
  (packed,) = columns(config, train_model, pairs, True, len(PAIRS))
  assert packed['examples'].shape[1] > 2  # several pairs in a row
  assert (packed['examples'] < 0).any()  # and room left
  value, gradient = values_and_gradient(sums, params, [packed])
  np.testing.assert_allclose(value, losses, rtol=2e-6)
  np.testing.assert_allclose(gradient, expected, atol=1e-6, rtol=0)
  assert (np.abs(losses) > 1e-3).all() and np.isfinite(expected).all()


@pytest.mark.parametrize('parts', (2, 4))
def test_microbatches_add_up_to_the_batch(whole, parts):
  """Means over tokens of the whole batch (rpo, cpo, orpo) too."""
  sums, params, batch, losses, expected = whole
  split = [{k: v[i::parts] for k, v in batch.items()} for i in range(parts)]
  tokens = [part['loss_mask'].sum() for part in split]
  assert len(set(tokens)) > 1  # a mean of means would be another number
  value, gradient = values_and_gradient(sums, params, split)
  np.testing.assert_allclose(value, losses, rtol=2e-6)
  np.testing.assert_allclose(gradient, expected, atol=1e-6, rtol=0)


def test_three_kinds_of_reference_are_one(build):
  """At the start, and with other adapters."""

  def loss_and_gradient(changes):
    config, train_model, pairs = build(changes)
    (batch,) = columns(config, train_model, pairs, False, len(PAIRS))
    loss_fn = preference_loss.make_preference_loss(
      train_model, config.loss, checks.check_pair_loss(config.loss)
    )

    @jax.jit
    def both(params):
      return jax.value_and_grad(
        lambda p: loss_fn(p, train_model.frozen, batch, None)[0] / len(PAIRS)
      )(params)

    return [both(params) for params in (train_model.params, moved(train_model))]

  found = [
    loss_and_gradient({'loss.reference': kind} | LORA)
    for kind in checks.REFERENCES
  ]
  assert abs(float(found[0][0][0]) - LN2) < 1e-6
  assert abs(float(found[0][1][0]) - LN2) > 1e-3
  for other in found[1:]:
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(found[0])):
      np.testing.assert_allclose(a, b, atol=2e-6)


def test_ld_dpo_weighs_the_tails_of_packed_answers(build):
  config, train_model, pairs = build()
  (batch,) = columns(config, train_model, pairs, True, len(PAIRS))
  scores = jax.jit(
    lambda params: (
      score_completions(
        train_model.model, {'params': params}, batch, 0.3
      ).logprobs
    )
  )(train_model.params)
  # The same answers one by one.
  examples = list(pairs.examples)
  rows = [example.tokens.tolist() for example in examples]
  found = score(
    train_model.model, train_model.params, rows, batch_size=len(rows)
  )
  logprobs, mask = np.zeros((2, len(rows), 2 * MAX_LENGTH), np.float32)
  for i, (each, example) in enumerate(zip(found, examples)):
    logprobs[i, : len(each)], mask[i, : len(each)] = each, example.loss_mask[1:]
  shorter = mask.sum(axis=1).reshape(-1, 2).min(axis=1).repeat(2)
  weights = tail_weights(mask, jnp.asarray(shorter), 0.3)
  want, _ = sequence_logprobs(logprobs, mask, weights)
  there = batch['examples'] >= 0
  np.testing.assert_allclose(
    np.asarray(scores)[there],
    np.asarray(want)[batch['examples'][there]],
    rtol=1e-5,
  )
  assert np.mean(~np.isclose((logprobs * mask).sum(axis=1), want)) > 0.3


def test_the_reference_is_kept_on_disk_by_its_content(build, cache_folder):
  config, train_model, pairs = build()
  folder = cache_folder / 'reference'

  def columns_of(config, pairs):
    return pair_columns.make_pair_columns(config, train_model, pairs)

  def ids(pairs):
    return {
      'tokens': np.zeros((1, 1)),
      'segment_ids': np.ones((1, 1)),
      'positions': np.zeros((1, 1)),
      'loss_mask': np.ones((1, 1), bool),
      'examples': np.array([[*range(len(pairs.examples)), -1]]),
    }

  first = columns_of(config, pairs)(ids(pairs))['ref_logprobs']
  assert first[0, -1] == 0.0 and (first[0, :-1] < 0).all()
  newest = max(folder.iterdir(), key=os.path.getmtime)
  np.save(newest, np.load(newest) - 1.0)
  again = columns_of(config, pairs)(ids(pairs))['ref_logprobs']
  np.testing.assert_array_equal(again, first - 1.0)  # it was read
  newest.write_bytes(newest.read_bytes()[:-3])
  again = columns_of(config, pairs)(ids(pairs))['ref_logprobs']
  np.testing.assert_array_equal(again, first)  # half of a file: made again
  np.testing.assert_array_equal(np.load(newest)[:-1], first[0, :-1])
  before = set(folder.iterdir())
  part = pairs.part(1, 4)
  other = columns_of(config, part)(ids(part))['ref_logprobs']
  np.testing.assert_allclose(other[0, :-1], first[0, 2:8], rtol=1e-5)
  assert len(set(folder.iterdir()) - before) == 1


@pytest.mark.slow
@pytest.mark.parametrize('name', FIRST)
def test_every_loss_trains(make_config, tmp_path, monkeypatch, name):
  monkeypatch.setattr(report, 'plot_loss', lambda *args: None)  # slow
  run.run_task(make_config({'loss.name': name}), str(tmp_path / 'run'))
  rows = report.read_rows(str(tmp_path / 'run'))
  assert [row['step'] for row in rows] == [1, 2]
  if FIRST[name] is not None:
    assert abs(rows[0]['loss'] - FIRST[name]) < 1e-5
    assert abs(rows[0]['reward_margin']) < 1e-5
  assert all(math.isfinite(v) for row in rows for v in row.values())
  assert rows[1]['reward_margin'] != rows[0]['reward_margin']
  assert rows[0]['weight'] == 4 and rows[0]['skipped'] == 0


def test_held_out_pairs_are_scored(make_config, tmp_path, monkeypatch, capsys):
  """More steps: the held-out pairs, like the others, are told apart."""
  monkeypatch.setattr(report, 'plot_loss', lambda *args: None)
  changes = {
    'data.eval_fraction': 0.25,
    'data.packing': True,
    'train.steps': 12,
    'train.eval_first': True,
    'optim.lr': 1e-2,
    'export': str(tmp_path / 'out'),
  }
  run.run_task(make_config(changes), str(tmp_path / 'run'))
  assert '8 rows, 6 pairs to train on, 2 held out' in capsys.readouterr().err
  rows = report.read_rows(str(tmp_path / 'run'))
  assert abs(rows[0]['eval_loss'] - LN2) < 1e-5 and 'loss' not in rows[0]
  assert rows[-1]['eval_loss'] < rows[0]['eval_loss'] - 0.1
  assert rows[-1]['eval_reward_accuracy'] == 1.0
  assert rows[-1]['loss'] < 0.5 < rows[1]['loss']
  assert (tmp_path / 'out' / 'model.safetensors').exists()
  lines = (tmp_path / 'run' / 'preview.jsonl').read_text().splitlines()
  shown = [json.loads(line) for line in lines]
  assert len(shown) == 6  # those held out are not learned
  assert all(set(r) == {'example', 'chosen', 'rejected'} for r in shown)
  assert sum(shown[0]['chosen']['loss_weights']) > 0
