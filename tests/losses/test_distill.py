"""Distillation: divergences by hand, their limits and the chunked form."""

import math

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from llm.losses import distill

generalized_jsd_loss = jax.jit(
  distill.generalized_jsd_loss, static_argnames=('beta', 'temperature')
)
BETAS = (0.0, 0.3, 1.0)


def _case(seed=0, shape=(2, 3), vocab=7):
  rng = np.random.default_rng(seed)
  student, teacher = (
    jnp.asarray(rng.normal(size=(*shape, vocab)), jnp.float32) for _ in range(2)
  )
  return student, teacher, jnp.asarray(rng.integers(0, 3, shape))


def test_golden():
  # Student 1/2, 1/2; teacher 1/4, 3/4.
  student, teacher = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.25, 0.75]]))
  kl = lambda p, q: sum(a * math.log(a / b) for a, b in zip(p, q))
  s, t = (0.5, 0.5), (0.25, 0.75)
  m = tuple(0.7 * a + 0.3 * b for a, b in zip(s, t))
  expected = {
    0.0: kl(t, s),
    1.0: kl(s, t),
    0.3: 0.3 * kl(t, m) + 0.7 * kl(s, m),
  }
  for beta, value in expected.items():
    loss, weight, metrics = generalized_jsd_loss(
      student, teacher, jnp.array([2]), beta=beta
    )
    np.testing.assert_allclose(loss, 2 * value, rtol=1e-5)
    assert float(weight) == 2.0
    np.testing.assert_allclose(metrics['forward_kl'], 2 * kl(t, s), rtol=1e-5)
    np.testing.assert_allclose(metrics['reverse_kl'], 2 * kl(s, t), rtol=1e-5)
    assert float(metrics['agreement']) == 0.0  # the student's tie is token 0
  cold = generalized_jsd_loss(
    student, teacher, jnp.array([1]), beta=0.0, temperature=0.5
  )[0]
  np.testing.assert_allclose(cold, kl((0.1, 0.9), s), rtol=1e-5)


@pytest.mark.parametrize('beta', BETAS)
def test_gradient_is_zero_at_the_teacher_and_descends(beta):
  student, teacher, weights = _case()

  def loss(s, t):
    return generalized_jsd_loss(s, t, weights, beta=beta)[0]

  value, grad = jax.value_and_grad(loss)(teacher, teacher)
  np.testing.assert_allclose(value, 0.0, atol=1e-5)
  np.testing.assert_allclose(grad, np.zeros_like(grad), atol=1e-6)
  grad, to_teacher = jax.grad(loss, (0, 1))(student, teacher)
  assert not np.any(np.asarray(to_teacher))
  assert float(loss(student - 0.1 * grad, teacher)) < float(
    loss(student, teacher)
  )
  check_grads(
    lambda s: loss(s, teacher), (student,), 1, ['rev'], atol=2e-2, rtol=2e-2
  )


@pytest.mark.parametrize('beta', BETAS)
def test_dropped_positions_and_impossible_tokens(beta):
  student, teacher, _ = _case()
  weights = jnp.array([[1, 0, 1], [1, 1, 0]])
  broken = student.at[0, 1].set(jnp.nan), teacher.at[1, 2].set(-jnp.inf)

  def loss(s, t, w):
    return generalized_jsd_loss(s, t, w, beta=beta)[0]

  plain, grad = jax.value_and_grad(loss)(student, teacher, weights)
  value, dropped = jax.value_and_grad(loss)(*broken, weights)
  np.testing.assert_allclose(value, plain, rtol=1e-6)
  np.testing.assert_allclose(dropped, grad, rtol=1e-6)
  rows = [loss(student[i], teacher[i], weights[i]) for i in range(2)]
  np.testing.assert_allclose(sum(rows), plain, rtol=1e-6)
  # A token that neither can say is as if it were not in the vocabulary.
  without = tuple(x.at[..., 3].set(-jnp.inf) for x in (student, teacher))
  less = tuple(jnp.delete(x, 3, axis=-1) for x in (student, teacher))
  value, masked = jax.value_and_grad(loss)(*without, weights)
  expected, grad = jax.value_and_grad(loss)(*less, weights)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(
    jnp.delete(masked, 3, axis=-1), grad, rtol=1e-4, atol=1e-6
  )


def test_chunked_is_the_plain_loss():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  student, table = draw(2, 5, 4), draw(9, 4)
  teacher, teacher_table = draw(2, 5, 6), draw(9, 6)
  weights = jnp.asarray(rng.integers(0, 2, (2, 5)))
  settings = dict(beta=0.3, temperature=0.9)

  def plain(h, w):
    logits = 2.0 * jnp.tanh(jnp.einsum('btd,vd->btv', h, w) / 2.0)
    other = jnp.einsum('btd,vd->btv', teacher, teacher_table)
    return generalized_jsd_loss(logits, other, weights, **settings)

  def chunked(h, w):
    return distill.chunked_generalized_jsd_loss(
      h,
      w,
      teacher,
      teacher_table,
      weights,
      student_cap=2.0,
      block_tokens=4,
      **settings,
    )

  with_aux = lambda f: jax.jit(
    jax.value_and_grad(
      lambda *x: (lambda y: (y[0], y[1:]))(f(*x)), (0, 1), has_aux=True
    )
  )
  for a, b in zip(
    jax.tree.leaves(with_aux(plain)(student, table)),
    jax.tree.leaves(with_aux(chunked)(student, table)),
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_wrong_arguments_are_named():
  student, teacher, weights = _case()
  with pytest.raises(ValueError, match='beta=2'):
    generalized_jsd_loss(student, teacher, weights, beta=2)
  with pytest.raises(ValueError, match='temperature=0'):
    generalized_jsd_loss(student, teacher, weights, temperature=0)
  with pytest.raises(ValueError, match='same tokens and vocabulary'):
    generalized_jsd_loss(student[..., :6], teacher, weights)
  with pytest.raises(ValueError, match='one vocabulary'):
    distill.chunked_generalized_jsd_loss(
      student, jnp.ones((9, 7)), teacher, jnp.ones((8, 7)), weights
    )
