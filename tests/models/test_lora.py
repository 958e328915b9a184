"""Adapters: what they compute, how they train, what they refuse."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm.errors import UserError
from llm.models import lora as lora_lib
from llm.models.cache import init_cache
from llm.models.layers import Linear
from llm.models.lora_config import LoraConfig
from llm.models.transformer import Transformer, init_params, stack_layers
from llm.train.state import init_state
from llm.train.step import make_train_step
from tests.models import tiny

_ALL = ('all-linear', 'lm_head')
_ATTENTION = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
_CONFIGS = {
  'lora': LoraConfig(rank=3, alpha=5.0, targets=_ALL),
  'dora': LoraConfig(rank=3, alpha=5.0, targets=_ALL, dora=True),
  'some': LoraConfig(rank=2, targets=('k_proj', 'up_proj'), rslora=True),
}
_TOKENS = tiny.tokens(2, 9)


@functools.cache
def _model():
  config = tiny.config(qkv_bias=True)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  params = jax.tree.map(
    lambda x: rng.normal(x.ndim == 1, 0.12, x.shape).astype(np.float32), shapes
  )
  return Transformer(config), params


@functools.cache
def _fresh(kind):
  model, params = _model()
  key = jax.random.key(0)
  lora = lora_lib.init_lora(_CONFIGS[kind], model.config, params, key)
  return jax.tree.map(np.asarray, lora)


def _noisy(lora, seed=3):
  """Adapters that have learned something: every leaf is moved."""
  leaves, tree = jax.tree.flatten(lora)
  rng = np.random.default_rng(seed)
  noise = [rng.normal(0, 0.3, x.shape).astype(np.float32) for x in leaves]
  return tree.unflatten([x + n for x, n in zip(leaves, noise, strict=True)])


def _adapted(kind):
  return *_model(), _CONFIGS[kind], _noisy(_fresh(kind))


@functools.partial(jax.jit, static_argnums=0)
def _plain(model, params):
  return model.apply({'params': params}, _TOKENS)[0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logits(model, params, lora, config, keys=None, tokens=_TOKENS):
  variables = lora_lib.variables(params, lora, config, keys=keys)
  return model.apply(variables, tokens)[0]


_merge = jax.jit(lora_lib.merge, static_argnums=2)


def _nll(logits):
  return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 7])


def _loss(model, params, config):
  def loss(lora):
    return _nll(_logits(model, params, lora, config))

  return loss


def _close(a, b, tolerance=1e-5):
  np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('kind', _CONFIGS)
def test_fresh_adapters_change_nothing(kind):
  model, params = _model()
  plain = _plain(model, params)
  fresh = _logits(model, params, _fresh(kind), _CONFIGS[kind])
  _close(fresh, plain, 1e-5 if kind == 'dora' else 1e-6)


@pytest.mark.parametrize('kind', _CONFIGS)
def test_merged_equals_unmerged_unrolled_and_scanned(kind):
  model, params, config, lora = _adapted(kind)
  apart = _logits(model, params, lora, config)
  assert np.abs(apart - _plain(model, params)).max() > 1.0
  merged = _merge(params, lora, config)
  # float32 of logits near 3: 1.4e-5 was seen. What LoRA adds is above 1.
  _close(_plain(model, merged), apart, 1e-4)

  scanned = Transformer(model.config, scan_layers=True)
  stacked = stack_layers(params, model.config)
  adapters = lora_lib.stack(lora, model.config)
  _close(_logits(scanned, stacked, adapters, config), apart, 1e-4)
  jax.tree.map(
    _close,
    _merge(stacked, adapters, config),
    stack_layers(merged, model.config),
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    lora_lib.unstack(adapters, model.config),
    lora,
  )


def test_merge_by_hand():
  """The key rows of one layer, and nothing else, become m (W + s B A) / |.|."""
  model, params = _model()
  config = LoraConfig(
    rank=1, alpha=2.0, targets=('layers_1/attn/k',), dora=True
  )
  shape = model.config
  lora = lora_lib.init_lora(config, shape, params, jax.random.key(0))
  lora = _noisy(lora)
  adapter = lora['layers_1']['attn']['k']
  old = np.asarray(params['layers_1']['attn']['qkv']['kernel'])
  weight = old[:, shape.queries_per_kv].reshape(-1, shape.embed_dim)
  moved = weight + 2.0 * np.outer(adapter['lora_b'], adapter['lora_a'])
  moved *= np.asarray(adapter['magnitude'])[:, None]
  moved /= np.linalg.norm(
    weight + 2.0 * np.outer(adapter['lora_b'], adapter['lora_a']),
    axis=1,
    keepdims=True,
  )
  merged = _merge(params, lora, config)
  new = np.array(merged['layers_1']['attn']['qkv']['kernel'])
  _close(new[:, shape.queries_per_kv].reshape(moved.shape), moved, 1e-6)
  new[:, shape.queries_per_kv] = old[:, shape.queries_per_kv]
  np.testing.assert_array_equal(new, old)
  merged['layers_1']['attn']['qkv']['kernel'] = old
  jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_gradients_scanned_rematerialised_and_through_merged_weights():
  model, params, config, lora = _adapted('dora')
  grads = jax.jit(jax.grad(_loss(model, params, config)))(lora)
  assert all(np.abs(g).max() > 1e-4 for g in jax.tree.leaves(grads))

  scanned = Transformer(model.config, scan_layers=True, remat='full')
  stacked = stack_layers(params, model.config)
  loss = _loss(scanned, stacked, config)

  def merged_loss(lora):
    return _nll(_plain(scanned, _merge(stacked, lora, config)))

  for other in (loss, merged_loss):
    got = jax.jit(jax.grad(other))(lora_lib.stack(lora, model.config))
    jax.tree.map(
      functools.partial(_close, tolerance=5e-5),
      lora_lib.unstack(got, model.config),
      grads,
    )


def test_norm_of_dora_is_a_constant_in_the_gradient():
  model, params, config, lora = _adapted('dora')
  place = ('layers_0', 'mlp', 'down')
  weight = params['layers_0']['mlp']['down']['kernel']

  def row_sums(adapter):
    tree = {}
    lora_lib.insert(tree, place, adapter)
    merged = lora_lib.merge(params, tree, config)
    return merged['layers_0']['mlp']['down']['kernel'].sum()

  adapter = lora['layers_0']['mlp']['down']
  grads = jax.grad(row_sums)(adapter)
  a, b = np.asarray(adapter['lora_a']), np.asarray(adapter['lora_b'])
  total = weight + config.scale(5.0, 3) * b @ a
  norm = np.linalg.norm(total, axis=1)
  factor = np.asarray(adapter['magnitude']) / norm
  _close(grads['magnitude'], total.sum(1) / norm, 1e-4)
  outer = np.outer(factor, a.sum(1))  # of B: m / |.| s A 1
  _close(grads['lora_b'], config.scale(5.0, 3) * outer, 1e-4)


def test_an_optimizer_step_changes_adapters_only():
  model, params, config, lora = _adapted('some')

  def loss_fn(lora, frozen, batch, keys):
    values = lora_lib.variables(frozen, lora, config, keys=keys)
    logits, _ = model.apply(values, batch)
    loss = jax.nn.logsumexp(logits, -1) - logits[..., 7]
    return loss.sum(), jnp.float32(loss.size), {}

  tx = optax.adamw(1e-2)
  step = jax.jit(make_train_step(loss_fn, tx))
  state = init_state(lora, tx, jax.random.key(0))
  losses = []
  for i in range(4):
    state, metrics = step(state, _TOKENS, jax.random.key(i), params)
    losses.append(float(metrics['loss']))
  assert losses[-1] < losses[0] - 0.1
  held = jax.tree.map(jnp.shape, state.opt_state[0].mu)
  assert held == jax.tree.map(jnp.shape, lora)


def test_a_step_costs_less_than_one_of_all_parameters():
  shape = tiny.config(num_layers=1, embed_dim=128, hidden_dim=256, head_dim=32)
  model = Transformer(shape)
  params = jax.eval_shape(lambda: init_params(shape, jax.random.key(0)))
  config = LoraConfig(rank=2)
  key = jax.random.key(0)
  lora = jax.eval_shape(lambda: lora_lib.init_lora(config, shape, params, key))

  def full_loss(params):
    return model.apply({'params': params}, _TOKENS)[0].sum()

  def lora_loss(lora, params):
    values = lora_lib.variables(params, lora, config)
    return model.apply(values, _TOKENS)[0].sum()

  def flops(loss, *args):
    compiled = jax.jit(jax.grad(loss)).lower(*args).compile()
    return compiled.cost_analysis()['flops']

  # Two of the three products of each weight are left.
  full = flops(full_loss, params)
  assert flops(lora_loss, lora, params) < 0.8 * full


def test_dropout():
  model, params = _model()
  targets = ('k_proj', 'down_proj')
  plain = LoraConfig(3, 5.0, targets, dora=True)
  config = dataclasses.replace(plain, dropout=0.4)
  key = jax.random.key(0)
  lora = _noisy(lora_lib.init_lora(config, model.config, params, key))
  keys = jax.random.split(jax.random.key(5), 2)
  off = _logits(model, params, lora, config)
  _close(off, _plain(model, _merge(params, lora, plain)))
  on = _logits(model, params, lora, config, keys)
  assert np.abs(on - off).max() > 0.1
  # A row's noise is its own.
  alone = _logits(model, params, lora, config, keys[1:], _TOKENS[1:])
  _close(alone, on[1:])
  # And the same one in scanned layers.
  scanned = Transformer(model.config, scan_layers=True)
  stacked = stack_layers(params, model.config)
  adapters = lora_lib.stack(lora, model.config)
  _close(_logits(scanned, stacked, adapters, config, keys), on)


def test_dropout_keeps_the_mean():
  x = np.ones((4000, 5), np.float32)
  a, b = np.ones((1, 5), np.float32), np.ones((2, 1), np.float32)
  adapter = {'a': a, 'b': b, 'rate': jnp.float32(0.25)}
  adapter['keys'] = jax.random.split(jax.random.key(0), len(x))
  values = {
    'params': {'kernel': np.zeros((2, 5), np.float32)},
    'lora': {'adapter': adapter},
  }
  out = np.asarray(Linear((2,), (5,)).apply(values, x))
  steps = np.unique(np.round(out * 0.75))  # sums of 0 to 5 kept ones
  assert set(steps) <= {0, 1, 2, 3, 4, 5}
  np.testing.assert_allclose(out * 0.75, np.round(out * 0.75), atol=1e-5)
  # 4000 rows of mean 5, each of deviation sqrt(5 * 0.25 / 0.75): 6 sigma.
  assert abs(out[:, 0].mean() - 5.0) < 6 * (5 / 3 / 4000) ** 0.5


def test_decoding_with_a_cache_takes_adapters_too():
  model, params, config, lora = _adapted('dora')

  @jax.jit
  def in_pieces(params, lora):
    variables = lora_lib.variables(params, lora, config)
    cache = init_cache(model.config, 2, 16, jnp.float32)
    first, cache = model.apply(variables, _TOKENS[:, :6], cache=cache)
    second, _ = model.apply(variables, _TOKENS[:, 6:], cache=cache)
    return jnp.concatenate([first, second], 1)

  expected = _logits(model, params, lora, config)
  _close(in_pieces(params, lora), expected, 1e-4)


def test_what_a_projection_draws_does_not_depend_on_the_others():
  model, params = _model()
  one = lora_lib.init_lora(
    LoraConfig(rank=3, targets=('layers_1/mlp/up',)),
    model.config,
    params,
    jax.random.key(0),
  )
  every = _fresh('lora')
  np.testing.assert_array_equal(
    one['layers_1']['mlp']['up']['lora_a'],
    every['layers_1']['mlp']['up']['lora_a'],
  )
  draws = [x[0, 0] for x in jax.tree.leaves(every) if x.shape[0] == 3]
  assert len(set(map(float, draws))) == 15  # no two projections alike


def test_abstract_and_stacked_bases():
  model, params = _model()
  key = jax.random.key(0)
  config = LoraConfig(rank=2, targets=('q_proj',))
  init = functools.partial(lora_lib.init_lora, config, model.config, rng=key)
  shapes = jax.eval_shape(lambda: params)
  jax.tree.map(np.testing.assert_array_equal, init(shapes), init(params))
  stacked = stack_layers(params, model.config)
  jax.tree.map(
    np.testing.assert_array_equal,
    lora_lib.unstack(init(stacked), model.config),
    init(params),
  )


def test_count_parameters():
  model, params = _model()
  config = LoraConfig(rank=3, targets=('q_proj', 'down_proj'))
  key = jax.random.key(0)
  lora = lora_lib.init_lora(config, model.config, params, key)
  trained, total = lora_lib.count_parameters(params, lora)
  # q: 32 -> 32, down: 48 -> 32; rank 3, two layers.
  assert trained == 2 * 3 * ((32 + 32) + (48 + 32))
  assert total - trained == sum(x.size for x in jax.tree.leaves(params))


def test_adapters_that_do_not_fit_are_refused():
  model, params, config, lora = _adapted('lora')
  stacked = stack_layers(params, model.config)
  wider = tiny.config(hidden_dim=40)
  other = jax.eval_shape(lambda: init_params(wider, jax.random.key(0)))
  dora = LoraConfig(3, 5.0, _ALL, dora=True)
  for base, settings, message in (
    (stacked, config, 'layers_0/attn/. has no weight in the base'),
    (
      other,
      config,
      r'layers_0/mlp/down is for a weight \[32, 48\].*\[32, 40\]',
    ),
    (params, dora, 'lora.dora=True, and layers_0/attn/. has no magnitude'),
  ):
    for run in (lora_lib.variables, lora_lib.merge):
      with pytest.raises(UserError, match=message):
        run(base, lora, settings)
  uneven = {k: v for k, v in lora.items() if k != 'layers_1'}
  with pytest.raises(UserError, match='layer 1 is not adapted as layer 0'):
    lora_lib.stack(uneven, model.config)
