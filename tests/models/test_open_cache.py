"""An open cache takes any number of tokens, and keeps as many as it is told."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models import cache as cache_lib
from llm.models.transformer import Transformer, stack_layers
from tests.models import tiny

CALLS, FOLLOW, LENGTH = (1, 2, 3), 2, 24


@functools.partial(jax.jit, static_argnames=('model',))
def read(model, params, prompts, lengths):
  cache = cache_lib.init_cache(
    model.config, len(lengths), LENGTH, scan_layers=model.scan_layers
  )
  return model.apply(
    {'params': params}, prompts, cache=cache, lengths=lengths, attend_length=0
  )[1]


@functools.partial(jax.jit, static_argnames=('model',))
def feed(model, params, cache, shared, tokens, taken, follow):
  """Logits of a chunk in calls of 1, 2 and 3, and of what follows `taken`.

  These once from the cache at rest, where nothing is shared, and once from a
  cache that is open again.
  """
  call = functools.partial(model.apply, {'params': params})
  opened = cache_lib.open_cache(cache, sum(CALLS), 14, shared)
  chunk, first = [], 0
  for steps in CALLS:
    logits, opened = call(tokens[:, first : first + steps], cache=opened)
    chunk.append(logits)
    first += steps
  cache = cache_lib.close_cache(cache, opened, taken)
  again = cache_lib.open_cache(cache, FOLLOW, None, shared)
  after = [call(follow, cache=again)[0]]
  if shared is None:
    after.append(call(follow, cache=cache)[0])
  return jnp.concatenate(chunk, axis=1), after, cache.length


@functools.partial(jax.jit, static_argnames=('model',))
def forward(model, params, tokens):
  logits = model.apply({'params': params}, tokens)[0]
  return jax.nn.log_softmax(logits)


def plain(model, params, before, tokens):
  """Log-probabilities of `tokens[i]` after `before[i]` by one forward pass."""
  rows = np.zeros((len(before), LENGTH), np.int32)
  for i, (head, tail) in enumerate(zip(before, tokens, strict=True)):
    rows[i, : len(head) + len(tail)] = [*head, *tail]
  logprobs = forward(model, params, rows)
  return np.stack(
    [x[len(b) : len(b) + tokens.shape[1]] for b, x in zip(before, logprobs)]
  )


# Windows are 4 and 5: rings go round in the prompt, in the chunk and after it.
@pytest.mark.parametrize(
  ('kind', 'scan_layers', 'share'),
  [
    ('dense', True, True),
    ('all_local', False, True),
    ('all_local', True, False),
    ('local_global', False, False),
    ('local_global', True, False),
  ],
)
def test_rows_are_rolled_back_by_any_number_of_tokens(kind, scan_layers, share):
  model, params = tiny.build(kind)
  ours, own = model, params
  if scan_layers:
    ours = Transformer(model.config, scan_layers=True)
    own = stack_layers(params, model.config)
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.integers(0, 50, shape).astype(np.int32)
  lengths = np.array([9, 2, 13, 6], np.int32)
  shared = None
  if share:  # by two rows each
    lengths = np.array([9, 3], np.int32)
    prompts = draw(2, 16)
    shared = read(ours, own, prompts, lengths)
    cache = jax.tree.map(jnp.zeros_like, shared).take_rows(np.zeros(4, int))
    prompts, lengths = prompts.repeat(2, axis=0), lengths.repeat(2)
  else:
    prompts = draw(4, 16)
    cache = read(ours, own, prompts, lengths)
  before = [p[:n].tolist() for p, n in zip(prompts, lengths, strict=True)]
  tokens, follow = draw(4, sum(CALLS)), draw(4, FOLLOW)
  want = plain(model, params, before, tokens)
  none, every = np.zeros(4, np.int32), np.full(4, sum(CALLS), np.int32)
  for taken in (none, every, rng.integers(0, 7, 4), rng.integers(0, 7, 4)):
    chunk, after, length = feed(ours, own, cache, shared, tokens, taken, follow)
    chunk = jax.nn.log_softmax(chunk)
    np.testing.assert_allclose(chunk, want, rtol=0, atol=1e-5)
    held = [[*b, *t[:n]] for b, t, n in zip(before, tokens, taken, strict=True)]
    kept = plain(model, params, held, follow)
    for logits in after:
      got = jax.nn.log_softmax(logits)
      np.testing.assert_allclose(got, kept, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(length, cache.length + taken)
