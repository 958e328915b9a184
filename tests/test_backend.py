"""What is chosen by platform is chosen when a program is lowered."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from llm.backend import CPU, GPU, OTHER, TPU, by_backend, recomputed

NAMES = {CPU: 1.0, GPU: 2.0, TPU: 3.0, OTHER: 4.0}


def _named(backend, x, others, *, factor):
  """Tells the backends apart, which real strategies must not do."""
  return {'x': x * NAMES[backend] * factor, 'sum': sum(others)}


def _call(x):
  return by_backend(_named, x, [x, x], factor=10.0)


def _text(function, *args, platform):
  return _lowered(function, *args, platforms=(platform,)).as_text()


def _lowered(function, *args, platforms):
  return jax.jit(function).trace(*args).lower(lowering_platforms=platforms)


@pytest.mark.parametrize(
  ('platform', 'number'), [('cpu', 1), ('cuda', 2), ('rocm', 4), ('tpu', 3)]
)
def test_the_platform_of_the_lowering_decides(platform, number):
  text = _text(_call, jnp.ones(3), platform=platform)
  found = {float(x) for x in re.findall(r'dense<(\d\.\d+)e\+00>', text)}
  assert number in found
  assert not found & (set(NAMES.values()) - {number})


def test_one_program_for_several_platforms():
  text = _lowered(_call, jnp.ones(3), platforms=('cpu', 'tpu')).as_text()
  found = {float(x) for x in re.findall(r'dense<(\d\.\d+)e\+00>', text)}
  assert {1.0, 3.0} <= found
  assert 2.0 not in found


def test_others_than_the_cpu_are_traced_when_they_are_lowered():
  traced = []

  def function(backend, x):
    traced.append(backend)
    return x

  program = jax.jit(lambda x: by_backend(function, by_backend(function, x)))
  program = program.trace(jnp.ones(3))
  assert traced == [CPU]  # once for the two
  program.lower(lowering_platforms=('tpu',))
  assert traced == [CPU, TPU]
  with jax.disable_jit():  # which runs where the array is
    assert by_backend(function, jnp.ones(2)).shape == (2,)
  assert set(traced) == {CPU, TPU}


def test_transformations():
  x = jnp.arange(12.0).reshape(3, 4)
  want = {'x': 10 * x, 'sum': 2 * x}
  plain, jitted = _call(x), jax.jit(_call)(x)
  mapped = jax.vmap(jax.vmap(_call), in_axes=1, out_axes=1)(x)
  loop = jax.lax.map(_call, x)
  mesh = jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,))
  with jax.set_mesh(mesh):
    own = jax.shard_map(_call, in_specs=P('data'), out_specs=P('data'))
    on_own_rows = jax.jit(own)(x)
  for got in (plain, jitted, mapped, loop, on_own_rows):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def _weighted(backend, ids, tree, *, power):
  del backend
  return (tree['a'][ids] ** power * tree['b']).sum(), tree['b'] * 2


def test_recomputed_has_the_gradient_of_its_function():
  ids = jnp.array([2, 0])
  tree = {'a': jnp.array([3.0, 5.0, 7.0]), 'b': jnp.array([2.0, 10.0])}

  def ours(tree):
    value, twice = recomputed(_weighted, ids, tree, power=2)
    return value + twice.sum()

  def plain(tree):
    return (tree['a'][ids] ** 2 * tree['b']).sum() + 2 * tree['b'].sum()

  # 9 * 10 + 49 * 2 + 2 * 12; 2 * 3 * 10, 0, 2 * 7 * 2; 49 + 2, 9 + 2.
  assert float(ours(tree)) == 212.0
  grad = jax.jit(jax.grad(jax.checkpoint(ours)))(tree)
  assert grad['a'].tolist() == [60.0, 0.0, 28.0]
  assert grad['b'].tolist() == [51.0, 11.0]
  jax.tree.map(np.testing.assert_array_equal, grad, jax.grad(plain)(tree))
