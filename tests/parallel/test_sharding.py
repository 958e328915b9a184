"""Where each leaf lies, on a mesh that needs no devices."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import optax
import pytest

from llm.checkpoints.hf.load import load_params
from llm.checkpoints.hf.save import save_hf
from llm.models.transformer import init_params
from llm.parallel.checks import AXES
from llm.parallel.mesh import make_mesh
from llm.parallel.sharding import (
  batch_sharding,
  param_shardings,
  shard_batch,
  state_shardings,
)
from llm.train.state import init_state
from tests.models import tiny


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
  """Moments in blocks, as 8-bit optimizers keep them."""

  params: Any
  scales: Any
  odd: Any
  flat: Any


def _mesh(data=1, fsdp=1, tensor=1):
  return jax.sharding.AbstractMesh((data, fsdp, tensor), AXES)


def _specs(mesh, kind='dense', scan=False, **changes):
  """'a/b/c' -> PartitionSpec of a model's parameters."""
  config = tiny.config(kind, **changes)
  shapes = jax.eval_shape(
    lambda key: init_params(config, key, scan_layers=scan), jax.random.key(0)
  )
  leaves = jax.tree_util.tree_leaves_with_path(param_shardings(shapes, mesh))
  return {'/'.join(k.key for k in path): x.spec for path, x in leaves}


def test_parameters():
  got = _specs(_mesh(2, 2, 2), qkv_bias=True, mlp_bias=True, attn_out_bias=True)
  want = {
    'embedder/embedding': P('tensor', 'fsdp'),
    'lm_head/kernel': P('tensor', 'fsdp'),
    'final_norm/scale': P(None),
    'layers_0/pre_attention_norm/scale': P(None),
    'layers_0/attn/qkv/kernel': P('tensor', None, None, 'fsdp'),
    'layers_0/attn/qkv/bias': P('tensor', None, None),
    'layers_0/attn/o/kernel': P('fsdp', 'tensor', None),
    'layers_0/attn/o/bias': P(None),
    'layers_0/mlp/gate_up/kernel': P(None, 'tensor', 'fsdp'),
    'layers_0/mlp/gate_up/bias': P(None, 'tensor'),
    'layers_0/mlp/down/kernel': P('fsdp', 'tensor'),
    'layers_0/mlp/down/bias': P(None),
  }
  assert {k: got[k] for k in want} == want


def test_layers_of_a_scan_and_experts_stay_whole():
  got = _specs(_mesh(1, 2, 2), kind='experts', scan=True)
  qkv = got['layers/block/attn/qkv/kernel']
  assert qkv == P(None, 'tensor', None, None, 'fsdp')
  moe = 'layers/block/moe'
  assert got[f'{moe}/router/kernel'] == P(None, None, 'fsdp')
  want = P(None, None, None, 'tensor', 'fsdp')
  assert got[f'{moe}/gate_up/kernel'] == want
  assert got[f'{moe}/down/kernel'] == P(None, None, 'fsdp', 'tensor')


def test_an_axis_that_does_not_divide_stays_whole():
  # K=1: the G + 2 = 6 rows of the one head are split instead.
  got = _specs(_mesh(1, 1, 2), num_kv_heads=1, vocab_size=51)
  assert got['layers_0/attn/qkv/kernel'] == P(None, 'tensor', None, None)
  assert got['embedder/embedding'] == P(None, None)
  # Neither 1 nor 6 by 4, but N = 4 and F = 48.
  got = _specs(_mesh(1, 3, 4), num_kv_heads=1)
  assert got['layers_0/attn/qkv/kernel'] == P(None, None, None, None)
  assert got['layers_0/attn/o/kernel'] == P(None, 'tensor', None)
  assert got['layers_0/mlp/down/kernel'] == P(None, 'tensor')


@pytest.mark.parametrize('tx', ('adamw', 'masked', 'adafactor'))
def test_optimizer_state_lies_where_its_parameters_do(tx):
  mesh = _mesh(1, 2, 2)
  params = {
    'layers_0': {
      'mlp': {
        'gate_up': {'kernel': jnp.zeros((2, 48, 32))},
        'down': {'kernel': jnp.zeros((32, 48))},
      },
      'pre_mlp_norm': {'scale': jnp.zeros(32)},
    },
    'layers_1': {'attn': {'q': {'lora_a': jnp.zeros((4, 32))}}},
  }
  made = {
    'adamw': optax.adamw(1e-3),
    'masked': optax.masked(
      optax.adamw(1e-3), jax.tree.map(lambda x: x.ndim > 1, params)
    ),
    'adafactor': optax.adafactor(1e-3, min_dim_size_to_factor=16),
  }[tx]
  state = jax.eval_shape(
    lambda p: init_state(p, made, jax.random.key(0), ema=True), params
  )
  got = {
    jax.tree_util.keystr(path): sharding.spec
    for path, sharding in jax.tree_util.tree_leaves_with_path(
      state_shardings(state, mesh)
    )
  }
  gate_up = "['layers_0']['mlp']['gate_up']['kernel']"
  assert got[f'.ema{gate_up}'] == P(None, 'tensor', 'fsdp')
  assert got['.step'] == got['.rng'] == P()
  assert got[".params['layers_1']['attn']['q']['lora_a']"] == P(None, None)

  def find(field, leaf):
    return [v for k, v in got.items() if k.endswith(f'.{field}{leaf}')]

  if tx == 'adafactor':
    # F=48 is the longest axis and D=32 the next one.
    assert find('v_row', gate_up) == [P(None, 'fsdp')]
    assert find('v_col', gate_up) == [P(None, 'tensor')]
    assert find('v', gate_up) == [P()]  # a placeholder of one number
  else:
    assert find('mu', gate_up) == find('nu', gate_up)
    assert find('mu', gate_up) == [P(None, 'tensor', 'fsdp')]


def test_scales_of_blocks():
  kernel = jnp.zeros((64, 1024))
  state = _State(
    params={'up': {'gate_up': {'kernel': kernel}}, 'x': jnp.zeros((4, 4))},
    # One per 256 values of a row, or of all values.
    scales={'up': {'gate_up': {'kernel': jnp.zeros((64, 4))}}},
    odd={'up': {'gate_up': {'kernel': jnp.zeros((64, 3))}}},
    flat={'up': {'gate_up': {'kernel': jnp.zeros(256)}}, 'x': jnp.zeros(2)},
  )
  got = state_shardings(state, _mesh(1, 2, 2))
  assert jax.tree.leaves(got.params)[0].spec == P('tensor', 'fsdp')
  assert jax.tree.leaves(got.scales)[0].spec == P('tensor', 'fsdp')
  assert jax.tree.leaves(got.odd)[0].spec == P('tensor', None)
  assert [x.spec for x in jax.tree.leaves(got.flat)] == [P('fsdp'), P()]


def test_one_device_takes_a_batch_and_a_checkpoint(tmp_path):
  mesh = make_mesh(types.SimpleNamespace(data=1, fsdp=1, tensor=1))
  batch = shard_batch({'tokens': tiny.tokens(4, 8)}, mesh)
  assert batch['tokens'].sharding == batch_sharding(mesh)
  assert (jax.device_get(batch['tokens']) == tiny.tokens(4, 8)).all()
  config = tiny.config()
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
  save_hf(tmp_path, config, params)
  shardings = param_shardings(params, mesh)
  loaded = load_params(tmp_path, config, shardings=shardings)
  assert jax.tree.map(lambda x: x.sharding, loaded) == shardings
