"""Slots, rings and bytes of the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models import cache as cache_lib
from llm.models.cache.masks import ring_position
from llm.models.config import ModelConfig
from tests.models import tiny


def test_ring_holds_its_window_only():
  config = tiny.config('local_global')
  cache = cache_lib.init_cache(config, 3, 64)
  assert cache.layers[0].kv.k.shape == (3, 2, 5, 8)
  assert cache.layers[0].kv.v.shape == (3, 2, 8, 5)
  assert cache.layers[1].kv.k.shape == (3, 2, 64, 8)
  assert cache.layers[0].window == 5
  assert [layer.capacity for layer in cache.layers] == [None, 64]
  assert (cache.slots, cache.capacity) == (64, 64)
  short = cache_lib.init_cache(config, 3, 4)
  assert short.layers[0].kv.k.shape == (3, 2, 4, 8)
  assert short.capacity == 4


def test_ring_positions_after_six_tokens():
  got = ring_position(jnp.array([6, 0, 2]), jnp.arange(4), 4)
  np.testing.assert_array_equal(got[0], [4, 5, 2, 3])
  assert (got[1] < 0).all()
  np.testing.assert_array_equal(got[2] >= 0, [True, True, False, False])


def test_append_writes_each_row_behind_its_own_length():
  kv = cache_lib.FloatKV(k=jnp.zeros((2, 1, 6, 1)), v=jnp.zeros((2, 1, 1, 6)))
  new = jnp.arange(1.0, 5.0).reshape(2, 1, 2, 1)  # rows [1, 2] and [3, 4]
  new = cache_lib.FloatKV(k=new, v=new.swapaxes(2, 3))
  start, lengths = jnp.array([1, 3]), jnp.array([2, 2])
  got = cache_lib.DenseLayer(kv).put(new, start, lengths).kv
  np.testing.assert_array_equal(
    got.k[:, 0, :, 0], [[0, 1, 2, 0, 0, 0], [0, 0, 0, 3, 4, 0]]
  )
  np.testing.assert_array_equal(got.v[:, 0, 0], got.k[:, 0, :, 0])


def test_append_to_a_ring_keeps_the_newest_valid_tokens():
  kv = cache_lib.FloatKV(
    k=jnp.full((2, 1, 3, 1), -1.0), v=jnp.full((2, 1, 1, 3), -1.0)
  )
  new = jnp.arange(5.0).reshape(1, 1, 5, 1).repeat(2, 0)
  new = cache_lib.FloatKV(k=new, v=new.swapaxes(2, 3))
  # Row 0 takes five tokens after four: positions 4…8, slots p % 3 hold 6 7 8.
  # Row 1 takes one token after four: position 4 goes to slot 1.
  start, lengths = jnp.array([4, 4]), jnp.array([5, 1])
  got = cache_lib.RingLayer(kv, 3).put(new, start, lengths).kv
  np.testing.assert_array_equal(got.k[0, 0, :, 0], [2.0, 3.0, 4.0])
  np.testing.assert_array_equal(got.k[1, 0, :, 0], [-1.0, 0.0, -1.0])
  np.testing.assert_array_equal(got.v[:, 0, 0], got.k[:, 0, :, 0])


def test_cache_bytes_of_llama_3_8b():
  config = ModelConfig(
    vocab_size=128256,
    embed_dim=4096,
    hidden_dim=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_length=131072,
  )
  # 2 (k, v) * 2 bytes * 8 heads * 128 * 32 layers = 128 KiB per token
  assert cache_lib.cache_bytes(config, 1, 1) == 131072
  assert cache_lib.cache_bytes(config, 1, 4096) == 512 * 2**20


@pytest.mark.parametrize('scan_layers', [False, True])
def test_rows_are_taken_inserted_and_chosen(scan_layers):
  config = tiny.config('all_local')  # a window of 4

  def filled(rows, slots, offset):
    """Each number says its row."""
    cache = cache_lib.init_cache(config, rows, slots, scan_layers=scan_layers)
    axis = 1 if scan_layers else 0
    number = lambda x: (
      jnp.expand_dims(jnp.arange(rows) + offset, range(1, x.ndim - axis))
      + 0 * x
    )
    layers = jax.tree.map(number, cache.layers)
    return cache_lib.KVCache(layers, jnp.arange(rows) + offset)

  def says(cache):
    """The rows that each row's slots are from, the same in all arrays."""
    leaves = jax.tree.leaves(cache.layers)
    if scan_layers:
      leaves = [layer for leaf in leaves for layer in leaf]
    seen = [[sorted(set(row.ravel().tolist())) for row in x] for x in leaves]
    assert all(one == seen[0] for one in seen)
    return seen[0], cache.length.tolist()

  cache, other = filled(3, 8, 1), filled(2, 3, 11)
  assert says(cache.take_rows(jnp.array([2, 0, 0, 2]))) == (
    [[3], [1], [1], [3]],
    [3, 1, 1, 3],
  )
  # Three slots of four, then a zero; index 3 is no row.
  got = cache.insert_rows(other, jnp.array([3, 1]))
  assert says(got) == ([[1], [0, 12], [3]], [1, 12, 3])
  got = cache.where_rows(jnp.array([False, True, False]), filled(3, 8, 21))
  assert says(got) == ([[1], [22], [3]], [1, 22, 3])
