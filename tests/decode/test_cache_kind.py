"""A kind of cache that the library does not know: keys and values rounded."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from llm.decode import slots, step
from llm.decode.generate import generate
from llm.decode.prefill import empty_cache, pad_rows, prefill
from llm.decode.rows import stack_rows
from llm.decode.sampling_params import SamplingParams
from llm.models.cache import DenseLayer, RingLayer
from tests.models import tiny

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=17)
SAMPLER = {'order': (), 'top_n': 0}


@struct.dataclass
class RoundedKV:
  """Integers, and for each slot of each head the size of their steps."""

  k: jax.Array
  v: jax.Array
  k_step: jax.Array  # [B, K, S]
  v_step: jax.Array

  def pack(self, new):
    k, k_step = self._round(new.k, axis=3)
    v, v_step = self._round(new.v, axis=2)
    return RoundedKV(k, v, k_step, v_step)

  def unpack(self):
    return self.k * self.k_step[..., None], self.v * self.v_step[:, :, None]

  def slot_axes(self):
    return RoundedKV(k=-2, v=-1, k_step=-1, v_step=-1)

  def _round(self, x, axis):
    dtype = self.k.dtype
    step = jnp.abs(x).max(axis, keepdims=True) / jnp.iinfo(dtype).max
    x = jnp.round(x / jnp.maximum(step, 1e-30)).astype(dtype)
    return x, jnp.squeeze(step, axis)


def rounded_layer(config, batch, count, window, dtype) -> Any:
  """`make_layer` for a cache of integers: an int8 dense or ring layer."""
  count = count if window is None else min(count, window)
  shape = (batch, config.num_kv_heads, count, config.head_dim)
  steps = jnp.zeros(shape[:3])
  k = jnp.zeros(shape, dtype)
  kv = RoundedKV(k, k.swapaxes(2, 3), steps, steps)
  return DenseLayer(kv) if window is None else RingLayer(kv, window)


def complete(model, params, texts, **layout):
  return generate(
    model,
    params,
    texts,
    [GREEDY] * len(texts),
    chunk_steps=8,
    batch_size=2,
    order=(),
    **layout,
  )


def largest_gap(rows, others):
  assert [r.token_ids for r in rows] == [o.token_ids for o in others]
  return max(
    np.abs(np.subtract(r.logprobs, o.logprobs)).max()
    for r, o in zip(rows, others, strict=True)
  )


def test_rounding_is_all_that_a_cache_of_integers_changes():
  """Prefill, chunks and `generate`; a dense layer and a ring that goes round.

  Rounding moves a number by half a step at most, and what small errors do is
  linear in them: int16, with steps 258 times smaller, is to be 258 times nearer
  to the floats. So what int8 changes is the rounding, and its bound is 258
  times what int16 changes, here times 2 for what is not linear.
  """
  model, params = tiny.build('local_global')
  texts = [tiny.tokens(1, n, seed=n)[0].tolist() for n in (9, 4)]
  floats = complete(model, params, texts)
  gap = {
    bits: largest_gap(
      complete(
        model, params, texts, cache_dtype=dtype, make_layer=rounded_layer
      ),
      floats,
    )
    for bits, dtype in ((8, jnp.int8), (16, jnp.int16))
  }
  finer = 32767 / 127
  assert 1e-6 < gap[16] < 1e-3
  assert gap[16] * finer / 2 < gap[8] < gap[16] * finer * 2


def test_rows_of_integers_go_through_slots():
  model, params = tiny.build('local_global')
  layout = {'dtype': jnp.int8, 'make_layer': rounded_layer}
  texts = [tiny.tokens(1, n, seed=n)[0].tolist() for n in (9, 4)]
  rows = complete(
    model, params, texts, cache_dtype=jnp.int8, make_layer=rounded_layer
  )
  tokens, lengths = pad_rows(texts, 16, 2)
  cache = empty_cache(model=model, batch=2, capacity=16, **layout)
  logits, cache = prefill(params, tokens, lengths, cache, model=model)
  settings = stack_rows([GREEDY] * 2, vocab_size=50)
  limits = np.full((2,), GREEDY.max_new_tokens, np.int32)
  fresh, output = step.start(
    cache, logits, tokens, lengths, settings, limits, capacity=16, **SAMPLER
  )
  state = slots.init_slots(model=model, batch=2, capacity=64, **layout)
  state = slots.insert(state, fresh, np.array([1, 0], np.int32))
  got = [[int(output.token[0])], [int(output.token[1])]]
  for _ in range(2):
    state, output = step.decode_chunk(
      params, state, model=model, steps=8, attend_length=64, **SAMPLER
    )
    got[0] += output.token[:, 1].tolist()
    got[1] += output.token[:, 0].tolist()
  assert got == [row.token_ids for row in rows]
  local, dense = state.cache.layers
  assert (local.kv.k.dtype, local.kv.k.shape) == (jnp.int8, (2, 2, 5, 8))
  assert (dense.kv.v.dtype, dense.kv.v.shape) == (jnp.int8, (2, 2, 8, 64))
