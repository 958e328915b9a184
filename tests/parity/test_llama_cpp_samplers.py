"""DRY, XTC and the penalties against llama.cpp's own samplers."""

import ctypes

import jax
import jax.numpy as jnp
import numpy as np
import pytest

cpp = pytest.importorskip('llama_cpp')

from llm.decode import filters  # noqa: E402
from llm.decode import logits as processors  # noqa: E402

V = 6


def applied(sampler, logits, tokens=()):
  """Logits after one of llama.cpp's samplers; -inf where it drops a token."""
  data = (cpp.llama_token_data * V)(
    *[cpp.llama_token_data(i, float(x), 0.0) for i, x in enumerate(logits)]
  )
  array = cpp.llama_token_data_array(data, V, -1, False)
  for token in tokens:
    cpp.llama_sampler_accept(sampler, int(token))
  cpp.llama_sampler_apply(sampler, ctypes.byref(array))
  out = np.full(V, -np.inf, np.float32)
  for i in range(array.size):
    out[array.data[i].id] = array.data[i].logit
  cpp.llama_sampler_free(sampler)
  return out


@pytest.mark.parametrize('base', [1.0, 1.75, 4.0])
def test_dry(base):
  rng = np.random.default_rng(5)
  dry = jax.jit(processors.dry)
  penalised = 0
  for case in range(60):
    length = int(rng.integers(1, 40))
    # Few ids, so that much repeats; some cases repeat a block.
    tokens = rng.integers(0, 2 + case % 4, length)
    if case % 3 == 0:
      tokens = np.resize(tokens[: 1 + case % 5], length)
    allowed = int(rng.integers(1, 5))
    logits = rng.normal(size=V).astype(np.float32)
    expected = applied(
      cpp.llama_sampler_init_dry(None, 0.8, base, allowed, 64, None, 0),
      logits,
      tokens,
    )
    got = dry(
      logits,
      jnp.float32(0.8),
      jnp.float32(base),
      jnp.int32(allowed),
      jnp.zeros(V, bool),
      jnp.asarray(np.pad(tokens, (0, 64 - length)), jnp.int32),
      jnp.int32(length),
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    penalised += int((expected != logits).sum())
  assert penalised > 20


def test_xtc():
  rng = np.random.default_rng(6)
  xtc = jax.jit(filters.xtc)
  dropped = 0
  for _ in range(40):
    logits = rng.normal(0.0, 1.0, V).astype(np.float32)
    threshold = float(rng.uniform(0.02, 0.4))
    expected = applied(cpp.llama_sampler_init_xtc(1.0, threshold, 1, 0), logits)
    got = xtc(logits, 1.0, jnp.float32(threshold), jax.random.key(0))
    np.testing.assert_array_equal(got, expected)
    dropped += int(np.isinf(expected).sum())
  assert dropped > 20


def test_presence_and_frequency():
  logits = np.linspace(-1.0, 1.0, V).astype(np.float32)
  tokens = [0, 3, 3, 5, 3]
  counts = jnp.asarray(np.bincount(tokens, minlength=V))
  got = processors.frequency_penalty(logits, 0.25, counts)
  got = processors.presence_penalty(got, 0.5, counts)
  arguments = (64, 1.0, 0.25, 0.5)
  try:
    sampler = cpp.llama_sampler_init_penalties(*arguments)
  except TypeError:
    # Newer releases ask for the vocabulary's size.
    sampler = cpp.llama_sampler_init_penalties(V, *arguments)
  np.testing.assert_allclose(got, applied(sampler, logits, tokens), atol=1e-6)
