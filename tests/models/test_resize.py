"""Rows for new tokens, by hand."""

import jax.numpy as jnp
import numpy as np

from llm.models.resize import resize_tables


def test_new_rows_are_the_mean_of_the_old():
  table = jnp.array([[1.0, 2.0], [3.0, 6.0]])
  params = {
    'embedder': {'embedding': table},
    'lm_head': {'kernel': -table},
    'final_norm': {'scale': jnp.ones(2)},
  }
  out = resize_tables(params, 4)
  want = [[1, 2], [3, 6], [2, 4], [2, 4]]
  np.testing.assert_array_equal(out['embedder']['embedding'], want)
  np.testing.assert_array_equal(out['lm_head']['kernel'], -np.array(want))
  assert out['final_norm'] is params['final_norm']
  tied = resize_tables({'embedder': params['embedder']}, 2)
  np.testing.assert_array_equal(tied['embedder']['embedding'], table)
  assert set(tied) == {'embedder'}


def test_the_mean_is_taken_in_float32():
  table = jnp.full((3000, 1), 1.0, jnp.bfloat16)
  out = resize_tables({'embedder': {'embedding': table}}, 3001)
  assert out['embedder']['embedding'].dtype == jnp.bfloat16
  assert float(out['embedder']['embedding'][-1, 0]) == 1.0
