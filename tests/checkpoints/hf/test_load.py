"""Model folders: round trips, shards, slices, dtypes, and broken files."""

import dataclasses
import json
import os
import re
import struct

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llm.checkpoints.hf.load import load_params
from llm.checkpoints.hf.names import leaves
from llm.checkpoints.hf.save import save_hf
from llm.checkpoints.hf.source import read_config
from llm.errors import UserError
from llm.models.config import LOCAL, ModelConfig, RopeConfig

_LLAMA = ModelConfig(
  vocab_size=40,
  embed_dim=16,
  hidden_dim=24,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  max_length=32,
)
_VARIANTS = {
  'llama': _LLAMA,
  'llama_biases': dataclasses.replace(
    _LLAMA, qkv_bias=True, attn_out_bias=True, mlp_bias=True
  ),
  'phi3': dataclasses.replace(_LLAMA, model_type='phi3'),
  'gemma3': dataclasses.replace(
    _LLAMA,
    model_type='gemma3_text',
    layer_types=(LOCAL, 'global'),
    window=8,
    rope_local=RopeConfig(),
    post_norm=True,
    norm_offset=True,
    qk_norm='head',
    activation='gelu_tanh',
    query_scale=6**-0.5,
    embed_scale=4.0,
    tie_embeddings=True,
  ),
  'olmo2': dataclasses.replace(
    _LLAMA,
    model_type='olmo2',
    pre_norm=False,
    post_norm=True,
    norm_float32_scale=True,
    qk_norm='full',
  ),
  'mixtral': dataclasses.replace(
    _LLAMA,
    model_type='mixtral',
    num_experts=3,
    experts_per_token=2,
    expert_dim=24,
  ),
  'qwen3_moe': dataclasses.replace(
    _LLAMA,
    model_type='qwen3_moe',
    qk_norm='head',
    num_experts=3,
    experts_per_token=2,
    expert_dim=10,
    moe_layers=(True, False),
  ),
}


def _params(config, dtype=np.float32):
  rng = np.random.default_rng(0)
  params = {}
  for leaf in leaves(config):
    node = params
    for key in leaf.path[:-1]:
      node = node.setdefault(key, {})
    node[leaf.path[-1]] = rng.normal(size=leaf.shape).astype(dtype)
  return params


def _assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _tensors(folder):
  """All tensors of a folder, by the format's own library."""
  out = {}
  for name in sorted(os.listdir(folder)):
    if name.endswith('.safetensors'):
      out.update(load_file(os.path.join(folder, name)))
  return out


@pytest.fixture
def folder(tmp_path):
  """A Llama folder in one file."""
  save_hf(str(tmp_path), _LLAMA, _params(_LLAMA))
  return tmp_path


def _edit(folder, change):
  """Rewrites the single file after `change(tensors)`."""
  path = folder / 'model.safetensors'
  held = load_file(path)
  change(held)
  save_file(held, path)


def _refusal(folder, config=_LLAMA):
  with pytest.raises(UserError) as error:
    load_params(str(folder), config)
  return str(error.value)


@pytest.mark.parametrize('name', _VARIANTS)
@pytest.mark.parametrize('max_shard_bytes', [2_000, 10**9])
def test_round_trip(name, max_shard_bytes, tmp_path):
  config = _VARIANTS[name]
  params = _params(config)
  path = str(tmp_path)
  save_hf(path, config, params, max_shard_bytes=max_shard_bytes)
  files = [n for n in os.listdir(path) if n.endswith('.safetensors')]
  assert (len(files) > 3) == (max_shard_bytes == 2_000)
  assert not [n for n in os.listdir(path) if n.endswith('.tmp')]
  assert read_config(path) == config
  loaded = load_params(path, config)
  _assert_equal(loaded, params)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(loaded))
  if len(files) > 1:
    index = json.load(open(os.path.join(path, 'model.safetensors.index.json')))
    held = _tensors(path)
    assert set(index['weight_map']) == set(held)
    assert index['metadata']['total_size'] == sum(
      x.nbytes for x in held.values()
    )


