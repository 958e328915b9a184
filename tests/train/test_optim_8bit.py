"""Eight-bit moments: the error of the numbers, and Adam's way with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm.train import adam8bit


def _book(signed):
  """The dynamic tree's 256 numbers, written down from the paper."""
  numbers = [0.0, 1.0]
  for decade in range(7):
    count = 2 ** (decade if signed else decade + 1)
    edges = np.linspace(0.1, 1.0, count + 1) * 10.0 ** (decade - 6)
    middles = (edges[1:] + edges[:-1]) / 2
    numbers.extend(middles)
    if signed:
      numbers.extend(-middles)
  return np.sort(numbers)


@pytest.mark.parametrize('signed', (True, False))
def test_codes_count_the_dynamic_tree(signed):
  codes = jnp.tile(jnp.arange(256, dtype=jnp.uint8), 16)
  numbers = adam8bit.dequantize(codes, jnp.full(16, 2.0), signed=signed)
  np.testing.assert_allclose(numbers[:256], 2 * _book(signed), rtol=1e-6)
  again, scales = adam8bit.quantize(numbers, signed=signed)
  np.testing.assert_array_equal(again, codes)
  np.testing.assert_array_equal(scales, 2.0)


@pytest.mark.parametrize('shape', ((64, 256), (3, 1001, 7)))
@pytest.mark.parametrize('signed', (True, False))
def test_error_is_the_distance_to_the_nearest_number(signed, shape):
  rng = np.random.default_rng(0)
  x = rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 0, shape)
  x = np.float32(x if signed else np.abs(x))
  codes, scales = adam8bit.quantize(jnp.asarray(x), signed=signed)
  y = np.asarray(adam8bit.dequantize(codes, scales, signed=signed))
  assert codes.shape == y.shape == shape and codes.dtype == jnp.uint8
  pad = -x.size % 256
  x, y = (np.pad(a.ravel(), (0, pad)).reshape(-1, 256) for a in (x, y))
  largest = np.abs(x).max(axis=1, keepdims=True)
  np.testing.assert_array_equal(np.asarray(scales).ravel(), largest[:, 0])
  book = _book(signed)
  share = x / largest
  if signed:  # -1 has no number of its own
    share = np.maximum(share, book[0])
  right = np.clip(np.searchsorted(book, share), 1, 255)
  error = np.abs(y / largest - share)
  nearest = np.minimum(book[right] - share, share - book[right - 1])
  if signed:
    np.testing.assert_allclose(error, np.abs(nearest), atol=1e-6)
  else:  # a value above 0 is never stored as 0
    np.testing.assert_allclose(error, np.abs(nearest), atol=1e-6)
    assert ((y > 0) == (x > 0)).all()


def test_random_rounding_has_the_value_as_its_mean():
  x = jnp.linspace(0.0, 1.0, 256)
  rows = jnp.tile(x, (4096, 1))
  y = adam8bit.dequantize(*adam8bit.quantize(rows, rng=jax.random.key(0)))
  # 4096 draws between numbers at most 0.007 apart: five standard errors.
  np.testing.assert_allclose(y.mean(0)[1:], x[1:], atol=5 * 0.0036 / 64)


def test_state_takes_two_bytes_per_parameter():
  params = {'kernel': jnp.zeros((128, 512)), 'bias': jnp.zeros(64)}
  state = adam8bit.scale_by_adam8bit(0.9, 0.999).init(params)
  size = lambda key: sum(
    tree[key].nbytes
    for tree in (
      state.mu_codes,
      state.mu_scales,
      state.nu_codes,
      state.nu_scales,
    )
  )
  assert size('kernel') == 128 * 512 * 2 + 2 * 4 * 128 * 512 / 256
  assert size('bias') == 64 * 8 + 8  # two moments and their unused scales
  assert state.mu_scales['kernel'].shape == (128, 2)


def _train(tx, steps):
  """Losses and parameters of a regression with features of many sizes."""
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (256, 64)) * jnp.logspace(-2, 0.5, 64)
  y = x @ jax.random.normal(keys[1], (64, 64))

  def loss(p, i):
    rows = jax.random.randint(jax.random.fold_in(keys[2], i), (32,), 0, 256)
    return jnp.mean((x[rows] @ p - y[rows]) ** 2)

  def step(carry, i):
    p, state = carry
    value, grads = jax.value_and_grad(loss)(p, i)
    updates, state = tx.update(grads, state, p)
    return (optax.apply_updates(p, updates), state), value

  p = jnp.zeros((64, 64))
  run = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps)))
  (p, _), losses = run((p, tx.init(p)))
  return np.asarray(p), np.asarray(losses)


@pytest.mark.slow
def test_training_goes_the_way_of_float32_adam():
  rate = optax.scale(-0.01)
  full = optax.chain(optax.scale_by_adam(0.9, 0.999), rate)
  small = optax.chain(adam8bit.scale_by_adam8bit(0.9, 0.999), rate)
  want, want_losses = _train(full, 300)
  got, losses = _train(small, 300)
  # Rounding the second moment to nearest ends 16% higher: it does not fall.
  np.testing.assert_allclose(losses, want_losses, rtol=0.06)
  assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)
  again, _ = _train(small, 300)
  np.testing.assert_array_equal(again, got)


def test_small_parameters_are_adams():
  params = {'bias': jnp.arange(1.0, 9.0)}
  full, small = (
    optax.scale_by_adam(0.9, 0.99),
    adam8bit.scale_by_adam8bit(0.9, 0.99),
  )
  a, b = full.init(params), small.init(params)
  for i in range(5):
    grads = {'bias': jnp.sin(params['bias'] * (i + 1))}
    u, a = full.update(grads, a)
    v, b = small.update(grads, b)
    np.testing.assert_allclose(v['bias'], u['bias'], rtol=2e-5, atol=1e-6)
