"""Attention by other libraries' kernels is that of the plain products."""

import functools
import re

import jax
from jax._src.cudnn import fused_attention_stablehlo as cudnn
import jax.numpy as jnp
import numpy as np
import pytest

from llm import backend
from llm.losses.chunked import chunked_cross_entropy_loss
from llm.models import fused
from llm.models.attention import attend
from llm.models.cache import (
  CallContext,
  FloatKV,
  NoCache,
  OwnMask,
  init_cache,
  open_cache,
)
from llm.models.transformer import Transformer, output_weight, stack_layers
from tests.models import tiny

# By name, in a form that runs anywhere: JAX's function for GPUs on plain
# products, and the TPU's kernel interpreted.
KERNELS = {
  'cudnn': functools.partial(fused.cudnn_attention, implementation='xla'),
  'pallas': functools.partial(fused.pallas_attention, interpret=True),
}
# Rows of three documents and of two, and padding behind them.
IDS = np.repeat([[1, 2, 3, 0], [1, 1, 2, 0]], [40, 23, 57, 10], axis=1)


def _segment(k, v, ids, window):
  zero = jnp.zeros((2,), jnp.int32)
  lengths = jnp.full((2,), k.shape[2])
  call = CallContext(zero, zero, 0, lengths, ids, width=k.shape[2])
  new = FloatKV(k=k, v=v)
  (segment,), _ = NoCache().layer(0).extend(new, call, window)
  return segment


def _arrays():
  rng = np.random.default_rng(0)
  shapes = (2, 130, 2, 3, 8), (2, 2, 130, 8), (2, 2, 8, 130)
  return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


@pytest.mark.parametrize(
  ('name', 'window', 'ids', 'cap'),
  [
    ('cudnn', None, None, None),
    ('cudnn', 9, None, None),
    ('cudnn', 9, IDS, None),
    ('pallas', None, IDS, None),
    ('pallas', 9, None, 3.0),
  ],
)
def test_kernels_equal_the_products(name, window, ids, cap):
  settings = {'scale': 0.3, 'cap': cap}
  # What stands behind a row's tokens differs: nobody reads it.
  counts = jnp.arange(130) < jnp.array([[120], [130]])

  def ours(q, k, v):
    segment = _segment(k, v, ids, window)
    return attend(q, [segment], **settings)

  def kernel(q, k, v):
    segment = _segment(k, v, ids, window)
    made_of = segment.made_of
    assert made_of == OwnMask(window, ids)
    return KERNELS[name](q, k, v, segment.mask, made_of, **settings)

  def value(function):
    def loss(*arrays):
      out = jnp.where(counts[..., None, None, None], function(*arrays), 0.0)
      return jnp.sin(out).sum(), out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))

  got, want = value(kernel)(*_arrays()), value(ours)(*_arrays())
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(g, w, rtol=0, atol=2e-6 * np.abs(w).max())


def test_a_window_that_is_traced_is_left_to_the_mask():
  q, k, v = _arrays()

  @jax.jit
  def ours(window):
    segment = _segment(k, v, None, window)
    assert segment.made_of is None
    arrays = q, k, v, segment.mask, None
    assert KERNELS['pallas'](*arrays, scale=0.3, cap=None) is None
    return KERNELS['cudnn'](*arrays, scale=0.3, cap=None)

  want = attend(q, [_segment(k, v, None, 9)], scale=0.3)
  np.testing.assert_allclose(ours(9), want, atol=2e-6)


@functools.cache
def _model(scan):
  model, params = tiny.build('local_global' if not scan else 'dense')
  if scan:
    params = stack_layers(params, model.config)
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  model = Transformer(model.config, scan_layers=scan, dtype=jnp.bfloat16)
  return model, params


def _train(model, params, tokens):
  def loss(params):
    hidden, _ = model.apply({'params': params}, tokens, method='trunk')
    table = output_weight(params, model.config)
    weights = jnp.ones(tokens.shape)
    return chunked_cross_entropy_loss(hidden, table, tokens, weights)[0]

  return jax.grad(loss)(params)


def _prefill(model, params, tokens):
  scan = model.scan_layers
  cache = init_cache(model.config, 2, 256, jnp.bfloat16, scan)
  return model.apply({'params': params}, tokens, cache=cache, attend_length=0)


def _decode(model, params, tokens):
  scan = model.scan_layers
  cache = init_cache(model.config, 2, 256, jnp.bfloat16, scan)
  opened = open_cache(cache, 4)
  return model.apply({'params': params}, tokens[:, :1], cache=opened)


def _text(program, scan, platform):
  model, params = _model(scan)
  tokens = jnp.asarray(tiny.tokens(2, 200))
  traced = jax.jit(functools.partial(program, model)).trace(params, tokens)
  return traced.lower(lowering_platforms=(platform,)).as_text()


def _operands(text):
  """The dtypes of all operands of matrix products."""
  found = re.findall(r'dot_general.*: \((.*)\) ->', text)
  assert found or 'custom_call' in text
  return {
    dtype for line in found for dtype in re.findall(r'x([a-z]+\d+)>', line)
  }


@pytest.fixture
def with_cudnn(monkeypatch):
  monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 91_000)


@pytest.mark.parametrize('scan', (False, True))
def test_training_and_prefill_take_the_platforms_kernel(scan, with_cudnn):
  for program in (_train, _prefill):
    of_gpu = _text(program, scan, 'cuda')
    assert '__cudnn$fmhaSoftmax' in of_gpu
    assert ('__cudnn$fmhaSoftmaxBackward' in of_gpu) == (program is _train)
    of_tpu = _text(program, scan, 'tpu')
    assert 'tpu_custom_call' in of_tpu
    # Of the linear maps and of the loss; the TPU kernel's gradient sums the
    # products of its output and the output's gradient in float32.
    assert _operands(of_gpu) == {'bf16'}
    assert _operands(of_tpu) - {'bf16'} == (
      {'f32'} if program is _train else set()
    )
    of_cpu = _text(program, scan, 'cpu')
    assert 'custom_call @' not in of_cpu.replace('@Sharding', '')
    assert _operands(of_cpu) == {'bf16', 'f32'}


@pytest.mark.parametrize('platform', ('cuda', 'tpu'))
def test_decoding_keeps_the_products(platform, with_cudnn):
  text = _text(_decode, False, platform)
  assert 'fmha' not in text
  assert 'tpu_custom_call' not in text
  assert _operands(text) == {'bf16'}
  assert 'f32' in _operands(_text(_decode, False, 'cpu'))


def test_without_cudnn_there_are_the_products():
  # Programs that were lowered with a cuDNN are kept.
  backend._program.cache_clear()
  jax.clear_caches()
  with pytest.warns(UserWarning, match='without cuDNN, which is slower: .'):
    text = _text(_train, False, 'cuda')
  assert 'fmha' not in text
  assert _operands(text) == {'bf16'}
