"""A step's loss and gradient do not depend on how its rows are laid out."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm.align import supervised_loss
from llm.data import curriculum, packing, pipeline
from llm.data.examples import Example, from_list
from llm.losses.chunked import chunked_logprobs
from llm.losses.language import next_token_targets
from llm.models.transformer import (
  Transformer,
  output_weight,
  stack_layers,
)
from llm.runs.train_model import ModelSpec, TrainModel
from llm.train.state import init_state
from llm.train.step import make_eval_step, make_train_step
from tests.models import tiny

ROWS, LENGTH, BUCKET = 8, 96, 64
KEY = jax.random.key(7)
KEEP_GRADIENT = optax.sgd(0.01, momentum=0.0)  # its state is the gradient


def _documents():
  """Documents with some tokens to predict, and the rows that they fill."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(3, BUCKET, 60)
  members = packing.best_fit(lengths, LENGTH)
  rng.shuffle(members)
  members = members[:ROWS]
  masks = [rng.random(n) < 0.6 for n in lengths]
  for mask in masks:
    mask[0] = False
  examples = from_list(
    Example(rng.integers(1, 50, n), mask)
    for n, mask in zip(lengths, masks, strict=True)
  )
  return examples, members


DOCUMENTS, MEMBERS = _documents()
PACKED = pipeline.fill_rows(DOCUMENTS, MEMBERS, LENGTH, packing=True)


def _train_model(kind='local_global', scan=False, dtype=jnp.float32, **changes):
  model, params = tiny.build(kind, **changes)
  if scan:
    params = stack_layers(params, model.config)
  model = Transformer(model.config, scan_layers=scan, dtype=dtype)
  spec = ModelSpec(None, None, model.config, None, None)
  return TrainModel(spec, model, None, params, {})


def _compiled(step):
  # What is compared does not depend on LLVM's passes.
  return jax.jit(step, compiler_options={'xla_backend_optimization_level': 0})


@functools.cache
def _plain():
  """The model of most tests."""
  return _train_model()


class _Steps:
  """Steps that keep their gradient, each compiled once."""

  def __init__(self):
    self.state = init_state(_plain().params, KEEP_GRADIENT, KEY)
    loss = supervised_loss.make_loss(_plain())
    self._steps = {
      k: _compiled(make_train_step(loss, KEEP_GRADIENT, microbatches=k))
      for k in (1, 2, 4, 8)
    }

  def __call__(self, batch, microbatches=1):
    """(metrics, gradient)."""
    state, metrics = self._steps[microbatches](self.state, batch, KEY)
    return metrics, state.opt_state


@pytest.fixture(scope='module')
def steps():
  return _Steps()


def _assert_same(result, wanted):
  """Loss, weight and accuracy; the gradient by the norm of each leaf."""
  (metrics, gradient), (other, expected) = result, wanted
  assert float(metrics['weight']) == float(other['weight']) > 0
  for name in ('loss', 'accuracy', 'grad_norm'):
    np.testing.assert_allclose(metrics[name], other[name], rtol=1e-6)
  assert max(_errors(gradient, expected)) < 1e-6, _errors(gradient, expected)


def _errors(tree, wanted):
  return [
    float(np.linalg.norm(np.float64(a) - b) / np.linalg.norm(np.float64(b)))
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(wanted), strict=True)
  ]


def _alone(chosen):
  """The documents in rows of their own, of always the same shape."""
  rows = [[i] for i in chosen]
  rows += [[]] * (sum(map(len, MEMBERS)) - len(rows))
  return pipeline.fill_rows(DOCUMENTS, rows, BUCKET, packing=True)


def test_packed_rows_are_the_documents_alone(steps):
  batch = _alone([i for row in MEMBERS for i in row])
  assert len(batch['tokens']) > 2 * ROWS
  _assert_same(steps(PACKED), steps(batch))


def test_padding_changes_nothing(steps):
  """Rows of another length, rows without a document, and what is in them."""
  chosen = [row[0] for row in MEMBERS]
  rows = [[i] for i in chosen]
  padded = pipeline.fill_rows(DOCUMENTS, rows, LENGTH, packing=True)
  padded['tokens'][padded['segment_ids'] == 0] = 7
  _assert_same(steps(padded), steps(_alone(chosen)))


@pytest.mark.parametrize('microbatches', (2, 4, 8))
def test_microbatches_are_one_batch(steps, microbatches):
  """Although their weights are as different as none and many."""
  batch = PACKED | {'loss_mask': PACKED['loss_mask'].copy()}
  batch['loss_mask'][[1, 5]] = False
  _assert_same(steps(batch, microbatches), steps(batch))


@pytest.mark.parametrize('microbatches', (1, 4))
def test_order_of_rows_and_microbatches_changes_nothing(steps, microbatches):
  wanted = steps(PACKED)
  order = np.random.default_rng(1).permutation(ROWS)
  for rows in (order, np.arange(ROWS)[::-1]):
    shuffled = {k: v[rows] for k, v in PACKED.items()}
    _assert_same(steps(shuffled, microbatches), wanted)


def test_curriculum_keeps_the_loss_of_what_is_not_cut(steps):
  length = 48
  pieces = curriculum.shorten(PACKED, length)
  # Lost are tokens that were to be predicted and begin a piece, no others.
  begin = PACKED['loss_mask'][:, length::length].sum()
  lost = PACKED['loss_mask'].sum() - pieces['loss_mask'].sum()
  assert lost == begin > 0
  # What begins in its piece has the loss and the gradient that it had.
  whole = pieces['positions'].reshape(ROWS, LENGTH) == PACKED['positions']
  batch = PACKED | {'loss_mask': PACKED['loss_mask'] * whole}
  pieces = curriculum.shorten(batch, length)
  assert pieces['loss_mask'].sum() > 0.5 * PACKED['loss_mask'].sum()
  _assert_same(steps(pieces), steps(batch))


