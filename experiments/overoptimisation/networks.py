"""Gated recurrent networks that read or write strings of any length.

The policy is `exact_frontier.language`'s, token by token: a network has the
same parameters and at LENGTH tokens the same log-probabilities. The proxy is a
narrower one whose head is a score.
"""

import jax
from jax import lax
import jax.numpy as jnp

from experiments.exact_frontier.language import VOCAB, Params

_UNROLL = 4  # tokens; a loop's turn costs more than the small products in it


def init_proxy(rng: jax.Array, width: int) -> Params:
  """A network of random weights whose score is 0 for every string."""
  keys = jax.random.split(rng, 3)
  normal = jax.random.normal
  return {
    'start': normal(keys[0], (width,)),
    'token': normal(keys[1], (VOCAB, 3 * width)),
    'state': normal(keys[2], (width, 3 * width)) / width**0.5,
    'bias': jnp.zeros(3 * width),
    'score': jnp.zeros(width),
  }


def scores(params: Params, strings: jax.Array) -> jax.Array:
  """float32[B], the score of a proxy on int[B, T]: a sum over its states."""

  def read(carry, token):
    state, total = carry
    state = _advance(params, state, token)
    return (state, total + state @ params['score']), None

  start = (_start(params, len(strings)), jnp.zeros(len(strings)))
  (_, total), _ = lax.scan(read, start, strings.T, unroll=_UNROLL)
  return total


def sample(
  params: Params, rng: jax.Array, count: int, length: int
) -> tuple[jax.Array, jax.Array]:
  """Draws strings.

  Returns:
    int32[count, length], and float32[count, length, VOCAB], the
    log-probabilities of all tokens at each place.
  """

  def write(state, key):
    logprobs = _logprobs(params, state)
    token = jax.random.categorical(key, logprobs).astype(jnp.int32)
    return _advance(params, state, token), (token, logprobs)

  keys = jax.random.split(rng, length)
  start = _start(params, count)
  _, (tokens, logprobs) = lax.scan(write, start, keys, unroll=_UNROLL)
  return tokens.T, jnp.swapaxes(logprobs, 0, 1)


def token_logprobs(params: Params, strings: jax.Array) -> jax.Array:
  """float32[B, T, VOCAB], log-probabilities at each place of int[B, T]."""

  def read(state, token):
    return _advance(params, state, token), _logprobs(params, state)

  start = _start(params, len(strings))
  _, logprobs = lax.scan(read, start, strings.T, unroll=_UNROLL)
  return jnp.swapaxes(logprobs, 0, 1)


def taken(logprobs: jax.Array, strings: jax.Array) -> jax.Array:
  """float32[B, T], of float32[B, T, VOCAB] those of the strings' tokens."""
  return jnp.sum(logprobs * jax.nn.one_hot(strings, VOCAB), axis=-1)


def _start(params, count):
  state = jnp.tanh(params['start'])
  return jnp.broadcast_to(state, (count, *state.shape))


def _logprobs(params, state):
  return jax.nn.log_softmax(state @ params['head'] + params['head_bias'])


def _advance(params, state, token):
  """float32[B, W], int[B] -> float32[B, W]: the state after one token."""
  width = state.shape[-1]
  old = state @ params['state'] + params['bias']
  # A product instead of a look-up: its gradient is one too, not a scatter.
  new = jax.nn.one_hot(token, VOCAB) @ params['token']
  gates = jax.nn.sigmoid((old + new)[:, : 2 * width])
  reset, keep = jnp.split(gates, 2, axis=-1)
  fresh = jnp.tanh(new[:, 2 * width :] + reset * old[:, 2 * width :])
  return (1.0 - keep) * fresh + keep * state
