"""Losses from hidden states, whose logits exist for a few tokens at a time.

A [tokens, V] array of logits is the largest of a training step. Here a scan
takes one block of tokens after the other through table product, softmax and,
under differentiation, gradient (llm/losses/blocks.py).

Positions that do not count, such as those of prompts, cost next to nothing: in
each row those that count come first, and blocks behind the last of them are
left out.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from llm.backend import by_backend
from llm.losses.blocks import over_blocks
from llm.losses.tables import as_operand, block_logits, no_gradient, products

# Tokens of a block. Fewer cost more passes over the table's gradient, which is
# added up over the blocks; more cost memory, and on a CPU the cache. Measured
# on CPU for V = 8k to 150k: 256 to 1024 are within 10% of each other.
BLOCK_TOKENS = 512


def chunked_cross_entropy_loss(
  hidden: jax.Array,
  table: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  *,
  cap: float | None = None,
  block_tokens: int = BLOCK_TOKENS,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
  """`language.cross_entropy_loss` of `hidden @ table.T`, without the logits.

  Where it is differentiated, the gradient is made in the same pass as the loss
  (three products of tokens, V and D in all); the backward pass only scales it.
  That is possible because the loss is a sum whose weights are known, as in Cut
  Your Losses (2411.09009) and Liger Kernel (2410.10989). Products take operands
  in the dtype of `hidden`; they are added up, and everything between them is
  computed, in float32.

  Args:
    hidden: float[..., D].
    table: float[V, D], or a packed weight (`llm.losses.tables`), which has no
      gradient; logits are soft_cap(hidden @ table.T).
    targets: int[...], ids in [0, V).
    weights: float or bool[...], at least 0. A position of weight 0 is as if it
      were not there, whatever its hidden state is.
    cap: soft cap on the logits (Gemma 2), or None.
    block_tokens: tokens, over all devices, whose logits exist at a time.

  Returns:
    loss_sum: float32[], in nats.
    weight_sum: float32[].
    metrics: 'correct', float32[], the weight of the positions where the most
      probable token is the target.

  Raises:
    ValueError: the shapes do not agree.
  """
  _check(hidden, table, targets, block_tokens)
  if weights.shape != targets.shape:
    raise ValueError(
      f'weights has shape {weights.shape}, but targets {targets.shape}'
    )
  weights = weights.astype(jnp.float32)
  hidden = jnp.where(weights[..., None] == 0, 0, hidden)
  loss_sum, correct = _loss_sums(
    hidden, table, targets, weights, cap, block_tokens
  )
  return loss_sum, jnp.sum(weights), {'correct': correct}


def chunked_logprobs(
  hidden: jax.Array,
  table: jax.Array,
  targets: jax.Array,
  *,
  counts: jax.Array | None = None,
  cap: float | None = None,
  temperature: float = 1.0,
  block_tokens: int = BLOCK_TOKENS,
) -> jax.Array:
  """log softmax(soft_cap(hidden @ table.T) / temperature)[targets].

  Differentiable; the backward pass computes the logits again.

  Args:
    hidden: float[..., D].
    table: float[V, D], or a packed weight (`llm.losses.tables`), which has no
      gradient.
    targets: int[...], ids in [0, V).
    counts: bool[...] or numbers that are 0 or not, the positions that are
      read; the others give 0, whatever their hidden state is. None: all.
    cap: soft cap on the logits, or None.
    temperature: above 0.
    block_tokens: tokens whose logits exist at a time.

  Returns:
    float32[...], natural logarithms.

  Raises:
    ValueError: the shapes do not agree.
  """
  _check(hidden, table, targets, block_tokens)
  settings = (cap, temperature, block_tokens, False)
  return _masked_logprobs(hidden, table, targets, counts, settings)[0]


def chunked_logprobs_and_entropy(
  hidden: jax.Array,
  table: jax.Array,
  targets: jax.Array,
  *,
  counts: jax.Array | None = None,
  cap: float | None = None,
  temperature: float = 1.0,
  block_tokens: int = BLOCK_TOKENS,
) -> tuple[jax.Array, jax.Array]:
  """`chunked_logprobs`, and the entropy of the same distributions, in nats.

  Both are differentiable. Arguments and errors are those of
  `chunked_logprobs`.

  Returns:
    logprobs float32[...] and entropy float32[...].
  """
  _check(hidden, table, targets, block_tokens)
  settings = (cap, temperature, block_tokens, True)
  return _masked_logprobs(hidden, table, targets, counts, settings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _loss_sums(hidden, table, targets, weights, cap, block):
  """(loss sum, correct sum), without any gradient."""
  arrays = hidden, table, targets, weights
  return by_backend(_sums, *arrays, cap=cap, block=block)


def _sums(backend, hidden, table, targets, weights, *, cap, block):
  table = as_operand(backend, table, hidden.dtype)

  def one(sums, x):
    h, t, w = x
    nll, hits = _losses(_stats(block_logits(backend, h, table, cap), t), w)
    return (sums[0] + (nll * w).sum(), sums[1] + (hits * w).sum()), ()

  zero = jnp.zeros((), jnp.float32)
  xs = hidden, targets, weights
  sums, _ = over_blocks(one, (zero, zero), xs, weights != 0, block)
  return sums


def _loss_sums_fwd(hidden, table, targets, weights, cap, block):
  arrays = hidden, table, targets, weights
  return by_backend(_sums_and_gradients, *arrays, cap=cap, block=block)


def _sums_and_gradients(
  backend, hidden, table, targets, weights, *, cap, block
):
  operand = as_operand(backend, table, hidden.dtype)

  def one(table_grad, x):
    h, t, w = x
    logits = block_logits(backend, h, operand, cap)
    stats = _stats(logits, t)
    top, total, _, _ = stats
    grad = jnp.exp(logits - top[..., None]) * (w / total)[..., None]
    grad = grad - jnp.where(_is(t, logits), w[..., None], 0.0)
    h_grad, add = products(backend, grad, logits, h, operand, cap)
    return _added(table_grad, add), (h_grad, *_losses(stats, w))

  xs = hidden, targets, weights
  start = no_gradient(table)
  table_grad, each = over_blocks(one, start, xs, weights != 0, block)
  hidden_grad, nll, hits = each
  out = (nll * weights).sum(), (hits * weights).sum()
  hidden_grad = hidden_grad.astype(hidden.dtype)
  return out, (hidden_grad, _like(table_grad, table), nll, hits)


def _loss_sums_bwd(cap, block, residuals, cotangents):
  del cap, block
  hidden_grad, table_grad, nll, hits = residuals
  loss, correct = cotangents
  return (
    (hidden_grad * loss).astype(hidden_grad.dtype),
    jax.tree.map(lambda grad: (grad * loss).astype(grad.dtype), table_grad),
    None,
    nll * loss + hits * correct,
  )


_loss_sums.defvjp(_loss_sums_fwd, _loss_sums_bwd)


def _masked_logprobs(hidden, table, targets, counts, settings):
  if counts is None:
    counts = jnp.ones(targets.shape, bool)
  if counts.shape != targets.shape:
    raise ValueError(
      f'counts has shape {counts.shape}, but targets {targets.shape}'
    )
  counts = counts != 0
  hidden = jnp.where(counts[..., None], hidden, 0)
  return _logprobs(hidden, table, targets, counts, settings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _logprobs(hidden, table, targets, counts, settings):
  """(logprobs, entropy or None)."""
  return _logprobs_fwd(hidden, table, targets, counts, settings)[0]


def _logprobs_fwd(hidden, table, targets, counts, settings):
  out, log_total = by_backend(
    _forward, hidden, table, targets, counts, settings=settings
  )
  return out, (hidden, table, targets, counts, out[1], log_total)


def _forward(backend, hidden, table, targets, counts, *, settings):
  cap, temperature, block, with_entropy = settings
  operand = as_operand(backend, table, hidden.dtype)

  def one(carry, x):
    h, t, c = x
    logits = block_logits(backend, h, operand, cap) / temperature
    top, total, target, _ = _stats(logits, t)
    log_total = top + jnp.log(total)
    entropy = None
    if with_entropy:
      entropy = jnp.log(total) - _mean_below(logits - top[..., None], total)
      entropy = jnp.where(c, entropy, 0.0)
    return carry, (jnp.where(c, target - log_total, 0.0), entropy, log_total)

  xs = hidden, targets, counts
  _, out = over_blocks(one, (), xs, counts, block)
  logprobs, entropy, log_total = out
  return (logprobs, entropy), log_total


def _logprobs_bwd(settings, residuals, cotangents):
  hidden_grad, table_grad = by_backend(
    _backward, residuals, cotangents, settings=settings
  )
  return hidden_grad, table_grad, None, None


def _backward(backend, residuals, cotangents, *, settings):
  cap, temperature, block, with_entropy = settings
  hidden, table, targets, counts, entropy, log_total = residuals
  operand = as_operand(backend, table, hidden.dtype)
  cotangents = jax.tree.map(lambda x: jnp.where(counts, x, 0.0), cotangents)

  def one(table_grad, x):
    h, t, entropy, log_total, (by_logprob, by_entropy) = x
    capped = block_logits(backend, h, operand, cap)
    logprobs = capped / temperature - log_total[..., None]
    grad = -jnp.exp(logprobs) * by_logprob[..., None]
    grad = grad + jnp.where(_is(t, capped), by_logprob[..., None], 0.0)
    if with_entropy:
      # dH / dz_i = -p_i (log p_i + H)
      each = jnp.exp(logprobs) * (logprobs + entropy[..., None])
      grad = grad - each * by_entropy[..., None]
    h_grad, add = products(backend, grad / temperature, capped, h, operand, cap)
    return _added(table_grad, add), h_grad

  xs = hidden, targets, entropy, log_total, cotangents
  start = no_gradient(table)
  table_grad, hidden_grad = over_blocks(one, start, xs, counts, block)
  return hidden_grad.astype(hidden.dtype), _like(table_grad, table)


_logprobs.defvjp(_logprobs_fwd, _logprobs_bwd)


def _stats(logits, targets):
  """top, total = sum exp(logits - top), target's logit, whether it is argmax.

  The argmax is the first of equal logits, as in `jnp.argmax`, which is not used
  because XLA:CPU does not vectorise its reduction of (value, index) pairs.
  """
  top = logits.max(axis=-1)
  total = jnp.exp(logits - top[..., None]).sum(axis=-1)
  target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  earlier = lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
  earlier = earlier < targets[..., None]
  beaten = jnp.where(earlier, logits, -jnp.inf).max(axis=-1) >= top
  return top, total, target, (target == top) & ~beaten


def _losses(stats, weights):
  """Each position's loss and whether it is a hit; 0 where the weight is 0."""
  top, total, target, hits = stats
  counts = weights != 0
  nll = jnp.where(counts, top + jnp.log(total) - target, 0.0)
  return nll, (hits & counts).astype(jnp.float32)


