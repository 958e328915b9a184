"""Adapted tables, whole copies, trained rows, and an alpha of its own each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.errors import UserError
from llm.models import lora as lora_lib
from llm.models.lora_config import LoraConfig
from llm.models.lora_places import TABLES
from llm.models.transformer import Transformer, stack_layers
from tests.models import tiny

_TOKENS = tiny.tokens(2, 7)
_PARTS = ('lora_a', 'lora_b', 'magnitude')


def _noisy(lora, seed=3):
  leaves, tree = jax.tree.flatten(lora)
  rng = np.random.default_rng(seed)
  moved = [x + rng.normal(0, 0.3, x.shape).astype(np.float32) for x in leaves]
  return tree.unflatten(moved)


def _adapted(config, **changes):
  model, params = tiny.build(**changes)
  key = jax.random.key(0)
  lora = lora_lib.init_lora(config, model.config, params, key)
  return model, params, lora, _noisy(lora)


def _close(a, b, tolerance=1e-5):
  np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def _same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logits(model, params, lora, config):
  variables = lora_lib.variables(params, lora, config)
  return model.apply(variables, _TOKENS)[0]


def test_an_adapted_token_table_by_hand():
  """W[v] + s B A[:, v], with DoRA's length for each of the D columns."""
  config = LoraConfig(
    rank=2,
    targets=('embed_tokens',),
    dora=True,
    alpha_pattern=(('embed_tokens', 3.0),),
  )
  _, params, fresh, lora = _adapted(config)
  table = np.asarray(params['embedder']['embedding'])
  adapter = fresh['embedder']
  assert not np.any(adapter['lora_a']) and adapter['lora_a'].shape == (2, 50)
  _close(adapter['magnitude'], np.linalg.norm(table, axis=0))
  a, b, m = (np.asarray(lora['embedder'][k]) for k in _PARTS)
  moved = table + 1.5 * (b @ a).T
  moved *= m / np.linalg.norm(moved, axis=0)
  merged = lora_lib.merge(params, lora, config)
  _close(merged['embedder']['embedding'], moved)
  variables = lora_lib.variables(params, lora, config)
  _close(variables['params']['embedder']['embedding'], moved)
  assert variables['lora'] == {}
  same = lora_lib.merge(params, fresh, config)
  _close(same['embedder']['embedding'], table, 1e-6)
  _same({**merged, 'embedder': 0}, {**params, 'embedder': 0})


def test_a_tied_table_is_adapted_in_both_its_uses():
  config = LoraConfig(rank=2, alpha=4.0, targets=('embed_tokens',))
  model, params, _, lora = _adapted(config, tie_embeddings=True)
  a, b = (np.asarray(lora['embedder'][k]) for k in ('lora_a', 'lora_b'))
  table = params['embedder']['embedding'] + 2.0 * (b @ a).T
  changed = {**params, 'embedder': {'embedding': table}}
  expected = model.apply({'params': changed}, _TOKENS)[0]
  _close(_logits(model, params, lora, config), expected, 1e-4)


_MIXED = LoraConfig(
  rank=2,
  alpha=4.0,
  targets=('q_proj', 'v_proj', 'down_proj'),
  alpha_pattern=(('layers_1/attn/v', 1.0), ('down_proj', 6.0)),
  rank_pattern=(('down_proj', 3),),
  modules_to_save=('lm_head', 'norm'),
  tokens=(('embed_tokens', (7, 2)),),
)


def test_copies_and_rows_are_the_bases_at_first():
  _, params, lora, _ = _adapted(_MIXED)
  _same(lora['lm_head'], params['lm_head'])
  _same(lora['final_norm'], params['final_norm'])
  norm = 'pre_mlp_norm'
  _same(lora['layers_1'][norm], params['layers_1'][norm])
  rows = np.asarray(params['embedder']['embedding'])[[7, 2]]
  _same(lora['embedder'], {'rows': rows})
  trained, total = lora_lib.count_parameters(params, lora)
  # q and v of rank 2, down of rank 3, in two layers; the copies; two rows.
  adapters = 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (48 + 32))
  assert trained == adapters + 50 * 32 + 5 * 32 + 2 * 32
  assert total == adapters + sum(x.size for x in jax.tree.leaves(params))


