"""Compilation is timed once, however programs are nested."""

import jax
import jax.numpy as jnp

from llm.host.compile_clock import CompileClock, compile_clock


def test_nested_and_touching_intervals_count_once():
  clock = CompileClock()
  clock.add(1.0, 2.0)
  clock.add(2.5, 3.0)
  clock.add(0.5, 4.0)  # held both
  clock.add(3.5, 5.0)  # overlaps
  clock.add(7.0, 8.0)
  assert clock.seconds() == 4.5 + 1.0


def test_the_clock_moves_only_when_something_is_compiled():
  clock = compile_clock()
  assert clock is compile_clock()
  double = jax.jit(lambda x: jnp.sin(x) * 2)
  x = jnp.ones(3)
  before = clock.seconds()
  double(x)
  after = clock.seconds()
  assert after > before
  double(x)
  assert clock.seconds() == after
