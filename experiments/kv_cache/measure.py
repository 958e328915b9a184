"""The run: one part of the experiment, by `config.part`."""

from collections.abc import Callable
import dataclasses
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import machine
from experiments.kv_cache.shapes import SHAPES
from llm.buckets import bucket, fine_bucket
from llm.decode.generate import capacity_for, generate
from llm.decode.prefill import empty_cache, fork, prefill
from llm.decode.rows import stack_rows
from llm.decode.sampling import DEFAULT_ORDER
from llm.decode.sampling_params import SamplingParams
from llm.decode.step import CHUNK_STEPS, decode_chunk, start
from llm.errors import UserError
from llm.models.cache import cache_bytes
from llm.models.config import ModelConfig
from llm.models.transformer import Transformer, init_params
from llm.runs import outputs

GROWTH = 16  # of the allocated cache
_SLOTS = 512  # allocated before that
_CHUNKS = 4  # that are timed in the parts used and allocated
_TIMED = CHUNK_STEPS * _CHUNKS
_4K, _128K = 4096, 131_072
_BLOCK = 32  # the forward pass without a cache is padded to multiples of this


def run(config: ml_collections.ConfigDict, workdir: str | None) -> None:
  """Measures one part and writes `result.json`.

  Raises:
    UserError: no workdir, an unknown part, or a length that a part cannot have.
  """
  if not workdir:
    raise UserError('no --workdir: name a folder for result.json')
  if config.part not in PARTS:
    raise UserError(
      f'part={config.part!r}: use one of {", ".join(sorted(PARTS))}'
    )
  result = {'machine': machine.describe()}
  result |= PARTS[config.part](config)
  outputs.write_result(workdir, result)
  print(result)


def answer(config) -> dict:
  """Seconds for the same greedy completion with and without a cache."""
  model, params = _model(config, config.prompt_tokens + config.tokens)
  prompt = _prompt(config, config.prompt_tokens)
  cached = functools.partial(_cached, model, params, prompt, config.tokens)
  uncached = functools.partial(_uncached, model, params, prompt, config.tokens)
  expected = cached()
  equal = uncached() == expected  # these calls compile, too
  cached_s = [_seconds(cached) for _ in range(config.repetitions)]
  uncached_s = [_seconds(uncached) for _ in range(2)]
  times = statistics.median(cached_s), statistics.median(uncached_s)
  return {
    'cached_s': times[0],
    'uncached_s': times[1],
    'speedup': times[1] / times[0],
    'equal': equal,
    'distinct': len(set(expected)),
  }


def used(config) -> dict:
  """Decode time per token where the cache holds about `tokens` tokens."""
  if config.tokens % 64 or config.tokens <= _TIMED:
    raise UserError(
      f'tokens={config.tokens}: use a multiple of 64 above {_TIMED}'
    )
  model, params = _model(config, config.tokens + _TIMED)
  # Chunks look at a ladder of lengths: all timed ones are on the same rung.
  prompt = _prompt(config, config.tokens - _TIMED + 1)
  slots = capacity_for(len(prompt), config.tokens)
  state = _after_prompt(model, params, prompt, slots)
  times = [
    _time_per_token(model, params, state, len(prompt), bounded=True)
    for _ in range(config.repetitions + 1)
  ]
  return {'token_ms': 1e3 * statistics.median(times[1:])}


