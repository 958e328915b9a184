"""Gradients that are written by hand are those of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models.attention import attend
from llm.models.cache import Segment
from llm.models.layers import linear
from llm.models.rope import apply_rope


def _draw(*shapes):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def _value_and_gradients(f, args, out_grad):
  out, pullback = jax.vjp(f, *args)
  return out, *pullback(out_grad)


def _assert_equal(f, plain, args, out_grad):
  got = jax.jit(lambda a, g: _value_and_gradients(f, a, g))(args, out_grad)
  want = _value_and_gradients(plain, args, out_grad)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


@pytest.mark.parametrize('out', [(2, 24), (3,)])  # wider and narrower than D
def test_linear_of_many_rows(out):
  args = _draw((2, 40, 8), (*out, 8))
  (out_grad,) = _draw((2, 40, *out))
  plain = lambda x, w: jnp.tensordot(x, w, axes=(-1, -1))
  _assert_equal(linear, plain, args, out_grad)


def _plain_attention(mask, scale):
  def f(q, k, v):
    scores = jnp.einsum('btkgh,bksh->bkgts', q, k) * scale
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -jnp.inf))
    return jnp.einsum('bkgts,bkhs->btkgh', weights, v)

  return f


@pytest.mark.parametrize('length', [9, 300])  # one block; three, the last short
@pytest.mark.parametrize('packed', [False, True])
def test_attention_to_the_own_segment(length, packed):
  causal = jnp.tril(jnp.ones((1, length, length), bool))
  if packed:
    ids = jnp.arange(length)[None] // jnp.array([[4], [7]])
    causal = causal & (ids[:, :, None] == ids[:, None, :])
  args = _draw((2, length, 2, 2, 4), (2, 2, length, 4), (2, 2, 4, length))
  (out_grad,) = _draw((2, length, 2, 2, 4))

  def ours(q, k, v):
    return attend(q, [Segment(k, v, causal, causal=True)], scale=0.3)

  _assert_equal(ours, _plain_attention(causal, 0.3), args, out_grad)


@pytest.mark.parametrize('length', [1, 5, 150])  # a step, one block, two
def test_attention_to_keys_that_rows_share(length):
  # Rows 0 to 2 share the first row of 7 keys, of which they see 7, rows 3 to 5
  # the second, of which they see 4; each has keys of its own behind them.
  shared = jnp.arange(7) < jnp.repeat(jnp.array([7, 4]), 3)[:, None]
  causal = jnp.tril(jnp.ones((1, length, length), bool))
  args = _draw(
    (6, length, 2, 2, 4),
    (2, 2, 7, 4),
    (2, 2, 4, 7),
    (6, 2, length, 4),
    (6, 2, 4, length),
  )
  (out_grad,) = _draw((6, length, 2, 2, 4))

  def ours(q, k, v, own_k, own_v):
    segments = [
      Segment(k, v, shared[:, None]),
      Segment(own_k, own_v, causal, causal=True),
    ]
    return attend(q, segments, scale=0.3)

  def plain(q, k, v, own_k, own_v):
    k, v = jnp.repeat(k, 3, axis=0), jnp.repeat(v, 3, axis=0)
    mask = jnp.concatenate(
      [
        jnp.broadcast_to(shared[:, None], (6, length, 7)),
        jnp.broadcast_to(causal, (6, length, length)),
      ],
      axis=-1,
    )
    k, v = jnp.concatenate([k, own_k], 2), jnp.concatenate([v, own_v], 3)
    return _plain_attention(mask, 0.3)(q, k, v)

  _assert_equal(ours, plain, args, out_grad)


def test_attention_of_reduced_precision_stays_near():
  args = [
    x.astype(jnp.bfloat16) for x in _draw((1, 9, 1, 1, 8), *[(1, 1, 9, 8)])
  ]
  q, k = args
  v = jnp.swapaxes(k, -1, -2)
  mask = jnp.tril(jnp.ones((1, 9, 9), bool))

  def ours(q, k, v):
    return attend(q, [Segment(k, v, mask, causal=True)], scale=0.3)

  got = _value_and_gradients(ours, (q, k, v), q)
  wide = [x.astype(jnp.float32) for x in (q, k, v)]
  want = _value_and_gradients(_plain_attention(mask, 0.3), wide, wide[0])
  for a, b in zip(got, want, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(
      a.astype(jnp.float32), b, rtol=0, atol=0.02 * np.abs(b).max()
    )


def test_rotation_backwards_is_the_other_way_round():
  (x,) = _draw((1, 3, 2, 8))
  positions = jnp.array([[0, 5, 9]])
  inv_freq = jnp.array([1.0, 0.1])  # the last four features pass through
  _, pullback = jax.vjp(lambda x: apply_rope(x, positions, inv_freq), x)
  (back,) = pullback(apply_rope(x, positions, inv_freq))
  np.testing.assert_allclose(back, x, atol=1e-6)
