"""Rotary tables against values worked out by hand, and the rotation."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models.config import RopeConfig
from llm.models.rope import apply_rope, inverse_frequencies

_YARN = RopeConfig('yarn', theta=1e4, factor=4.0, original_max_length=64)
_LONG = RopeConfig(
  'longrope',
  factor=8.0,
  original_max_length=16,
  short_factor=(1.0, 2.0),
  long_factor=(3.0, 5.0),
)


def _table(rope, head_dim, length=None):
  inv_freq, factor = inverse_frequencies(rope, head_dim, length)
  assert inv_freq.dtype == jnp.float32
  return np.asarray(inv_freq), factor


def test_default_and_linear():
  inv_freq, factor = _table(RopeConfig(theta=1e4), 4)
  np.testing.assert_allclose(inv_freq, [1.0, 0.01], rtol=1e-7)
  assert factor == 1.0
  inv_freq, _ = _table(RopeConfig('linear', theta=1e4, factor=2.0), 4)
  np.testing.assert_allclose(inv_freq, [0.5, 0.005], rtol=1e-7)


def test_llama3_keeps_fast_stretches_slow_and_blends_between():
  rope = RopeConfig('llama3', theta=1e4, factor=8.0, original_max_length=64)
  inv_freq, _ = _table(rope, 8)
  # Wavelengths 6.3, 62.8, 628, 6283: below 64/4, between, above 64/1 twice.
  ramp = (64 / (2 * math.pi / 0.1) - 1) / 3
  middle = (1 - ramp) * 0.1 / 8 + ramp * 0.1
  np.testing.assert_allclose(
    inv_freq, [1.0, middle, 0.01 / 8, 0.001 / 8], rtol=1e-5
  )


def test_yarn_by_hand():
  inv_freq, factor = _table(_YARN, 8)
  # Dimension with r turns: 8 ln(64 / (2 pi r)) / (2 ln 1e4): -0.50 for 32
  # turns and 1.008 for one; truncated and bounded 0 and 2.
  np.testing.assert_allclose(
    inv_freq,
    [1.0, (0.1 + 0.1 / 4) / 2, 0.01 / 4, 0.001 / 4],
    rtol=1e-6,
  )
  assert factor == pytest.approx(0.1 * math.log(4) + 1)


def test_yarn_options():
  loose = dataclasses.replace(_YARN, truncate=False)
  high = 8 * math.log(64 / (2 * math.pi)) / (2 * math.log(1e4))
  inv_freq, _ = _table(loose, 8)
  share = 1 / high
  np.testing.assert_allclose(
    inv_freq[1], 0.1 * (1 - share) + 0.1 / 4 * share, rtol=1e-5
  )
  both = dataclasses.replace(_YARN, mscale=0.8, mscale_all_dim=0.5)
  log = math.log(4)
  assert _table(both, 8)[1] == pytest.approx(
    (0.08 * log + 1) / (0.05 * log + 1)
  )
  assert _table(dataclasses.replace(_YARN, mscale=0.8), 8)[1] == pytest.approx(
    0.1 * log + 1
  )
  fixed = dataclasses.replace(_YARN, attention_factor=1.5)
  assert _table(fixed, 8)[1] == 1.5


def test_dynamic_follows_each_rows_length():
  rope = RopeConfig('dynamic', theta=1e4, factor=2.0, original_max_length=16)
  lengths = jnp.array([[1, 16], [32, 64]])
  inv_freq, factor = (
    jax.jit(lambda n: inverse_frequencies(rope, 8, n)[0])(lengths),
    1.0,
  )
  default, _ = _table(RopeConfig(theta=1e4), 8)
  assert inv_freq.shape == (2, 2, 4) and factor == 1.0
  np.testing.assert_array_equal(inv_freq[0, 0], default)
  np.testing.assert_array_equal(inv_freq[0, 1], default)
  for row, length in ((0, 32), (1, 64)):
    base = 1e4 * (2 * length / 16 - 1) ** (8 / 6)
    np.testing.assert_allclose(
      inv_freq[1, row], base ** (-np.arange(0, 8, 2) / 8), rtol=1e-6
    )


def test_longrope_picks_the_table_by_length():
  inv_freq, factor = inverse_frequencies(_LONG, 4, jnp.array([16, 17]))
  np.testing.assert_allclose(
    inv_freq, [[1.0, 0.01 / 2], [1 / 3, 0.01 / 5]], rtol=1e-6
  )
  assert factor == pytest.approx(math.sqrt(1 + math.log(8) / math.log(16)))


@pytest.mark.parametrize('kind', ['dynamic', 'longrope'])
def test_length_is_required(kind):
  rope = dataclasses.replace(_LONG, type=kind)
  with pytest.raises(ValueError, match=f"rope.type='{kind}' needs the length"):
    inverse_frequencies(rope, 4)


def test_apply_rotates_pairs_half_a_head_apart():
  x = jnp.array([1.0, 0.0, 0.0, 2.0]).reshape(1, 1, 1, 4)
  inv_freq = jnp.array([1.0, 0.5])
  out = apply_rope(x, jnp.array([[2]]), inv_freq, 3.0)
  np.testing.assert_allclose(
    out.ravel(),
    [
      3 * math.cos(2),
      -6 * math.sin(1),
      3 * math.sin(2),
      6 * math.cos(1),
    ],
    rtol=1e-6,
  )


def test_apply_passes_the_rest_of_a_partly_rotated_head():
  x = jax.random.normal(jax.random.key(0), (2, 3, 2, 8)).astype(jnp.bfloat16)
  inv_freq, _ = inverse_frequencies(RopeConfig(partial_rotary_factor=0.75), 8)
  out = apply_rope(x, jnp.array([[0, 1, 2]] * 2), inv_freq)
  assert inv_freq.shape == (3,) and out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out[..., 6:], x[..., 6:])
  np.testing.assert_array_equal(out[:, 0], x[:, 0])  # position 0
  assert (out[:, 1:, :, :6] != x[:, 1:, :, :6]).mean() > 0.7


def test_apply_takes_tables_per_row_and_per_token():
  x = jax.random.normal(jax.random.key(0), (2, 3, 1, 4))
  positions = jnp.array([[0, 1, 2], [5, 6, 7]])
  tables = jnp.array([[1.0, 0.1], [0.3, 0.03]])
  rows = apply_rope(x, positions, tables)
  for i in range(2):
    one = apply_rope(x[i : i + 1], positions[i : i + 1], tables[i])
    np.testing.assert_array_equal(rows[i], one[0])
  tokens = jnp.broadcast_to(tables[:, None], (2, 3, 2))
  np.testing.assert_array_equal(apply_rope(x, positions, tokens), rows)


def test_scores_depend_on_distance_alone():
  inv_freq, factor = inverse_frequencies(_YARN, 8)
  q, k = jax.random.normal(jax.random.key(1), (2, 1, 1, 1, 8))

  def score(i, j):
    a = apply_rope(q, jnp.array([[i]]), inv_freq, factor)
    b = apply_rope(k, jnp.array([[j]]), inv_freq, factor)
    return float(jnp.sum(a * b))

  assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
  assert abs(score(7, 3) - score(7, 4)) > 1e-2
