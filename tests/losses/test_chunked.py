"""Losses in blocks are the plain ones: values, gradients, and less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.losses import chunked, common, language


def _case(shape=(3, 11), dim=8, vocab=37, dtype=jnp.float32, scale=1.0):
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(scale * rng.normal(size=(*shape, dim)), dtype)
  table = jnp.asarray(rng.normal(size=(vocab, dim)), dtype)
  targets = jnp.asarray(rng.integers(0, vocab, shape))
  weights = rng.uniform(0.5, 2.0, shape) * (rng.random(shape) < 0.8)
  return hidden, table, targets, jnp.asarray(weights, jnp.float32)


def _logits(hidden, table, cap):
  hidden, table = hidden.astype(jnp.float32), table.astype(jnp.float32)
  logits = jnp.einsum('...d,vd->...v', hidden, table)
  return logits if cap is None else cap * jnp.tanh(logits / cap)


def _close(got, want, tol=1e-6):
  """Leaf by leaf, relative to the largest entry of each."""
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    np.testing.assert_allclose(a, b, rtol=0, atol=tol * np.abs(b).max())


@pytest.mark.parametrize(
  'shape, block, cap',
  [
    ((3, 11), 12, None),  # blocks of 4, the last one padded
    ((3, 11), 1, 3.0),  # the least there is: a column of three rows
    ((3, 11), 512, 3.0),  # one block
    ((13,), 5, None),
    ((2, 2, 5), 8, 3.0),
  ],
)
def test_equals_the_plain_loss(shape, block, cap):
  hidden, table, targets, weights = _case(shape)

  def plain(hidden, table, weights):
    logits = _logits(hidden, table, cap)
    out = language.cross_entropy_loss(logits, targets, weights)
    return out[0] * 0.5 + out[1] * 3.0, out

  def ours(hidden, table, weights):
    out = chunked.chunked_cross_entropy_loss(
      hidden, table, targets, weights, cap=cap, block_tokens=block
    )
    return out[0] * 0.5 + out[1] * 3.0, out

  args = hidden, table, weights
  grad = lambda f: jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True)
  want = jax.jit(grad(plain))(*args)
  _close(jax.jit(grad(ours))(*args), want)
  _close(jax.jit(ours)(*args), want[0])  # where nobody differentiates


def test_reduced_precision_adds_up_in_float32():
  # The plain loss on the same bfloat16 numbers, computed in float32.
  hidden, table, targets, weights = _case((2, 300), 16, dtype=jnp.bfloat16)

  def plain(hidden, table):
    logits = _logits(hidden, table, None)
    return language.cross_entropy_loss(logits, targets, weights)[0]

  def ours(hidden, table):
    out = chunked.chunked_cross_entropy_loss(
      hidden, table, targets, weights, block_tokens=64
    )
    return out[0]

  args = hidden.astype(jnp.float32), table.astype(jnp.float32)
  grad = lambda f: jax.jit(jax.value_and_grad(f, argnums=(0, 1)))
  want, want_grads = grad(plain)(*args)
  got, grads = grad(ours)(hidden, table)
  _close(got, want)
  assert [g.dtype for g in grads] == [jnp.bfloat16] * 2
  _close(grads, want_grads, 2**-8)
  # A float32 table keeps a float32 gradient.
  grads = jax.jit(jax.grad(ours, argnums=1))(hidden, args[1])
  assert grads.dtype == jnp.float32
  _close(grads, want_grads[1], 1e-2)


def test_ties_go_to_the_first_token():
  hidden, table = jnp.ones((1, 3, 2)), jnp.ones((5, 2)).at[0].set(0.0)
  _, _, metrics = chunked.chunked_cross_entropy_loss(
    hidden, table, jnp.array([[1, 2, 0]]), jnp.array([[1.0, 2.0, 4.0]])
  )
  assert float(metrics['correct']) == 1.0


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_weight_zero_drops_a_broken_position(bad):
  hidden, table, targets, weights = _case()
  weights = weights.at[1, 3].set(0.0)

  def loss(hidden, table):
    return chunked.chunked_cross_entropy_loss(
      hidden, table, targets, weights, block_tokens=9
    )[0]

  grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  want = grad(hidden.at[1, 3].set(0.0), table)
  got = grad(hidden.at[1, 3].set(bad), table)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_array_equal(a, b)
  assert not np.any(np.asarray(got[1][0][1, 3]))


def test_no_weight_no_loss_no_gradient():
  hidden, table, targets, weights = _case()

  def loss(hidden):
    return chunked.chunked_cross_entropy_loss(
      hidden, table, targets, jnp.zeros_like(weights)
    )[0]

  value, grad = jax.jit(jax.value_and_grad(loss))(hidden)
  assert float(value) == 0.0
  assert not np.any(np.asarray(grad))


@pytest.mark.parametrize('cap, temperature', [(None, 1.0), (3.0, 0.7)])
def test_logprobs_and_entropy_with_gradients(cap, temperature):
  hidden, table, targets, _ = _case((2, 7))
  by = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2, 7)), jnp.float32)

  def plain(hidden, table):
    logits = _logits(hidden, table, cap) / temperature
    p = jax.nn.softmax(logits)
    entropy = -(p * jnp.log(p)).sum(axis=-1)
    return common.token_logprobs(logits, targets), entropy

  def ours(hidden, table):
    return chunked.chunked_logprobs_and_entropy(
      hidden, table, targets, cap=cap, temperature=temperature, block_tokens=6
    )

  def only(hidden, table):
    out = chunked.chunked_logprobs(
      hidden, table, targets, cap=cap, temperature=temperature, block_tokens=6
    )
    return out, jnp.zeros_like(out)

  def total(f, by):
    def run(*args):
      out = f(*args)
      return (out[0] * by[0]).sum() + (out[1] * by[1]).sum(), out

    return jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))

  want = total(plain, by)(hidden, table)
  _close(total(ours, by)(hidden, table), want, 2e-6)
  _close(jax.jit(only)(hidden, table)[0], want[0][1][0])
  want = total(plain, by.at[1].set(0.0))(hidden, table)
  _close(total(only, by)(hidden, table)[1], want[1], 2e-6)


@pytest.mark.parametrize('block', [3, 6, 512])
def test_positions_that_do_not_count_are_as_if_they_were_not_there(block):
  hidden, table, targets, _ = _case((3, 11))
  counts = jnp.asarray(np.random.default_rng(2).random((3, 11)) < 0.4)
  by = jnp.asarray(np.random.default_rng(1).normal(size=(3, 11)), jnp.float32)

  def plain(hidden, table):
    logits = _logits(hidden, table, None)
    out = jnp.where(counts, common.token_logprobs(logits, targets), 0.0)
    return (out * by).sum(), out

  def ours(hidden, table):
    out = chunked.chunked_logprobs(
      hidden, table, targets, counts=counts, block_tokens=block
    )
    return (out * by).sum(), out

  grads = [
    jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))
    for f in (plain, ours)
  ]
  want = grads[0](hidden, table)
  _close(grads[1](hidden, table), want, 2e-6)
  broken = jnp.where(counts[..., None], hidden, jnp.nan)
  _close(grads[1](broken, table), want, 2e-6)
  with pytest.raises(ValueError, match='counts has shape'):
    chunked.chunked_logprobs(hidden, table, targets, counts=counts[:, 1:])


def test_blocks_without_a_position_that_counts_are_left_out(monkeypatch):
  hidden, table, targets, _ = _case((2, 12))
  made, logits = [], chunked.block_logits

  def counted(*args):
    jax.debug.callback(lambda: made.append(1))
    return logits(*args)

  monkeypatch.setattr(chunked, 'block_logits', counted)
  # Prompts of 8 and 5 tokens: 4 and 7 positions count, in blocks of 2.
  counts = jnp.asarray(np.arange(12) >= np.array([[8], [5]]))
  chunked.chunked_logprobs(
    hidden, table, targets, counts=counts, block_tokens=4
  )
  jax.effects_barrier()
  assert len(made) == 4


def test_the_entropy_of_certainty_is_zero():
  hidden, table = jnp.full((1, 2), 1e3), jnp.eye(2).at[1].set(-1.0)
  logprobs, entropy = chunked.chunked_logprobs_and_entropy(
    hidden, table, jnp.array([0])
  )
  assert float(logprobs[0]) == 0.0
  assert float(entropy[0]) == 0.0


def _temporary_bytes(loss, *args):
  grad = jax.jit(jax.grad(loss, argnums=(0, 1)))
  return grad.lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_less_than_a_quarter_of_the_plain_loss():
  shape, dim, vocab = (8, 1024), 64, 150_000
  args = (
    jax.ShapeDtypeStruct((*shape, dim), jnp.float32),
    jax.ShapeDtypeStruct((vocab, dim), jnp.float32),
    jax.ShapeDtypeStruct(shape, jnp.int32),
    jax.ShapeDtypeStruct(shape, jnp.float32),
  )

  def plain(hidden, table, targets, weights):
    logits = _logits(hidden, table, None)
    return language.cross_entropy_loss(logits, targets, weights)[0]

  def ours(*args):
    return chunked.chunked_cross_entropy_loss(*args)[0]

  def logprobs(hidden, table, targets, weights):
    values = chunked.chunked_logprobs(hidden, table, targets)
    return (values * weights).sum()

  limit = _temporary_bytes(plain, *args) / 4
  assert _temporary_bytes(ours, *args) < limit
  assert _temporary_bytes(logprobs, *args) < limit


def test_a_frozen_table_costs_no_gradient():
  shape, dim, vocab = (1, 64), 512, 4096
  args = (
    jax.ShapeDtypeStruct((*shape, dim), jnp.float32),
    jax.ShapeDtypeStruct((vocab, dim), jnp.float32),
    jax.ShapeDtypeStruct(shape, jnp.int32),
    jax.ShapeDtypeStruct(shape, jnp.float32),
  )

  def loss(*args):
    return chunked.chunked_cross_entropy_loss(*args, block_tokens=16)[0]

  grad = jax.jit(jax.grad(loss)).lower(*args).compile()
  temporary = grad.memory_analysis().temp_size_in_bytes
  assert temporary < vocab * dim * 4 / 4


def test_mismatched_shapes_are_named():
  hidden, table, targets, weights = _case()
  loss = chunked.chunked_cross_entropy_loss
  with pytest.raises(ValueError, match=r'weights has shape \(3, 10\)'):
    loss(hidden, table, targets, weights[:, :10])
  with pytest.raises(ValueError, match=r'targets has shape \(3, 10\)'):
    loss(hidden, table, targets[:, :10], weights)
  with pytest.raises(ValueError, match=r'needs \[V, 8\]'):
    loss(hidden, table.T, targets, weights)
  with pytest.raises(ValueError, match='block_tokens=0'):
    loss(hidden, table, targets, weights, block_tokens=0)
