"""Distillation: divergences between the next tokens of teacher and student.

`beta` interpolates as in GKD (Agarwal et al., 2306.13649, equation 1), with
teacher T, student S and their mixture M = (1 - beta) S + beta T:

  beta = 0   KL(T, S), forward: the student covers what the teacher does
  beta = 1   KL(S, T), reverse: the student keeps to what the teacher does
  else       beta KL(T, M) + (1 - beta) KL(S, M)

These are three formulas, not one: the last goes to 0 as beta goes to 0 or 1.
On policy or off, the loss is the same: only who wrote the tokens differs. No
gradient flows to the teacher or through the sampling.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp

from llm.backend import recomputed
from llm.losses.blocks import split_tokens
from llm.losses.chunked import BLOCK_TOKENS
from llm.losses.pairs import Sums
from llm.losses.tables import as_operand, block_logits


def generalized_jsd_loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  weights: jax.Array,
  *,
  beta: float = 0.5,
  temperature: float = 1.0,
) -> Sums:
  """Divergence of the student's next tokens from the teacher's, in nats.

  Computed in float32; between forward and backward pass only the logits are
  kept. Logits of -inf (a token that cannot be) are fine.

  Args:
    student_logits: float[..., V].
    teacher_logits: float[..., V].
    weights: float or bool[...]; a position of weight 0 is not there.
    beta: 0 forward, 1 reverse, see the module.
    temperature: divides both logits. The loss is not multiplied by its square.

  Returns:
    loss_sum: float32[]; divided by weight_sum it is the mean over tokens.
    weight_sum: float32[].
    metrics: float32[] sums over tokens: agreement (both find the same token
      the most probable), forward_kl and reverse_kl, at the temperature.

  Raises:
    ValueError: shapes do not agree, beta outside [0, 1], temperature <= 0.
  """
  _check(beta, temperature)
  if student_logits.shape != teacher_logits.shape:
    raise ValueError(
      f'student_logits has shape {student_logits.shape}, but teacher_logits '
      f'{teacher_logits.shape}: both need the same tokens and vocabulary'
    )
  if weights.shape != student_logits.shape[:-1]:
    raise ValueError(
      f'weights has shape {weights.shape}, but student_logits '
      f'{student_logits.shape}'
    )
  weights = weights.astype(jnp.float32)
  sums = _block_sums(beta, temperature)
  loss_sum, metrics = sums(student_logits, teacher_logits, weights)
  return loss_sum, jnp.sum(weights), metrics


def chunked_generalized_jsd_loss(
  student_hidden: jax.Array,
  student_table: jax.Array,
  teacher_hidden: jax.Array,
  teacher_table: jax.Array,
  weights: jax.Array,
  *,
  beta: float = 0.5,
  temperature: float = 1.0,
  student_cap: float | None = None,
  teacher_cap: float | None = None,
  block_tokens: int = BLOCK_TOKENS,
) -> Sums:
  """`generalized_jsd_loss` of hidden @ table.T, a few tokens at a time.

  The logits of either model exist for `block_tokens` tokens only; the backward
  pass computes them again.

  Args:
    student_hidden: float[..., T, D].
    student_table: float[V, D], or a packed weight, which has no gradient.
    teacher_hidden: float[..., T, E]; the teacher may be wider.
    teacher_table: float[V, E], or a packed weight.
    weights: float or bool[..., T].
    beta, temperature: see `generalized_jsd_loss`.
    student_cap: soft cap on the student's logits, or None.
    teacher_cap: soft cap on the teacher's.
    block_tokens: tokens, over all devices, whose logits exist at a time.

  Returns and raises what `generalized_jsd_loss` does.
  """
  _check(beta, temperature)
  if student_table.shape[0] != teacher_table.shape[0]:
    raise ValueError(
      f'the student has {student_table.shape[0]} tokens, but the teacher '
      f'{teacher_table.shape[0]}: distillation by logits needs one vocabulary'
    )
  for name, hidden in (
    ('student_hidden', student_hidden),
    ('teacher_hidden', teacher_hidden),
  ):
    if hidden.shape[:-1] != weights.shape:
      raise ValueError(
        f'{name} has shape {hidden.shape}, but weights {weights.shape}'
      )
  weights = weights.astype(jnp.float32)
  here = weights[..., None] != 0
  student_hidden = jnp.where(here, student_hidden, 0)
  teacher_hidden = jnp.where(here, teacher_hidden, 0)
  loss_sum, metrics = recomputed(
    _sums_over_blocks,
    student_hidden,
    student_table,
    teacher_hidden,
    teacher_table,
    weights,
    settings=(beta, temperature, student_cap, teacher_cap, block_tokens),
  )
  return loss_sum, jnp.sum(weights), metrics


def _sums_over_blocks(
  backend,
  student_hidden,
  student_table,
  teacher_hidden,
  teacher_table,
  weights,
  *,
  settings,
):
  """(loss, metrics), of a block of tokens after the other."""
  beta, temperature, student_cap, teacher_cap, block_tokens = settings
  teacher = lax.stop_gradient((teacher_hidden, teacher_table))
  teacher_hidden, teacher_table = teacher
  sums = _block_sums(beta, temperature)

  def logits(hidden, table, cap):
    table = as_operand(backend, table, hidden.dtype)
    return block_logits(backend, hidden, table, cap)

  @jax.checkpoint
  def block(table, x):
    student, teacher, weights = x
    return sums(
      logits(student, table, student_cap),
      logits(teacher, teacher_table, teacher_cap),
      weights,
    )

  def add(total, x):
    return jax.tree.map(jnp.add, total, block(student_table, x)), None

  xs = student_hidden, teacher_hidden, weights
  xs = split_tokens(xs, weights.shape, block_tokens)
  first = jax.tree.map(lambda x: x[0], xs)
  shapes = jax.eval_shape(block, student_table, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return lax.scan(add, zeros, xs)[0]


def _block_sums(beta, temperature):
  """Returns f(student logits, teacher logits, weights) -> (loss, metrics)."""

  @jax.checkpoint
  def sums(student, teacher, weights):
    keep = weights != 0
    student = jnp.where(keep[..., None], student.astype(jnp.float32), 0.0)
    teacher = jnp.where(keep[..., None], teacher.astype(jnp.float32), 0.0)
    log_s = jax.nn.log_softmax(student / temperature)
    log_t = jax.nn.log_softmax(lax.stop_gradient(teacher) / temperature)
    forward, reverse = _kl(log_t, log_s), _kl(log_s, log_t)
    losses = {0: forward, 1: reverse}.get(beta)
    if losses is None:
      log_m = _log_mixture(log_s, log_t, beta)
      losses = beta * _kl(log_t, log_m) + (1.0 - beta) * _kl(log_s, log_m)
    same = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
    metrics = {
      'agreement': same,
      'forward_kl': forward,
      'reverse_kl': reverse,
    }
    metrics = {
      name: jnp.sum(weights * lax.stop_gradient(value))
      for name, value in metrics.items()
    }
    return jnp.sum(weights * losses), metrics

  return sums


def _log_mixture(log_s, log_t, beta):
  """log((1 - beta) S + beta T); 0 where both probabilities are 0."""
  impossible = (log_s == -jnp.inf) & (log_t == -jnp.inf)
  log_s, log_t = (jnp.where(impossible, 0.0, x) for x in (log_s, log_t))
  return jnp.logaddexp(log_s + math.log1p(-beta), log_t + math.log(beta))


def _kl(log_p, log_q):
  """Σ p (log p - log q) over the last axis; a token of p = 0 adds nothing."""
  possible = log_p > -jnp.inf
  log_p = jnp.where(possible, log_p, 0.0)
  terms = jnp.exp(log_p) * (log_p - jnp.where(possible, log_q, 0.0))
  return jnp.sum(jnp.where(possible, terms, 0.0), axis=-1)


def _check(beta, temperature):
  if not 0.0 <= beta <= 1.0:
    raise ValueError(
      f'beta={beta} must be from 0 (forward KL) to 1 (reverse KL)'
    )
  if not temperature > 0:
    raise ValueError(f'temperature={temperature} must be above 0')
