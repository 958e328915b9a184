"""The forward pass gives the same numbers whatever path computes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models import cache as cache_lib
from llm.models.config import RopeConfig
from llm.models.transformer import Transformer, stack_layers, unstack_layers
from tests.models import tiny

TOLERANCE = 1e-5
RARE_KINDS = [
  pytest.param(kind, marks=pytest.mark.slow)
  for kind in ('all_local', 'experts')
]
EACH_KIND = ['dense', 'local_global', *RARE_KINDS]


def log_softmax(logits):
  return np.asarray(jax.nn.log_softmax(logits, axis=-1))


def assert_close(got, want, tolerance=TOLERANCE):
  np.testing.assert_allclose(
    log_softmax(got), log_softmax(want), rtol=0, atol=tolerance
  )


@functools.partial(jax.jit, static_argnames=('model', 'attend_length'))
def forward(model, params, tokens, **kwargs):
  """Compiled once per shape for all tests, which use few shapes for that."""
  return model.apply({'params': params}, tokens, **kwargs)


@pytest.mark.parametrize('kind', EACH_KIND)
@pytest.mark.parametrize('scan_layers', [False, True])
def test_cached_in_pieces_equals_uncached(kind, scan_layers):
  model, params = tiny.build(kind)
  tokens = tiny.tokens(2, 14)
  want, _ = forward(model, params, tokens)
  if scan_layers:
    params = stack_layers(params, model.config)
    model = Transformer(model.config, scan_layers=True)
  cache = cache_lib.init_cache(model.config, 2, 32, scan_layers=scan_layers)
  first, cache = forward(model, params, tokens[:, :7], cache=cache)
  second, cache = forward(
    model, params, tokens[:, 7:9], cache=cache, attend_length=8
  )
  got = [first, second]
  opened = cache_lib.open_cache(cache, 4, 12)
  for t in range(9, 12):
    logits, opened = forward(model, params, tokens[:, t : t + 1], cache=opened)
    got.append(logits)
  cache = cache_lib.close_cache(cache, opened, jnp.array([3, 3]))
  last, cache = forward(model, params, tokens[:, 12:], cache=cache)
  assert_close(jnp.concatenate([*got, last], axis=1), want)
  assert cache.length.tolist() == [14, 14]


@pytest.mark.parametrize('kind', ['dense', 'local_global', 'experts'])
def test_padding_and_neighbours_change_nothing(kind):
  model, params = tiny.build(kind)
  tokens = tiny.tokens(3, 12)
  lengths = jnp.array([12, 5, 5])
  together, _ = forward(model, params, tokens, lengths=lengths)
  for row, length in enumerate(lengths.tolist()):
    alone, _ = forward(model, params, tokens[row : row + 1, :length])
    assert_close(together[row : row + 1, :length], alone)


def test_a_window_longer_than_the_cache_is_written_like_a_dense_row():
  model, params = tiny.build('all_local', window=64)
  tokens = tiny.tokens(2, 12)
  want, _ = forward(model, params, tokens)
  cache = cache_lib.init_cache(model.config, 2, 16)
  first, cache = forward(model, params, tokens[:, :7], cache=cache)
  second, cache = forward(model, params, tokens[:, 7:], cache=cache)
  assert cache.layers[0].kv.k.shape[2] == 16
  assert_close(jnp.concatenate([first, second], axis=1), want)


def test_rows_of_different_lengths_share_a_cache():
  model, params = tiny.build('local_global')
  tokens = tiny.tokens(2, 14)
  want, _ = forward(model, params, tokens)
  cache = cache_lib.init_cache(model.config, 2, 32)
  lengths = jnp.array([8, 3])
  _, cache = forward(model, params, tokens[:, :8], cache=cache, lengths=lengths)
  taken = jnp.stack([jnp.asarray(tokens[0, 8:11]), tokens[1, 3:6]])
  got, cache = forward(model, params, taken, cache=cache)
  assert_close(got[0], want[0, 8:11])
  assert_close(got[1], want[1, 3:6])
  assert cache.length.tolist() == [11, 6]


def test_packed_segments_equal_separate_rows_and_are_isolated():
  model, params = tiny.build('local_global')
  tokens = tiny.tokens(1, 12)
  segments = jnp.array([[1] * 5 + [2] * 7])
  packed, _ = forward(model, params, tokens, segment_ids=segments)
  first, _ = forward(model, params, tokens[:, :5])
  second, _ = forward(model, params, tokens[:, 5:])
  assert_close(packed, jnp.concatenate([first, second], axis=1))
  changed = tokens.copy()
  changed[0, :5] = (changed[0, :5] + 1) % 50
  other, _ = forward(model, params, changed, segment_ids=segments)
  np.testing.assert_array_equal(other[:, 5:], packed[:, 5:])


@pytest.mark.parametrize('kind', EACH_KIND)
def test_scanned_equals_unrolled_and_conversion_is_lossless(kind):
  model, params = tiny.build(kind)
  tokens = tiny.tokens(2, 14)
  want, _ = forward(model, params, tokens)
  stacked = stack_layers(params, model.config)
  scanned = Transformer(model.config, scan_layers=True, remat='full')
  got, _ = forward(scanned, stacked, tokens)
  assert_close(got, want)
  back = unstack_layers(stacked, model.config)
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_gradients_agree_scanned_rematerialised_and_plain():
  model, params = tiny.build('local_global')
  tokens = tiny.tokens(2, 9)
  scanned = Transformer(model.config, scan_layers=True, remat='full')

  def loss(p, m):
    return jnp.square(m.apply({'params': p}, tokens)[0]).mean()

  want = jax.jit(jax.grad(loss), static_argnums=1)(params, model)
  stacked = stack_layers(params, model.config)
  got = jax.jit(jax.grad(loss), static_argnums=1)(stacked, scanned)
  got = unstack_layers(got, model.config)
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


def test_jit_equals_no_jit():
  model, params = tiny.build('local_global')
  tokens = tiny.tokens(1, 9)
  compiled, _ = forward(model, params, tokens)
  with jax.disable_jit():
    plain, _ = model.apply({'params': params}, tokens)
  assert_close(compiled, plain)


def test_long_queries_in_blocks_equal_short_ones():
  model, params = tiny.build('local_global', max_length=2048)
  tokens = tiny.tokens(1, 700)
  whole, _ = forward(model, params, tokens)  # blocks of 512 queries
  cache = cache_lib.init_cache(model.config, 1, 768)
  got = []
  for first in range(0, 700, 350):  # one block each
    piece, cache = forward(
      model, params, tokens[:, first : first + 350], cache=cache
    )
    got.append(piece)
  assert_close(jnp.concatenate(got, axis=1), whole)


@pytest.mark.parametrize('kind', ['dynamic', 'longrope'])
def test_length_dependent_rope_in_chunks(kind):
  factors = {'short_factor': (1.0,) * 4, 'long_factor': (1.5, 2.0, 3.0, 4.0)}
  rope = RopeConfig(
    kind,
    factor=2.0,
    original_max_length=8,
    **(factors if kind == 'longrope' else {}),
  )
  model, params = tiny.build(rope=rope)
  tokens = tiny.tokens(2, 12)
  want, _ = forward(model, params, tokens)
  cache = cache_lib.init_cache(model.config, 2, 32)
  total = jnp.array([12, 12])
  first, cache = forward(
    model, params, tokens[:, :5], cache=cache, rope_length=total
  )
  second, _ = forward(
    model, params, tokens[:, 5:], cache=cache, rope_length=total
  )
  assert_close(jnp.concatenate([first, second], axis=1), want)
  # A packed segment is scaled by its own length, not by its row's.
  segments = jnp.array([[1] * 6 + [2] * 6] * 2)
  packed, _ = forward(model, params, tokens, segment_ids=segments)
  alone, _ = forward(model, params, tokens[:, 6:])
  assert_close(packed[:, 6:], alone)


@pytest.mark.parametrize('kind', ['local_global', *RARE_KINDS])
def test_rows_that_share_a_prompt_equal_whole_rows(kind):
  """Log-probabilities and gradient; one prompt is longer than the window."""
  model, params = tiny.build(kind)
  lengths, share, steps = np.array([9, 4]), 3, 5
  prompts, answers = tiny.tokens(2, 12), tiny.tokens(6, steps, seed=2)
  rows = np.zeros((6, 16), np.int32)
  at = lengths.repeat(share)[:, None] + np.arange(steps)
  for i in range(6):
    rows[i, : at[i, 0]] = prompts[i // share, : at[i, 0]]
  np.put_along_axis(rows, at, answers, axis=1)
  weights = np.random.default_rng(0).normal(size=(6, steps, 50))

  def whole(params):
    logits = model.apply({'params': params}, rows)[0]
    logits = jnp.take_along_axis(logits, at[..., None], axis=1)
    return total(logits)

  def shared(params, scan_layers):
    ours = Transformer(model.config, scan_layers=scan_layers)
    if scan_layers:
      params = stack_layers(params, model.config)
    read = functools.partial(ours.apply, {'params': params})
    cache = cache_lib.init_cache(model.config, 2, 12, scan_layers=scan_layers)
    cache = read(prompts, cache=cache, lengths=lengths, attend_length=0)[1]
    cache = cache_lib.SharedCache(cache.layers, cache.length)
    logits, none = read(answers, cache=cache)
    assert none is None
    return total(logits)

  def total(logits):
    logprobs = jax.nn.log_softmax(logits)
    return (weights * logprobs).sum(), logprobs

  want_grads, want = jax.jit(jax.grad(whole, has_aux=True))(params)
  largest = max(abs(x).max() for x in jax.tree.leaves(want_grads))
  of_shared = jax.jit(jax.grad(shared, has_aux=True), static_argnums=1)
  for scan_layers in (False, True):
    grads, got = of_shared(params, scan_layers)
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)
    for one, other in zip(
      jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True
    ):
      np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * largest)


def test_segments_with_a_cache_are_refused():
  model, params = tiny.build()
  cache = cache_lib.init_cache(model.config, 1, 8)
  with pytest.raises(ValueError, match='segment_ids with a cache'):
    model.apply(
      {'params': params},
      tiny.tokens(1, 4),
      segment_ids=jnp.ones((1, 4), jnp.int32),
      cache=cache,
    )


def test_scan_of_mixed_structures_is_refused():
  config = tiny.config('experts', moe_layers=(True, False))
  with pytest.raises(ValueError, match='mixes dense and expert layers'):
    Transformer(config, scan_layers=True).init(
      jax.random.key(0), tiny.tokens(1, 2)
    )