def test_merged_by_hand():
  _, params, _, lora = _adapted(_MIXED)
  merged = lora_lib.merge(params, lora, _MIXED)
  table = np.array(params['embedder']['embedding'])
  table[[7, 2]] = lora['embedder']['rows']
  _same(merged['embedder']['embedding'], table)
  _same(merged['lm_head'], lora['lm_head'])
  _same(merged['layers_0']['pre_mlp_norm'], lora['layers_0']['pre_mlp_norm'])
  for layer, scale in (('layers_0', 2.0), ('layers_1', 0.5)):
    adapter = lora[layer]['attn']['v']
    old = np.asarray(params[layer]['attn']['qkv']['kernel'])[:, -1]
    delta = scale * np.asarray(adapter['lora_b'] @ adapter['lora_a'])
    new = merged[layer]['attn']['qkv']['kernel'][:, -1]
    _close(new, old + delta.reshape(old.shape))
  down = lora['layers_1']['mlp']['down']  # alpha 6, rank 3
  old = params['layers_1']['mlp']['down']['kernel']
  new = merged['layers_1']['mlp']['down']['kernel']
  _close(new, old + 2.0 * down['lora_b'] @ down['lora_a'])


def test_unmerged_and_scanned_equal_merged():
  """Layers of a scan have an alpha each."""
  model, params, _, lora = _adapted(_MIXED)
  merged = lora_lib.merge(params, lora, _MIXED)
  expected = jax.jit(model.apply)({'params': merged}, _TOKENS)[0]
  _close(_logits(model, params, lora, _MIXED), expected, 1e-4)
  scanned = Transformer(model.config, scan_layers=True)
  stacked = stack_layers(params, model.config)
  adapters = lora_lib.stack(lora, model.config)
  _close(_logits(scanned, stacked, adapters, _MIXED), expected, 1e-4)
  jax.tree.map(
    _close,
    lora_lib.merge(stacked, adapters, _MIXED),
    stack_layers(merged, model.config),
  )
  _same(lora_lib.unstack(adapters, model.config), lora)
  key = jax.random.key(0)
  fresh = lora_lib.init_lora(_MIXED, model.config, stacked, key)
  again = lora_lib.init_lora(_MIXED, model.config, params, key)
  _same(lora_lib.unstack(fresh, model.config), again)


def test_every_trained_leaf_has_a_gradient():
  config = LoraConfig(
    rank=2,
    targets=('lm_head', 'k_proj'),
    modules_to_save=('norm',),
    tokens=(('embed_tokens', (int(_TOKENS[0, 0]), int(_TOKENS[1, 1]))),),
  )
  model, params, _, lora = _adapted(config)

  def loss(lora):
    logits = _logits(model, params, lora, config)
    return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 7])

  grads = jax.jit(jax.grad(loss))(lora)
  assert min(np.abs(g).max() for g in jax.tree.leaves(grads)) > 1e-5
  assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, lora)


def test_a_base_in_bfloat16_keeps_its_dtype():
  _, params, _, lora = _adapted(_MIXED)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  merged = lora_lib.merge(half, lora, _MIXED)
  assert {x.dtype.name for x in jax.tree.leaves(merged)} == {'bfloat16'}
  _same(half, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


@pytest.mark.parametrize('table', TABLES)
def test_what_does_not_fit_is_refused(table):
  _, params, _, lora = _adapted(_MIXED)
  other = {**params, 'final_norm': {}}
  with pytest.raises(UserError, match='the base has no final_norm/scale'):
    lora_lib.merge(other, lora, _MIXED)
  name = table[0]
  ids = (('embed_tokens', (7, 2, 3)), ('lm_head', (1,)))
  rows = {name: {'rows': np.ones((2, 32), np.float32)}}
  with pytest.raises(UserError, match=rf'{name}/rows is \[2, 32\]'):
    lora_lib.variables(params, rows, LoraConfig(tokens=ids))
  short = {name: {TABLES[table]: np.ones((49, 32), np.float32)}}
  with pytest.raises(UserError, match=rf'{name}/.* is \[49, 32\].*\[50, 32\]'):
    lora_lib.variables(params, short, LoraConfig())
