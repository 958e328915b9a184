"""Processors: hand-computed goldens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.decode import logits as processors

INF = np.inf


@functools.cache
def jitted(name):
  return jax.jit(getattr(processors, name))


def padded(tokens, size=16):
  """Tokens, right padded with a real id, and their number."""
  return jnp.array(tokens + [3] * (size - len(tokens))), jnp.int32(len(tokens))


def test_repetition_penalty_divides_positive_and_multiplies_negative():
  out = processors.repetition_penalty(
    jnp.array([-1.0, 2.0, 3.0, -INF]), 2.0, jnp.array([True, True, False, True])
  )
  np.testing.assert_array_equal(out, [-2.0, 1.0, 3.0, -INF])


def test_presence_counts_once_and_frequency_each_time():
  logits = jnp.array([1.0, 1.0, 1.0])
  counts = jnp.array([0, 1, 3])
  np.testing.assert_allclose(
    processors.presence_penalty(logits, 0.5, counts), [1.0, 0.5, 0.5]
  )
  np.testing.assert_allclose(
    processors.frequency_penalty(logits, 0.5, counts), [1.0, 0.5, -0.5]
  )
  np.testing.assert_allclose(
    processors.frequency_penalty(logits, -0.5, counts), [1.0, 1.5, 2.5]
  )


@pytest.mark.parametrize(
  ('tokens', 'size', 'banned'),
  [
    ([1, 1, 2, 1], 2, [1, 2]),
    ([0, 1, 0, 1], 2, [0]),
    ([1, 1, 2, 1], 3, []),
    ([0, 1, 0, 1], 3, [0]),
    ([1, 2, 5, 7, 8, 5, 1, 2], 3, [5]),
    ([1, 2], 3, []),
    ([2, 4], 1, [2, 4]),
    ([4, 4, 4, 4], 3, [4]),
  ],
)
def test_no_repeat_ngram(tokens, size, banned):
  out = jitted('no_repeat_ngram')(
    jnp.zeros(9), jnp.int32(size), *padded(tokens)
  )
  assert np.flatnonzero(np.isinf(np.asarray(out))).tolist() == banned


def test_min_new_tokens_forbids_the_stops_until_then():
  stops = jnp.array([0, 3, -1, -1])
  early = jitted('min_new_tokens')(jnp.ones(5), 3, 2, stops)
  late = jitted('min_new_tokens')(jnp.ones(5), 3, 3, stops)
  np.testing.assert_array_equal(early, [-INF, 1, 1, -INF, 1])
  np.testing.assert_array_equal(late, np.ones(5))


def test_permitted_wins_where_nothing_is_left():
  values = jnp.array([-INF, 0.0, 4.0])
  np.testing.assert_array_equal(
    processors.permitted(jnp.full(3, -INF), values), [-INF, 0.0, 0.0]
  )
  logits = jnp.array([-INF, -INF, 0.5])
  np.testing.assert_array_equal(processors.permitted(logits, values), logits)


@pytest.mark.parametrize(
  ('tokens', 'limit', 'expected'),
  [
    ([4, 5, 6, 4, 5], 9, [0, 0, 2, 0, 0]),
    # llama.cpp's worked example: a b c c b c y a b c.
    ([1, 2, 3, 3, 2, 3, 8, 1, 2, 3], 9, [0, 0, 0, 3, 1, 0, 2, 0, 0, 0]),
    ([1, 2, 3, 3, 2, 3, 8, 1, 2, 3], 2, [0, 0, 0, 2, 1, 0, 2, 0, 0, 0]),
    ([7, 7, 7, 7], 9, [0, 1, 2, 3]),
    ([7, 7, 7, 7], 0, [0, 0, 0, 0]),
    ([7], 9, [0]),
  ],
)
def test_repeated_suffix(tokens, limit, expected):
  out = jitted('repeated_suffix')(*padded(tokens), jnp.int32(limit))
  assert np.asarray(out)[: len(tokens)].tolist() == expected
  assert not np.asarray(out)[len(tokens) :].any()


def dry(tokens, multiplier=1.0, base=2.0, allowed=2, breakers=(), vocab=10):
  breaks = np.zeros(vocab, bool)
  breaks[list(breakers)] = True
  out = jitted('dry')(
    jnp.zeros(vocab),
    jnp.float32(multiplier),
    jnp.float32(base),
    jnp.int32(allowed),
    jnp.asarray(breaks),
    *padded(tokens, 32),
  )
  return {i: -float(x) for i, x in enumerate(np.asarray(out)) if x}


def test_dry_grows_with_the_repetition():
  # 3 tokens came before 9; 2^(3 - 2).
  assert dry([1, 2, 3, 9, 1, 2, 3]) == {9: 2.0}
  # llama.cpp's example: c after 3, b after 1 (too short), y after 2.
  assert dry([1, 2, 3, 3, 2, 3, 8, 1, 2, 3]) == {3: 2.0, 8: 1.0}
  # The longest of several places counts: 7 after [5, 6] and after [4, 5, 6].
  assert dry([5, 6, 7, 9, 4, 5, 6, 7, 8, 4, 5, 6]) == {7: 2.0}
  # Below the allowed length and in a context without repeats: nothing.
  assert dry([1, 2, 9, 2], allowed=2) == {}
  assert dry([1, 2, 3, 4]) == {}


def test_dry_stops_at_breakers():
  tokens = [1, 2, 3, 9, 1, 2, 3]
  # Nothing matches across 1: 2 of the 3 tokens are left.
  assert dry(tokens, breakers=[1]) == {9: 1.0}
  assert dry(tokens, breakers=[2]) == {}
  # A breaker itself goes free.
  assert dry(tokens, breakers=[9]) == {}


def test_dry_does_not_overflow():
  # llama.cpp bounds the exponent: log(float max) / log(8) = 42.67.
  out = dry([7] * 32, base=8.0, allowed=1, multiplier=0.5)
  assert out == {7: pytest.approx(0.5 * 8.0**30)}
  out = dry([7] * 32, base=1e5, allowed=1)
  assert out == {7: pytest.approx(1e35, rel=1e-4)}
