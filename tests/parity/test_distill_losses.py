"""Distillation beside TRL's GKD and its chunked divergence."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.losses import distill

torch = pytest.importorskip('torch')
pytest.importorskip('trl')
SETTINGS = [(0.0, 1.0), (1.0, 0.7), (0.5, 0.9), (0.1, 1.0)]


def _mean(f, *arrays, **settings):
  loss_sum, weight_sum, _ = f(*arrays, **settings)
  return loss_sum / weight_sum


@pytest.mark.parametrize('beta,temperature', SETTINGS)
def test_generalized_jsd(beta, temperature):
  gkd = importlib.import_module('trl.experimental.gkd.gkd_trainer')
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, 3, 5, 11)).astype(np.float32) * 2
  mask = np.arange(5)[None] < np.array([5, 2, 3])[:, None]
  leaf = torch.tensor(student, requires_grad=True)
  theirs = gkd.GKDTrainer.generalized_jsd_loss(
    leaf,
    torch.tensor(teacher),
    torch.tensor(np.where(mask, 1, -100)),
    beta,
    temperature,
  )
  theirs.backward()
  value, grad = jax.value_and_grad(
    lambda x: _mean(
      distill.generalized_jsd_loss,
      x,
      jnp.asarray(teacher),
      jnp.asarray(mask),
      beta=beta,
      temperature=temperature,
    )
  )(jnp.asarray(student))
  np.testing.assert_allclose(value, theirs.detach(), rtol=1e-5)
  np.testing.assert_allclose(grad, leaf.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('beta,temperature', SETTINGS)
def test_chunked_divergence(beta, temperature):
  trainer = importlib.import_module('trl.trainer.distillation_trainer')
  rng = np.random.default_rng(1)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  arrays = draw(2, 5, 4), draw(2, 5, 6), draw(11, 4), draw(11, 6)
  mask = np.arange(5)[None] < np.array([4, 2])[:, None]
  tensors = [torch.tensor(x) for x in arrays]
  leaves = tensors[0].requires_grad_(), tensors[2].requires_grad_()
  theirs, _, _ = trainer._chunked_divergence_loss(
    *tensors, torch.tensor(mask.astype(np.int64)), beta, temperature=temperature
  )
  theirs.backward()
  _, teacher, _, teacher_table = (jnp.asarray(x) for x in arrays)
  value, grads = jax.value_and_grad(
    lambda h, w: _mean(
      distill.chunked_generalized_jsd_loss,
      h,
      w,
      teacher,
      teacher_table,
      jnp.asarray(mask),
      beta=beta,
      temperature=temperature,
      block_tokens=4,
    ),
    (0, 1),
  )(jnp.asarray(arrays[0]), jnp.asarray(arrays[2]))
  np.testing.assert_allclose(value, theirs.detach(), rtol=1e-5)
  for ours, leaf in zip(grads, leaves):
    np.testing.assert_allclose(ours, leaf.grad, rtol=1e-5, atol=1e-5)
