"""NEFTune's noise: its bound, its independence, and where it is added."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.errors import UserError
from llm.models.transformer import Transformer
from llm.train.neftune import neftune_noise
from tests.models import tiny


def _keys(rows):
  return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(
    jnp.arange(rows)
  )


def _row(*lengths, padding=0):
  ids = [np.full(n, i, np.int32) for i, n in enumerate(lengths, 1)]
  return np.concatenate([*ids, np.zeros(padding, np.int32)])


def test_bound_is_alpha_over_the_root_of_length_times_width():
  # Documents of 4 and 16 tokens, D = 64: 5 / sqrt(256) and 5 / sqrt(1024).
  segments = _row(4, 16, padding=4)[None]
  noise = np.abs(np.asarray(neftune_noise(_keys(1), segments, 64, 5.0))[0])
  assert 0.98 * 5 / 16 < noise[:4].max() <= 5 / 16
  assert 0.98 * 5 / 32 < noise[4:20].max() <= 5 / 32
  assert (noise[20:] == 0).all()
  # Uniform: the mean magnitude is half the bound.
  np.testing.assert_allclose(noise[4:20].mean(), 5 / 64, rtol=0.05)


def test_a_row_depends_on_its_own_key_only():
  segments = np.stack([_row(6, 2), _row(3, padding=5), _row(8)])
  together = np.asarray(neftune_noise(_keys(3), segments, 8, 5.0))
  for i in range(3):
    alone = neftune_noise(_keys(3)[i : i + 1], segments[i : i + 1], 8, 5.0)
    np.testing.assert_array_equal(together[i], alone[0])
  assert (together[0] != together[2]).all()


def test_longer_padding_changes_nothing():
  short = neftune_noise(_keys(1), _row(5, padding=3)[None], 8, 5.0)
  longer = neftune_noise(_keys(1), _row(5, padding=11)[None], 8, 5.0)
  np.testing.assert_array_equal(longer[:, :8], short)


@pytest.mark.parametrize('scale', (None, 4.0))
def test_model_adds_it_to_the_token_table(scale):
  # With one token per row, noise equal to the difference of two rows of the
  # table turns one token into the other, whatever the model scales them by.
  config = tiny.config(embed_scale=scale, num_layers=1)
  model, params = Transformer(config), tiny.build(num_layers=1)[1]
  table = params['embedder']['embedding']
  noise = (table[7] - table[3])[None, None]
  seen, _ = model.apply({'params': params}, jnp.array([[3]]), embed_noise=noise)
  want, _ = model.apply({'params': params}, jnp.array([[7]]))
  plain, _ = model.apply({'params': params}, jnp.array([[3]]))
  np.testing.assert_allclose(seen, want, atol=1e-5)
  assert np.abs(np.asarray(seen - plain)).max() > 0.1


@pytest.mark.parametrize('alpha', (-1.0, float('nan'), float('inf')))
def test_bad_alpha_is_refused_by_name(alpha):
  with pytest.raises(UserError, match='neftune_alpha'):
    neftune_noise(_keys(1), _row(4)[None], 8, alpha)
