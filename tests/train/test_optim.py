"""Each optimizer's update by hand, and what decides which one a leaf gets."""

import math
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from llm.config_args import override_config
from llm.errors import UserError
from llm.models.transformer import stack_layers
from llm.train import checks, optim


def config(**changes):
  fields = dict(
    name='adamw',
    lr=0.1,
    schedule='constant',
    warmup_steps=0,
    weight_decay=0.0,
    b1=0.9,
    b2=0.99,
    clip_norm=0.0,
  )
  return types.SimpleNamespace(**(fields | changes))


def _params():
  return {
    'norm': {'scale': jnp.array([1.0])},
    'attn': {'kernel': jnp.array([[1.0]]), 'bias': jnp.array([1.0])},
    'embedder': {'embedding': jnp.array([[1.0]])},
    'adapter': {
      'lora_a': jnp.array([[1.0]]),
      'lora_b': jnp.array([[1.0]]),
      'magnitude': jnp.array([1.0]),
    },
  }


def _first_updates(**changes):
  """The first step's updates of all-ones parameters with gradients of 2."""
  params = _params()
  tx = optim.make_optimizer(config(**changes), 10, params)
  grads = jax.tree.map(lambda p: 2.0 * p, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  return {
    '/'.join(k.key for k in path): float(u.squeeze())
    for path, u in jax.tree_util.tree_leaves_with_path(updates)
  }


def test_first_adamw_step_golden():
  # In its first step Adam moves by lr · sign(gradient); decay adds lr · wd · p,
  # for matrices only.
  seen = _first_updates(weight_decay=0.5)
  decayed = {
    'attn/kernel',
    'embedder/embedding',
    'adapter/lora_a',
    'adapter/lora_b',
  }
  for path, update in seen.items():
    want = -0.15 if path in decayed else -0.1
    assert update == pytest.approx(want, rel=1e-5), path


@pytest.mark.parametrize(
  ('name', 'first', 'second'),
  (
    ('sgd', -0.2, -0.38),  # momentum 0.9: 2, then 2 + 0.9 · 2
    ('lion', -0.1, -0.1),  # a sign
    ('adafactor', -0.1, -0.1),  # RMS of the update 1, of the parameter 1
    ('adamw8bit', -0.1, -0.1),
  ),
)
def test_two_steps_of_the_others_golden(name, first, second):
  params = {'kernel': jnp.ones((1, 1)), 'bias': jnp.ones((1,))}
  tx = optim.make_optimizer(config(name=name), 10)
  state = tx.init(params)
  for want in (first, second):
    grads = jax.tree.map(lambda p: jnp.full_like(p, 2.0), params)
    updates, state = tx.update(grads, state, params)
    for update in jax.tree.leaves(updates):
      np.testing.assert_allclose(update.squeeze(), want, rtol=1e-5)


@pytest.mark.parametrize('name', checks.OPTIMIZERS)
def test_decay_is_the_same_in_every_optimizer(name):
  # Without a gradient a matrix falls by lr · wd · p and nothing else moves.
  params = {'mlp': {'kernel': jnp.full((2, 2), 3.0), 'bias': jnp.ones(2)}}
  tx = optim.make_optimizer(config(name=name, weight_decay=0.5), 10)
  grads = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(
    updates['mlp']['kernel'], np.full((2, 2), -0.15), rtol=1e-5
  )
  np.testing.assert_array_equal(updates['mlp']['bias'], 0.0)


def _layer(seed):
  shapes = {
    'norm': {'scale': (6,)},
    'attn': {'qkv': {'kernel': (2, 4, 3, 6)}, 'o': {'kernel': (6, 4, 3)}},
    'mlp': {'gate_up': {'kernel': (2, 8, 6), 'bias': (2, 8)}},
  }
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


@pytest.mark.parametrize('name', checks.OPTIMIZERS)
def test_a_scanned_model_is_updated_as_an_unrolled_one(name):
  shape = types.SimpleNamespace(num_layers=2)
  params = {f'layers_{i}': _layer(i) for i in range(2)}
  grads = {f'layers_{i}': _layer(i + 2) for i in range(2)}
  tx = optim.make_optimizer(config(name=name, weight_decay=0.1), 10)
  want, _ = tx.update(grads, tx.init(params), params)
  want = stack_layers(want, shape)
  params, grads = stack_layers(params, shape), stack_layers(grads, shape)
  state = tx.init(params)
  got, after = tx.update(grads, state, params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), got, want
  )
  # A checkpoint can hold no empty array.
  assert all(x.size for x in jax.tree.leaves(state))
  # A loop carries the state: its types must not change.
  assert jax.eval_shape(lambda: state) == jax.eval_shape(lambda: after)


