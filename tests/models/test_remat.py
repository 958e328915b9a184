"""Rematerialisation: less is kept for the backward pass, which stays equal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.errors import UserError
from llm.models.config import REMAT
from llm.models.transformer import Transformer, stack_layers
from tests.models import tiny


def _setup(kind, remat, scan, length):
  model, params = tiny.build(kind)
  if scan:
    params = stack_layers(params, model.config)
  model = Transformer(model.config, scan_layers=scan, remat=remat)
  tokens = tiny.tokens(2, length)

  def loss(p):
    return jnp.square(model.apply({'params': p}, tokens)[0]).mean()

  return loss, params


@functools.cache
def _gradient(remat, scan):
  loss, params = _setup('dense', remat, scan, 12)
  return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize('remat', ('dots', 'full'))
@pytest.mark.parametrize('scan', (False, True))
def test_gradient_is_the_same(remat, scan):
  want, got = _gradient('none', scan), _gradient(remat, scan)
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    error = np.linalg.norm(g - w) / np.linalg.norm(w)
    assert error < 2e-6, error


@pytest.mark.parametrize(
  ('kind', 'scan'), (('dense', False), ('dense', True), ('experts', False))
)
def test_each_policy_keeps_less(kind, scan):
  kept = {}
  for name in REMAT:
    loss, params = _setup(kind, name, scan, 64)
    saved = jax.eval_shape(lambda p, f=loss: jax.vjp(f, p)[1], params)
    kept[name] = sum(x.size for x in jax.tree.leaves(saved))
  assert kept['full'] < 0.7 * kept['dots'], kept
  assert kept['dots'] < 0.7 * kept['none'], kept


def test_compiled_program_needs_less_memory():
  # Scanned: XLA:CPU starts the recomputation of unrolled layers early, as it
  # schedules for speed, and so saves less.
  memory = {}
  for name in REMAT:
    loss, params = _setup('dense', name, True, 128)
    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    memory[name] = compiled.memory_analysis().temp_size_in_bytes
  assert memory['full'] < memory['dots'] < 0.7 * memory['none'], memory


@pytest.mark.parametrize('scan', (False, True))
@pytest.mark.parametrize('remat', ('some', True))
def test_unknown_policy_is_refused(scan, remat):
  loss, params = _setup('dense', remat, scan, 4)
  with pytest.raises(UserError, match=f'remat={remat!r}: use one of none, dot'):
    loss(params)