def allocated(config) -> dict:
  """Decode time per token with few and with many slots, few of them used.

  The control reads all slots that are allocated, like a cache that knows no
  other length. If its time did not grow, the measurement could not see growth.
  """
  model, params = _model(config, _SLOTS * GROWTH)
  prompt = _prompt(config, _SLOTS // 2 - _TIMED + 1)
  states = {
    'small': _after_prompt(model, params, prompt, _SLOTS),
    'large': _after_prompt(model, params, prompt, _SLOTS * GROWTH),
  }
  times = {}
  for repetition in range(config.repetitions + 1):
    for name, bounded in (('', True), ('control_', False)):
      for size, state in states.items():
        seconds = _time_per_token(model, params, state, len(prompt), bounded)
        if repetition:  # the first one compiles
          times.setdefault(f'{name}{size}', []).append(seconds)
  result = {f'{k}_ms': 1e3 * statistics.median(v) for k, v in times.items()}
  for name in ('', 'control_'):
    pairs = zip(times[f'{name}small'], times[f'{name}large'], strict=True)
    grown = [large / small - 1.0 for small, large in pairs]
    result[f'{name}growth'] = statistics.median(grown)
  return result


def price(config) -> dict:
  """Bytes of bfloat16 cache, from the function that allocates it."""
  del config
  result = {}
  for name, shape in SHAPES.items():
    size = functools.partial(cache_bytes, shape, 1, dtype=jnp.bfloat16)
    no_window = dataclasses.replace(shape, layer_types=(), window=None)
    token = size(_128K) - size(_128K - 1)
    result[name] = {
      'token': token,
      'windows': size(_128K) - _128K * token,
      '4k': size(_4K),
      '128k': size(_128K),
      '128k_all_global': cache_bytes(no_window, 1, _128K, jnp.bfloat16),
    }
  return result


PARTS: dict[str, Callable[[ml_collections.ConfigDict], dict]] = {
  'allocated': allocated,
  'answer': answer,
  'price': price,
  'used': used,
}


def _model(config, max_length: int):
  shape = ModelConfig(**config.model.to_dict(), max_length=max_length)
  params = init_params(shape, jax.random.key(config.seed))
  return Transformer(shape), params


def _prompt(config, length: int) -> list[int]:
  rng = np.random.default_rng(config.seed)
  return rng.integers(0, config.model.vocab_size, length).tolist()


def _greedy(tokens: int) -> SamplingParams:
  return SamplingParams(max_new_tokens=tokens, temperature=0.0, ignore_eos=True)


def _cached(model, params, prompt, tokens: int) -> list[int]:
  return generate(model, params, [prompt], [_greedy(tokens)])[0].token_ids


@functools.partial(jax.jit, static_argnames=('model',))
def _next_token(params, text, length, *, model):
  """Greedy next token after text[:length]: int32[T] -> int32."""
  hidden, _ = model.apply({'params': params}, text[None], method='trunk')
  last = hidden[:, length - 1][:, None]
  logits = model.apply({'params': params}, last, method='logits')
  return jnp.argmax(logits[0, 0])


def _uncached(model, params, prompt, tokens: int) -> list[int]:
  """A forward pass over the whole text so far for each token.

  It is as fast as it can be without a cache: compiled, padded to small blocks
  only, and through the output table with the last token alone.
  """
  text = np.zeros((_blocks(len(prompt) + tokens),), np.int32)
  text[: len(prompt)] = prompt
  for length in range(len(prompt), len(prompt) + tokens):
    piece = text[: _blocks(length)]
    text[length] = _next_token(params, piece, np.int32(length), model=model)
  return text[len(prompt) : len(prompt) + tokens].tolist()


def _blocks(length: int) -> int:
  return -(-length // _BLOCK) * _BLOCK


def _seconds(call: Callable[[], object]) -> float:
  began = time.perf_counter()
  call()
  return time.perf_counter() - began


def _after_prompt(model, params, prompt, capacity: int):
  """The decode state after the prompt, as `generate` makes it."""
  rows = stack_rows(
    [_greedy(_TIMED + 1)], vocab_size=model.config.vocab_size, eos_ids=()
  )
  width = min(bucket(len(prompt)), capacity)
  tokens = np.zeros((1, width), np.int32)
  tokens[0, : len(prompt)] = prompt
  lengths = np.array([len(prompt)], np.int32)
  cache = empty_cache(
    model=model, batch=1, capacity=capacity, dtype=jnp.float32
  )
  logits, cache = prefill(
    params, tokens, lengths, cache, model=model, chunk=min(256, width)
  )
  limits = np.array([_TIMED + 1], np.int32)
  state, _ = start(
    cache,
    logits,
    tokens,
    lengths,
    rows,
    limits,
    capacity=capacity,
    order=DEFAULT_ORDER,
    top_n=0,
  )
  return state


def _time_per_token(model, params, after_prompt, held: int, bounded: bool):
  """Seconds per decode step, as `generate` runs them, from a copy of a state.

  `held` tokens are in its cache. `bounded` says whether a chunk looks at the
  slots in use or at all that are allocated.
  """
  state = jax.block_until_ready(fork(after_prompt, np.zeros((1,), np.int32)))
  capacity = state.cache.capacity
  began = time.perf_counter()
  for chunk in range(_CHUNKS):
    attend = fine_bucket(held + chunk * CHUNK_STEPS)
    state, output = decode_chunk(
      params,
      state,
      model=model,
      attend_length=min(attend, capacity) if bounded else capacity,
    )
    output.token.block_until_ready()
  return (time.perf_counter() - began) / _TIMED