def test_clipping_is_left_to_the_train_step():
  tx = optim.make_optimizer(config(name='sgd', b1=0.0, clip_norm=1.0), 10)
  params = {'kernel': jnp.zeros((1, 2))}
  grads = {'kernel': jnp.array([[30.0, 40.0]])}
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(updates['kernel'], [[-3.0, -4.0]], rtol=1e-6)


def test_groups_change_rate_and_decay_by_path():
  seen = _first_updates(
    weight_decay=0.5,
    groups=(
      ('embedder/', {'lr_factor': 0.5, 'weight_decay': 0.0}),
      ('bias$', {'weight_decay': 1.0}),
      ('adapter/|norm/', {'lr_factor': 0}),
    ),
  )
  want = {
    'attn/kernel': -0.15,
    'attn/bias': -0.2,
    'embedder/embedding': -0.05,
    'norm/scale': 0.0,
    'adapter/lora_a': 0.0,
    'adapter/lora_b': 0.0,
    'adapter/magnitude': 0.0,
  }
  assert seen == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize('name', checks.OPTIMIZERS)
def test_a_frozen_parameter_has_no_state(name):
  params = {
    'a': {'kernel': jnp.ones((100, 100))},
    'b': {'kernel': jnp.ones((3, 3))},
  }
  groups = (('a/', {'lr_factor': 0.0}),)
  tx = optim.make_optimizer(config(name=name, groups=groups), 10, params)
  state = jax.eval_shape(tx.init, params)
  assert sum(x.size for x in jax.tree.leaves(state)) < 100
  grads = jax.tree.map(jnp.ones_like, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  assert not updates['a']['kernel'].any() and updates['b']['kernel'].all()


def test_groups_can_be_set_on_the_command_line():
  fields = vars(config()) | {'groups': ()}
  run = ml_collections.ConfigDict({'optim': fields}).lock()
  override_config(run, ["--config.optim.groups=(('norm/', {'lr_factor': 0}),)"])
  params = _params()
  tx = optim.make_optimizer(run.optim, 10, params)
  updates, _ = tx.update(params, tx.init(params), params)
  assert float(updates['norm']['scale'][0]) == 0.0
  assert float(updates['attn']['bias'][0]) == pytest.approx(-0.1, rel=1e-5)


@pytest.mark.parametrize(
  ('changes', 'message'),
  (
    ({'name': 'sgdd'}, "optim.name='sgdd': use one of adamw"),
    ({'lr': -1.0}, 'optim.lr=-1.0'),
    ({'lr': math.nan}, 'optim.lr=nan'),
    ({'weight_decay': -0.1}, 'optim.weight_decay=-0.1'),
    ({'clip_norm': math.nan}, 'optim.clip_norm=nan'),
    ({'b2': 1.0}, 'optim.b2=1.0'),
    ({'eps': 0.0}, 'optim.eps=0.0'),
    ({'groups': 'norm'}, "optim.groups='norm': use"),
    ({'groups': ('norm', {})}, "optim.groups: 'norm': use"),
    ({'groups': (('(', {}),)}, r"pattern '\(': .*use a regular expression"),
    (
      {'groups': (('norm', {'lr': 1.0}),)},
      "optim.groups: 'norm': lr=1.0: use lr_factor and weight_decay",
    ),
    (
      {'groups': (('norm', {'lr_factor': -1}),)},
      "optim.groups: 'norm': lr_factor=-1: use a number",
    ),
    (
      {'groups': (('nrom', {}),)},
      "optim.groups: pattern 'nrom': it matches no parameter; a path is e.g.",
    ),
    (
      {'groups': (('', {'lr_factor': 0}),)},
      'optim.groups=.*every parameter has lr_factor 0',
    ),
    (
      {'groups': (('n', {}), ('norm', {}))},
      "optim.groups: pattern 'norm': earlier groups take all",
    ),
  ),
)
def test_bad_settings_are_refused_by_name(changes, message):
  with pytest.raises(UserError, match=message):
    optim.make_optimizer(config(**changes), 10, _params())


def test_muon_without_a_hidden_matrix_is_refused():
  adapters = {'layers_0': {'lora_a': jnp.ones((2, 4))}}
  with pytest.raises(UserError, match="optim.name='muon'.*use adamw"):
    optim.make_optimizer(config(name='muon'), 10, adapters)