def _rows_of_segments():
  """Longer rows than the 128 queries that attention takes at a time."""
  members = [MEMBERS[i] + MEMBERS[i + 1] for i in (0, 2)]
  return pipeline.fill_rows(DOCUMENTS, members, 2 * LENGTH, packing=True)


@pytest.mark.parametrize(
  'kind, scan, changes',
  (
    ('dense', True, {}),
    ('local_global', True, {}),
    ('all_local', False, {}),
    ('dense', False, {'num_layers': 1, 'attn_soft_cap': 5.0}),
  ),
)
def test_a_segment_changes_no_other_ones_logprobs(kind, scan, changes):
  train_model = _train_model(kind, scan, **changes)

  def logprobs(batch):
    variables = train_model.variables(train_model.params, {})
    hidden, _ = train_model.model.apply(
      variables,
      batch['tokens'],
      batch['positions'],
      batch['segment_ids'],
      method='trunk',
    )
    targets, _ = next_token_targets(
      batch['tokens'], batch['loss_mask'], batch['segment_ids']
    )
    table = output_weight(variables['params'], train_model.model.config)
    return chunked_logprobs(hidden, table, targets)

  rows = _rows_of_segments()
  segments = rows['segment_ids']
  inside = np.zeros(segments.shape, bool)  # the next token is of the same one
  inside[:, :-1] = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
  logprobs = _compiled(logprobs)
  before = np.asarray(logprobs(rows))
  for changed in range(segments.max() + 1):  # 0: the padding
    own = segments == changed
    tokens = np.where(own, (rows['tokens'] + 17) % 50, rows['tokens'])
    after = np.asarray(logprobs(rows | {'tokens': tokens}))
    others = inside & ~own
    np.testing.assert_array_equal(after[others], before[others])
    assert changed == 0 or np.abs(after - before)[inside & own].max() > 0.1


def test_noise_on_embeddings_is_a_matter_of_the_row(steps):
  loss = supervised_loss.make_training_loss(_plain(), neftune_alpha=20.0)
  sums = _compiled(make_eval_step(loss))(_plain().params, PACKED, KEY)
  step = _compiled(make_train_step(loss, KEEP_GRADIENT, microbatches=4))
  _, metrics = step(steps.state, PACKED, KEY)
  noisy = float(sums['loss'] / sums['weight'])
  np.testing.assert_allclose(metrics['loss'], noisy, rtol=1e-6)
  plain, _ = steps(PACKED)
  assert abs(noisy / float(plain['loss']) - 1) > 1e-3


@pytest.fixture(scope='module')
def half():
  """(step, state after it, metrics) with bfloat16 activations."""
  train_model = _train_model(dtype=jnp.bfloat16)
  tx = optax.adamw(1e-3, weight_decay=0.1)
  loss = supervised_loss.make_loss(train_model)
  step = _compiled(make_train_step(loss, tx, ema_decay=0.9))
  state = init_state(train_model.params, tx, KEY, ema=True)
  return step, *step(state, PACKED, KEY)


def test_bfloat16_is_for_activations_only(half, steps):
  _, state, metrics = half
  floats = [
    x.dtype
    for x in jax.tree.leaves((state, metrics))
    if jnp.issubdtype(x.dtype, jnp.floating)
  ]
  assert set(floats) == {jnp.dtype('float32')}
  plain, _ = steps(PACKED)
  assert float(metrics['weight']) == float(plain['weight'])
  assert 0 < abs(float(metrics['loss'] / plain['loss']) - 1) < 0.01
  # A moving average in bfloat16 would not see a step of 1e-4.
  average = jax.tree.map(
    lambda old, new: 0.9 * old + 0.1 * new, _plain().params, state.params
  )
  assert max(_errors(state.ema, average)) < 1e-6


def test_sums_over_tokens_are_float32():
  changes = dict.fromkeys(('qkv_bias', 'mlp_bias', 'attn_out_bias'), True)
  changes |= {'qk_norm': 'head', 'post_norm': True}
  train_model = _train_model(dtype=jnp.bfloat16, **changes)
  state = init_state(train_model.params, KEEP_GRADIENT, KEY)
  step = make_train_step(supervised_loss.make_loss(train_model), KEEP_GRADIENT)
  program = jax.make_jaxpr(step)(state, PACKED, KEY)
  sums = list(_inputs_of_sums(program.jaxpr))
  assert len(sums) > 10
  assert [x for x in sums if x.dtype == jnp.bfloat16] == []


def _inputs_of_sums(jaxpr):
  for equation in jaxpr.eqns:
    if equation.primitive.name in ('reduce_sum', 'cumsum', 'scatter-add'):
      yield equation.invars[0].aval
  for inner in jax.extend.core.subjaxprs(jaxpr):
    yield from _inputs_of_sums(inner)


def test_a_step_without_weight_changes_counters_only(half):
  step, state, _ = half
  batch = PACKED | {'loss_mask': np.zeros_like(PACKED['loss_mask'])}
  after, metrics = step(state, batch, KEY)
  assert [float(metrics[k]) for k in ('loss', 'weight', 'skipped')] == [0, 0, 0]
  counters = {
    name: getattr(state, name) + 1 for name in ('step', 'data_position')
  }
  wanted = dataclasses.replace(state, rng=None, **counters)
  jax.tree.map(
    np.testing.assert_array_equal, dataclasses.replace(after, rng=None), wanted
  )
