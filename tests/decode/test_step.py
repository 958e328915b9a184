"""What a decode chunk, an insertion and a release do with the large arrays."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.decode import slots, step
from tests.models import tiny

SLOTS = 2048
cpu_only = pytest.mark.skipif(
  jax.default_backend() != 'cpu', reason='of XLA:CPU alone'
)


@pytest.fixture(scope='module')
def idle():
  model, params = tiny.build('local_global')
  state = slots.init_slots(
    model=model, batch=4, capacity=SLOTS, dtype=jnp.float32
  )
  return model, params, state


def large(program, leaf):
  """The operations that make an array of at least half the size of `leaf`.

  Not those that only name or pass on what another one makes.
  """
  made = []
  for line in program.as_text().splitlines():
    found = re.match(r'\s*(ROOT )?\S+ = \w+\[([\d,]+)\]\S* ([\w-]+)\(', line)
    if found and math.prod(map(int, found[2].split(','))) >= leaf.size // 2:
      made.append(found[3])
  named = ('parameter', 'get-tuple-element', 'bitcast', 'fusion', 'call')
  return sorted(name for name in made if name not in named)


def updates(program, state, reads=0):
  """How many large writes there are, and which other large operations.

  Asserts that the cache is updated where it is, with `reads` bytes taken out.
  """
  memory = program.memory_analysis()
  cache = sum(x.nbytes for x in jax.tree.leaves(state.cache))
  leaf = state.cache.layers[1].kv.k
  assert memory.alias_size_in_bytes >= cache
  assert memory.temp_size_in_bytes < reads + leaf.nbytes
  made = large(program, leaf)
  # How the compiler writes rows depends on its version.
  writes = [x for x in made if x in ('scatter', 'dynamic-update-slice')]
  rest = [x for x in made if x not in writes]
  return len(writes), rest


@cpu_only
def test_a_chunk_writes_the_cache_once_and_copies_it_never(idle):
  model, params, state = idle

  def compiled(attend_length):
    return step.decode_chunk.lower(
      params,
      state,
      model=model,
      steps=8,
      attend_length=attend_length,
      order=(),
    ).compile()

  # The keys and the values of the dense layer, when the chunk is over.
  assert updates(compiled(None), state) == (2, [])
  # A chunk that looks at half of the slots takes these out first.
  half = state.cache.layers[1].kv.k.nbytes
  got = updates(compiled(SLOTS // 2), state, reads=half)
  assert got == (2, ['slice', 'slice'])


@cpu_only
def test_rows_are_inserted_and_released_in_place(idle):
  model, _, state = idle
  one = np.array([2], np.int32)
  fresh = slots.init_slots(model=model, batch=1, capacity=16, dtype=jnp.float32)
  inserted = slots.insert.lower(state, fresh, one).compile()
  assert updates(inserted, state) == (2, [])
  released = slots.release.lower(state, one).compile()
  assert updates(released, state) == (0, [])