def _is(targets, logits):
  """bool[..., V], True at each target."""
  ids = lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
  return ids == targets[..., None]


def _mean_below(logits, total):
  """Mean of logits under exp(logits) / total; one of -inf has no weight."""
  weighted = jnp.where(logits == -jnp.inf, 0, jnp.exp(logits) * logits)
  return weighted.sum(axis=-1) / total


def _added(table_grad, add):
  """Their sum; None, of a packed table, stays None."""
  return jax.tree.map(jnp.add, table_grad, add)


def _like(table_grad, table):
  """The table's gradient in its dtype; None stays None."""
  return jax.tree.map(lambda grad: grad.astype(table.dtype), table_grad)


def _check(hidden, table, targets, block_tokens):
  if targets.ndim < 1 or targets.shape != hidden.shape[:-1]:
    raise ValueError(
      f'targets has shape {targets.shape}, but hidden {hidden.shape} needs '
      f'{hidden.shape[:-1] or "at least one axis of tokens"}'
    )
  if len(table.shape) != 2 or table.shape[1] != hidden.shape[-1]:
    raise ValueError(
      f'table has shape {table.shape}, but hidden {hidden.shape} needs '
      f'[V, {hidden.shape[-1]}]'
    )
  if block_tokens < 1:
    raise ValueError(f'block_tokens={block_tokens}: use at least 1')
