"""Gumbel noise: known answers of the hash, tails, independence of the size."""

import jax
import jax.numpy as jnp
import numpy as np

from llm.decode.noise import gumbel, threefry

jitted = jax.jit(gumbel, static_argnums=1)


def test_threefry_known_answers():
  # Random123's kat_vectors, threefry2x32 with 20 rounds.
  cases = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
    (
      (0x13198A2E, 0x03707344),
      (0x243F6A88, 0x85A308D3),
      (0xC4923A9C, 0x483DF7A0),
    ),
  ]
  for key, counter, expected in cases:
    words = [jnp.array([word], jnp.uint32) for word in counter]
    out = jax.jit(threefry)(jnp.array(key, jnp.uint32), *words)
    assert tuple(int(word[0]) for word in out) == expected


def test_noise_of_an_id_does_not_depend_on_the_vocabulary():
  key = jax.random.key(3, impl='threefry2x32')
  np.testing.assert_array_equal(jitted(key, 10), jitted(key, 1000)[:10])


def test_noise_is_gumbel_far_into_the_tail():
  draws = 2**21
  noise = np.asarray(jitted(jax.random.key(1), draws))
  assert np.isfinite(noise).all()
  assert abs(noise.mean() - np.euler_gamma) < 4 * 1.2825 / np.sqrt(draws)
  assert abs(noise.var() - np.pi**2 / 6) < 0.01
  for bound in (-2.0, 0.0, 3.0, 8.0, 11.0):
    share = -np.expm1(-np.exp(-bound))
    expected = draws * share
    count = np.sum(noise > bound)
    assert abs(count - expected) < 4 * np.sqrt(expected * (1 - share)), bound