def test_names_and_rows_of_fused_leaves(folder):
  held = _tensors(folder)
  params = _params(_LLAMA)
  qkv = params['layers_1']['attn']['qkv']['kernel']  # [K, G + 2, H, D]
  prefix = 'model.layers.1.'
  query = held[prefix + 'self_attn.q_proj.weight'].reshape(4, 6, 16)
  for head in range(4):
    np.testing.assert_array_equal(query[head], qkv[head // 2, head % 2])
  np.testing.assert_array_equal(
    held[prefix + 'self_attn.k_proj.weight'], qkv[:, 2].reshape(12, 16)
  )
  np.testing.assert_array_equal(
    held[prefix + 'self_attn.v_proj.weight'], qkv[:, 3].reshape(12, 16)
  )
  mlp = params['layers_1']['mlp']
  np.testing.assert_array_equal(
    held[prefix + 'mlp.up_proj.weight'], mlp['gate_up']['kernel'][1]
  )
  assert held[prefix + 'self_attn.o_proj.weight'].shape == (16, 24)
  assert held['lm_head.weight'].shape == (40, 16)


def test_stacked_layers_are_written_as_single_ones(tmp_path):
  params = _params(_LLAMA)
  layers = [params.pop(f'layers_{i}') for i in range(2)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)
  save_hf(str(tmp_path), _LLAMA, {**params, 'layers': {'block': stacked}})
  _assert_equal(load_params(str(tmp_path), _LLAMA), _params(_LLAMA))


def test_experts_stacked_in_the_checkpoint(tmp_path):
  config = _VARIANTS['mixtral']
  params = _params(config)
  save_hf(str(tmp_path), config, params)

  def stack(held):
    for i in range(config.num_layers):
      old, new = f'model.layers.{i}.block_sparse_moe.', f'model.layers.{i}.mlp.'
      held[new + 'gate.weight'] = held.pop(old + 'gate.weight')
      experts = [
        [held.pop(f'{old}experts.{e}.{w}.weight') for w in ('w1', 'w3', 'w2')]
        for e in range(config.num_experts)
      ]
      held[new + 'experts.gate_up_proj'] = np.stack(
        [np.concatenate(expert[:2]) for expert in experts]
      )
      held[new + 'experts.down_proj'] = np.stack([e[2] for e in experts])

  _edit(tmp_path, stack)
  _assert_equal(load_params(str(tmp_path), config), params)


@pytest.mark.parametrize('prefix', ['language_model.model.', ''])
def test_other_prefixes(prefix, tmp_path):
  config = _VARIANTS['gemma3']
  params = _params(config)
  save_hf(str(tmp_path), config, params)

  def rename(held):
    for name in list(held):
      held[prefix + name.removeprefix('model.')] = held.pop(name)
    if prefix:
      held['vision_tower.x'] = np.zeros(3, np.float32)

  _edit(tmp_path, rename)
  _assert_equal(load_params(str(tmp_path), config), params)


@pytest.mark.parametrize('source', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('target', ['float32', 'bfloat16', 'float16'])
def test_dtypes(source, target, tmp_path):
  params = _params(_LLAMA)
  save_hf(str(tmp_path), _LLAMA, params, dtype=source)
  raw = json.load(open(tmp_path / 'config.json'))
  assert raw['torch_dtype'] == source
  loaded = load_params(str(tmp_path), _LLAMA, dtype=target)
  expected = jax.tree.map(
    lambda x: x.astype(jnp.dtype(source)).astype(jnp.dtype(target)), params
  )
  assert loaded['lm_head']['kernel'].dtype == target
  _assert_equal(loaded, expected)


def test_values_too_large_for_float16_are_refused(tmp_path):
  params = _params(_LLAMA)
  params['final_norm']['scale'][3] = 1e5
  save_hf(str(tmp_path), _LLAMA, params)
  with pytest.raises(UserError, match='model.norm.weight: a value above 65504'):
    load_params(str(tmp_path), _LLAMA, dtype=np.float16)
  with pytest.raises(UserError, match='a value above 65504'):
    save_hf(str(tmp_path), _LLAMA, params, dtype=np.float16)
  assert read_config(str(tmp_path)) == _LLAMA  # the old folder still stands
  load_params(str(tmp_path), _LLAMA)


def test_shardings_read_slices(tmp_path, run_python):
  """Four devices: every axis of every leaf is cut, and the values are equal."""
  code = f"""
import sys; sys.path.insert(0, '.')
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tests.checkpoints.hf.test_load import _VARIANTS, _params, _assert_equal
from llm.checkpoints.hf.load import load_params
from llm.checkpoints.hf.save import save_hf
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ('x', 'y'))
for name in ('llama', 'phi3', 'mixtral'):
  config, folder = _VARIANTS[name], {str(tmp_path)!r} + name
  params = _params(config)
  save_hf(folder, config, params, max_shard_bytes=2000)
  for pick in (0, -1):
    def spec(x):
      axes = [None] * x.ndim
      cut = [i for i, n in enumerate(x.shape) if n % 2 == 0]
      if cut: axes[cut[pick]] = 'x'
      if len(cut) > 1: axes[cut[0 if pick else -1]] = 'y'
      return NamedSharding(mesh, P(*axes))
    shardings = jax.tree.map(spec, params)
    loaded = load_params(folder, config, shardings=shardings)
    _assert_equal(loaded, params)
    assert jax.tree.map(lambda x: x.sharding, loaded) == shardings
  _assert_equal(
    load_params(folder, config, shardings=NamedSharding(mesh, P())), params)
  save_hf(folder + '2', config, loaded)
  _assert_equal(load_params(folder + '2', config), params)
print('equal')
"""
  assert run_python(code, devices=4).endswith('equal\n')


def test_progress(folder):
  seen = []
  load_params(str(folder), _LLAMA, progress=lambda *args: seen.append(args))
  total = sum(x.nbytes for x in _tensors(folder).values())
  assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
  assert {all_ for _, all_, _ in seen} == {total}
  assert seen[-1] == (total, total, 'lm_head/kernel')
  assert len(seen) == len(leaves(_LLAMA))


def test_saving_again_leaves_no_stale_weights(tmp_path):
  save_hf(str(tmp_path), _LLAMA, _params(_LLAMA), max_shard_bytes=2000)
  (tmp_path / 'notes.txt').write_text('mine')
  other = dataclasses.replace(_LLAMA, num_layers=1, layer_types=())
  save_hf(str(tmp_path), other, _params(other))
  weights = sorted(n for n in os.listdir(tmp_path) if 'safetensors' in n)
  assert weights == ['model.safetensors']
  assert (tmp_path / 'notes.txt').exists()
  save_hf(str(tmp_path), _LLAMA, _params(_LLAMA), max_shard_bytes=2000)
  assert not (tmp_path / 'model.safetensors').exists()
  _assert_equal(load_params(str(tmp_path), _LLAMA), _params(_LLAMA))


def test_tokenizer_and_stop_ids_are_saved_and_merged(tmp_path):
  class Tokenizer:
    def save(self, folder):
      open(os.path.join(folder, 'tokenizer.json'), 'w').close()

  config = dataclasses.replace(_LLAMA, eos_ids=(5, 7), bos_id=1)
  save_hf(str(tmp_path), config, _params(config), tokenizer=Tokenizer())
  assert (tmp_path / 'tokenizer.json').exists()
  generation = tmp_path / 'generation_config.json'
  assert json.loads(generation.read_text()) == {
    'bos_token_id': 1,
    'eos_token_id': [5, 7],
  }
  generation.write_text('{"eos_token_id": [9, 7], "bos_token_id": 3}')
  merged = read_config(str(tmp_path))
  assert merged.eos_ids == (9, 7) and merged.bos_id == 1
  generation.write_text('{"eos_token_id": 9}')
  raw = json.loads((tmp_path / 'config.json').read_text())
  del raw['eos_token_id']  # then the library's default says nothing
  (tmp_path / 'config.json').write_text(json.dumps(raw))
  assert read_config(str(tmp_path)).eos_ids == (9,)


def test_missing_extra_and_misshaped_are_named_together(folder):
  def break_it(held):
    del held['model.norm.weight']
    held['model.layers.2.mlp.up_proj.weight'] = np.zeros((24, 16), np.float32)
    held['lm_head.weight'] = held['lm_head.weight'][:, :8].copy()

  _edit(folder, break_it)
  message = _refusal(folder)
  assert '3 problems' in message
  assert 'model.norm.weight: missing, config.json asks for [16]' in message
  assert 'model.layers.2.mlp.up_proj.weight: extra' in message
  assert 'lm_head.weight: [40, 8] in ' in message and '[40, 16]' in message
  assert str(folder / 'model.safetensors') in message


def test_a_config_that_does_not_fit_is_cut_short(folder):
  message = _refusal(folder, dataclasses.replace(_LLAMA, embed_dim=32))
  assert 'model.embed_tokens.weight: [40, 16]' in message
  assert re.search(r'and \d+ more$', message)
  assert message.count('\n') < 20


def test_harmless_extras_are_passed_over(folder):
  def add(held):
    name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
    held[name] = np.zeros(3, np.float32)

  _edit(folder, add)
  _assert_equal(load_params(str(folder), _LLAMA), _params(_LLAMA))


def test_a_tied_head_must_equal_the_embedding(folder):
  tied = dataclasses.replace(_LLAMA, tie_embeddings=True)
  message = _refusal(folder, tied)
  assert 'lm_head.weight' in message and 'tie_word_embeddings' in message

  def tie(held):
    held['lm_head.weight'] = held['model.embed_tokens.weight'].copy()

  _edit(folder, tie)
  assert 'lm_head' not in load_params(str(folder), tied)


def test_truncated_files_name_the_tensors_that_are_cut(tmp_path):
  save_hf(str(tmp_path), _LLAMA, _params(_LLAMA), max_shard_bytes=4000)
  path = sorted(tmp_path.glob('model-*'))[-1]
  data = path.read_bytes()
  path.write_bytes(data[:-4])
  message = _refusal(tmp_path)
  assert (
    message.startswith('lm_head.weight: truncated') and str(path) in message
  )
  assert 'download it again' in message
  path.write_bytes(data[:4])
  assert f'{path}: 4 bytes' in _refusal(tmp_path)
  path.write_bytes(data + b'xy')
  assert f'{path}: 2 bytes after the last tensor' in _refusal(tmp_path)


def test_corrupt_headers(folder):
  path = folder / 'model.safetensors'
  data = path.read_bytes()
  path.write_bytes(struct.pack('<Q', 1 << 60) + data[8:])
  assert 'truncated or not safetensors' in _refusal(folder)
  path.write_bytes(data[:8] + b'!' + data[9:])
  assert 'header is corrupt' in _refusal(folder)
  path.write_bytes(data.replace(b'[40,16]', b'[40,17]', 1))
  message = _refusal(folder)
  assert 'model.embed_tokens.weight: corrupt, 2560 bytes' in message


def test_quantized_tensors_are_refused(folder):
  def quantize(held):
    name = 'model.layers.0.mlp.up_proj.weight'
    held[name] = held[name].astype(np.int8)

  _edit(folder, quantize)
  assert 'model.layers.0.mlp.up_proj.weight: I8' in _refusal(folder)


def test_broken_folders(tmp_path):
  with pytest.raises(UserError, match='no such folder'):
    read_config(str(tmp_path / 'nowhere'))
  with pytest.raises(UserError, match='config.json: no such file'):
    read_config(str(tmp_path))
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(UserError, match='config.json: not valid JSON'):
    read_config(str(tmp_path))
  assert 'none of model.safetensors' in _refusal(tmp_path)
  save_hf(str(tmp_path), _LLAMA, _params(_LLAMA), max_shard_bytes=4000)
  first = sorted(tmp_path.glob('model-*'))[0]
  first.rename(tmp_path / 'gone')
  assert f'{first}: named by model.safetensors.index.json' in _refusal(tmp_path)
  with pytest.raises(UserError, match='dtype=int8'):
    load_params(str(tmp_path), _LLAMA, dtype=np.int8)


def test_index_that_names_tensors_elsewhere(tmp_path):
  save_hf(str(tmp_path), _LLAMA, _params(_LLAMA), max_shard_bytes=4000)
  path = tmp_path / 'model.safetensors.index.json'
  index = json.loads(path.read_text())
  name = 'model.norm.weight'
  index['weight_map'][name] = min(index['weight_map'].values())
  path.write_text(json.dumps(index))
  assert f'{name}: model.safetensors.index.json says' in _refusal(tmp_path)
  for broken in ('{}', '{"weight_map": {"a": 1}}'):
    path.write_text(broken)
    assert 'has no valid weight_map' in _refusal(tmp_path)


def test_saving_names_parameters_that_do_not_fit(tmp_path):
  params = _params(_LLAMA)
  params['extra'] = np.zeros(3)
  params['final_norm']['scale'] = np.zeros(5, np.float32)
  del params['lm_head']
  with pytest.raises(UserError) as error:
    save_hf(str(tmp_path), _LLAMA, params)
  for part in ('extra: not a parameter', 'final_norm/scale: [5]', 'lm_head'):
    assert part in str(error.value)
  assert not os.listdir(tmp_path)


def test_bfloat16_is_kept_bit_for_bit(tmp_path):
  params = _params(_LLAMA, ml_dtypes.bfloat16)
  save_hf(str(tmp_path), _LLAMA, params)
  loaded = load_params(str(tmp_path), _LLAMA, dtype=jnp.bfloat16)
  _assert_equal(loaded, params)


def test_default_sharding_and_one_for_all(folder):
  device = jax.devices()[0]
  mesh = Mesh(np.array([device]), ('x',))
  sharding = NamedSharding(mesh, PartitionSpec())
  params = load_params(str(folder), _LLAMA, shardings=sharding)
  assert params['final_norm']['scale'].sharding == sharding
  params = load_params(str(folder), _LLAMA)
  assert params['final_norm']['scale'].devices() == {device}
