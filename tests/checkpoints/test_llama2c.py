"""llama2.c files, against the layout and the rotation of the C program."""

import jax
import numpy as np
import pytest

from llm.checkpoints import llama2c
from llm.errors import UserError
from llm.models.rope import apply_rope, inverse_frequencies

_D, _F, _L, _N, _K, _V, _T = 16, 20, 2, 4, 2, 11, 8
_H = _D // _N


def _write(path, shared=True):
  """A random file; returns its arrays."""
  rng = np.random.default_rng(0)
  shapes = dict(
    tok=(_V, _D),
    attention_norm=(_L, _D),
    wq=(_L, _N * _H, _D),
    wk=(_L, _K * _H, _D),
    wv=(_L, _K * _H, _D),
    wo=(_L, _D, _N * _H),
    ffn_norm=(_L, _D),
    w1=(_L, _F, _D),
    w2=(_L, _D, _F),
    w3=(_L, _F, _D),
    norm=(_D,),
    real=(_T, _H // 2),
    imag=(_T, _H // 2),
  )
  if not shared:
    shapes['output'] = (_V, _D)
  arrays = {k: rng.normal(size=s).astype('<f4') for k, s in shapes.items()}
  header = [_D, _F, _L, _N, _K, _V if shared else -_V, _T]
  with open(path, 'wb') as file:
    file.write(np.array(header, '<i4').tobytes())
    for array in arrays.values():
      file.write(array.tobytes())
  return arrays


@pytest.mark.parametrize('shared', [True, False])
def test_config_and_whole_arrays(tmp_path, shared):
  path = str(tmp_path / 'm.bin')
  arrays = _write(path, shared)
  config, params = llama2c.load(path)
  assert (config.embed_dim, config.hidden_dim, config.num_layers) == (16, 20, 2)
  assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 4)
  assert (config.vocab_size, config.max_length) == (11, 8)
  assert config.norm_eps == 1e-5 and config.rope.theta == 1e4
  assert config.tie_embeddings == shared and config.eos_ids == (1, 2)
  assert ('lm_head' in params) == (not shared)
  if not shared:
    np.testing.assert_array_equal(params['lm_head']['kernel'], arrays['output'])
  layer = params['layers_1']
  for ours, theirs in (
    (params['embedder']['embedding'], arrays['tok']),
    (params['final_norm']['scale'], arrays['norm']),
    (layer['pre_attention_norm']['scale'], arrays['attention_norm'][1]),
    (layer['pre_mlp_norm']['scale'], arrays['ffn_norm'][1]),
    (layer['mlp']['gate_up']['kernel'][0], arrays['w1'][1]),
    (layer['mlp']['gate_up']['kernel'][1], arrays['w3'][1]),
    (layer['mlp']['down']['kernel'], arrays['w2'][1]),
    (layer['attn']['o']['kernel'].reshape(_D, -1), arrays['wo'][1]),
    (layer['attn']['qkv']['kernel'][:, 3].reshape(-1, _D), arrays['wv'][1]),
  ):
    np.testing.assert_array_equal(ours, theirs)


def _rotate_neighbours(x, position):
  """run.c: features (2i, 2i + 1) turn by position * 10000 ** (-2i / H)."""
  out = x.copy()
  for i in range(0, _H, 2):
    angle = position * 10000.0 ** (-i / _H)
    c, s = np.cos(angle), np.sin(angle)
    out[i] = x[i] * c - x[i + 1] * s
    out[i + 1] = x[i] * s + x[i + 1] * c
  return out


def test_attention_scores_are_those_of_the_c_program(tmp_path):
  path = str(tmp_path / 'm.bin')
  arrays = _write(path)
  config, params = llama2c.load(path)
  x, y = np.random.default_rng(1).normal(size=(2, _D)).astype(np.float32)
  kernel = params['layers_0']['attn']['qkv']['kernel']
  inv_freq, _ = inverse_frequencies(config.rope, _H)

  def ours(head, slot, at, position):
    vector = (kernel[head, slot] @ at).reshape(1, 1, 1, _H)
    return apply_rope(vector, np.array([[position]]), inv_freq).ravel()

  for head in range(_N):
    query = arrays['wq'][0].reshape(_N, _H, _D)[head] @ x
    key = arrays['wk'][0].reshape(_K, _H, _D)[head // 2] @ y
    expected = _rotate_neighbours(query, 5) @ _rotate_neighbours(key, 2)
    got = ours(head // 2, head % 2, x, 5) @ ours(head // 2, 2, y, 2)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_dtype_and_progress(tmp_path):
  path = str(tmp_path / 'm.bin')
  arrays = _write(path)
  seen = []
  _, params = llama2c.load(
    path, dtype=jax.numpy.bfloat16, progress=lambda *args: seen.append(args)
  )
  assert {x.dtype for x in jax.tree.leaves(params)} == {
    np.dtype(jax.numpy.bfloat16)
  }
  total = sum(x.nbytes for x in arrays.values())
  assert seen[-1] == (total, total, 'freq_cis_imag')


def test_broken_files(tmp_path):
  path = tmp_path / 'm.bin'
  with pytest.raises(UserError, match='no such file'):
    llama2c.load(str(path))
  _write(path)
  data = path.read_bytes()
  for size, message in (
    (10, 'less than the header of 28'),
    (len(data) - 1, r'truncated in freq_cis_imag\[8, 2\]'),
    (28 + 4 * _V * _D, r'truncated in attention_norm\[2, 16\]'),
  ):
    path.write_bytes(data[:size])
    with pytest.raises(UserError, match=message):
      llama2c.load(str(path))
  path.write_bytes(data + b'abc')
  with pytest.raises(UserError, match='3 bytes after the last array'):
    llama2c.load(str(path))
  path.write_bytes(b'GGUF' + data[4:])
  with pytest.raises(UserError, match='not a llama2.c checkpoint'):
    llama2c.load(str(path))
