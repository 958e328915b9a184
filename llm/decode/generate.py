"""`generate`: prompts in, completions out, tokens handed over on the way.

A host loop over `decode_chunk` until every row is done. A row's tokens are a
function of (params, prompt, its sampling settings, position) alone, whatever
its neighbours, the batch, the bucket and the chunk are.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

from llm.buckets import bucket, fine_bucket
from llm.decode.completion import Completion, Record
from llm.decode.prefill import (
  empty_cache,
  fork,
  pad_rows,
  prefill,
  prefill_length,
)
from llm.decode.rows import IDLE, stack_rows
from llm.decode.sampling import DEFAULT_ORDER
from llm.decode.sampling_params import SamplingParams
from llm.decode.slots import advance, release
from llm.decode.step import CHUNK_STEPS, start
from llm.errors import UserError
from llm.models.cache import make_layer
from llm.models.config import length_limit
from llm.models.transformer import Transformer


def slots_needed(
  prompt: int,
  total: int,
  chunk_steps: int = CHUNK_STEPS,
  prefill_chunk: int | None = None,
) -> int:
  """Cache slots that a batch writes.

  Prefill writes whole buckets or chunks and decode whole chunks, whether or
  not a row is that long.

  Args:
    prompt: tokens of the longest prompt.
    total: tokens of the longest prompt with its completion.
    chunk_steps, prefill_chunk: as for `generate`.
  """
  return max(prefill_length(prompt, prefill_chunk), total + chunk_steps)


def capacity_for(*args: Any, **kwargs: Any) -> int:
  """`slots_needed`, rounded up on a ladder that bounds compilations."""
  return fine_bucket(slots_needed(*args, **kwargs))


def check_room(
  prompts: Sequence[Sequence[int]],
  sampling: Sequence[SamplingParams],
  max_length: int,
) -> None:
  """Refuses empty prompts and rows that do not fit.

  Raises:
    UserError: with the row, what it needs and what would fit.
  """
  for i, (prompt, params) in enumerate(zip(prompts, sampling, strict=True)):
    if not len(prompt):
      raise UserError(
        f'prompt {i} has no token: give it a text, or a tokenizer with BOS'
      )
    need = len(prompt) + params.max_new_tokens
    if need > max_length:
      room = max_length - len(prompt)
      remedy = (
        f'lower sampling.max_new_tokens to {room}'
        if room > 0
        else f'shorten it to fewer than {max_length} tokens'
      )
      raise UserError(
        f'prompt {i}: {len(prompt)} tokens + sampling.max_new_tokens='
        f'{params.max_new_tokens} exceed the {max_length} that fit: {remedy}'
      )


def _check_rows(sampling, on_tokens):
  """Refuses what needs more than token ids."""
  for params in sampling:
    if params.n != 1:
      raise UserError(
        f'sampling.n={params.n}: a row is one completion; '
        '`sampling_params.expand` makes the n rows'
      )
    if params.stop and on_tokens is None:
      raise UserError(
        f'sampling.stop={list(params.stop)!r}: stop strings need text; use '
        '`llm.generate`, or end rows through `on_tokens`'
      )


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Padded arrays of one batch.

  Attributes:
    tokens, lengths: of the prompts, each once.
    source: the prompt of each row, or None where they are the same.
    group: consecutive rows that complete one prompt and share its cache; 1
      where each has its own.
    batch: rows.
    capacity: tokens that a row may have.
    slots: of a row's own cache.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  source: np.ndarray | None
  group: int
  batch: int
  capacity: int
  slots: int


def _group_size(prompts: Sequence[tuple[int, ...]]) -> int:
  """How many consecutive rows have each prompt, if equally many do; else 1.

  4 for a a a a b b b b; 1 for a a a b, and for a b a b.
  """
  size = sum(prompt == prompts[0] for prompt in prompts)
  heads = prompts[::size]
  regular = len(prompts) == len(set(heads)) * size and all(
    prompt == heads[i // size] for i, prompt in enumerate(prompts)
  )
  return size if regular else 1


def _plan(
  model, prompts, sampling, capacity, batch_size, chunk_steps, prefill_chunk
) -> _Plan:
  prompts = [tuple(p) for p in prompts]
  unique = {prompt: None for prompt in prompts}
  index = {prompt: i for i, prompt in enumerate(unique)}
  group = 1
  # LongRoPE reads rows again with all their tokens, each at its own time.
  if batch_size is None and model.config.rope.type != 'longrope':
    group = _group_size(prompts)
  batch = batch_size or bucket(len(prompts) // group, 1) * group
  if batch < len(prompts):
    raise UserError(
      f'batch_size={batch} is less than the {len(prompts)} rows: raise it'
    )
  shared = len(unique) < len(prompts)
  width = bucket(len(unique), 1) if shared else batch
  longest = max(len(p) for p in unique)
  tokens, lengths = pad_rows(list(unique), bucket(longest), width)
  total = max(
    len(p) + s.max_new_tokens for p, s in zip(prompts, sampling, strict=True)
  )
  need = slots_needed(longest, total, chunk_steps, prefill_chunk)
  if capacity is not None and capacity < need:
    raise UserError(
      f'capacity={capacity} slots are too few: these rows need {need}'
    )
  slots = capacity = capacity or fine_bucket(need)
  source = None
  if group > 1:
    source = np.repeat(np.arange(width, dtype=np.int32), group)
    longest = max(s.max_new_tokens for s in sampling)
    slots = fine_bucket(longest + chunk_steps)
  elif shared:
    source = np.zeros((batch,), np.int32)
    source[: len(prompts)] = [index[p] for p in prompts]
  return _Plan(tokens, lengths, source, group, batch, capacity, slots)


def _begin(
  params, plan, sampling, *, model, eos_ids, prefill_chunk, layout, sampler
):
  """Prefills the batch and samples each row's first token."""
  fill = plan.batch - len(sampling)
  rows = stack_rows(
    [*sampling, *[IDLE] * fill],
    vocab_size=model.config.vocab_size,
    eos_ids=eos_ids,
  )
  limits = np.array([s.max_new_tokens for s in sampling] + [0] * fill, np.int32)
  tokens, lengths = plan.tokens, plan.lengths
  allocate = functools.partial(empty_cache, model=model, **layout)
  slots = plan.slots
  if plan.group > 1:
    slots = fine_bucket(prefill_length(int(lengths.max()), prefill_chunk), 16)
  cache = allocate(batch=len(lengths), capacity=slots)
  logits, cache = prefill(
    params, tokens, lengths, cache, model=model, chunk=prefill_chunk
  )
  shared = None
  if plan.group > 1:
    shared, cache = cache, allocate(batch=plan.batch, capacity=plan.slots)
  elif plan.source is not None:
    cache = fork(cache, plan.source)
  if plan.source is not None:
    logits, tokens, lengths = fork((logits, tokens, lengths), plan.source)
  return start(
    cache,
    logits,
    tokens,
    lengths,
    rows,
    limits,
    capacity=plan.capacity,
    shared=shared,
    **sampler,
  )


def _take(records, output, on_tokens):
  """Adds a chunk's tokens [k, B]; returns the rows that `on_tokens` ended."""
  now = time.perf_counter()
  ended = []
  for i, record in enumerate(records):
    own = functools.partial(on_tokens, i) if on_tokens else None
    if record.running and record.take(output, i, now, own):
      ended.append(i)
  return ended


def _run(params, state, records, ended, plan, on_tokens, **chunk):
  """Runs chunks until every row is done; `ended` are rows to release first."""
  active = np.zeros((plan.batch,), bool)
  held = np.zeros((plan.batch,), np.int64)
  while any(record.running for record in records):
    if ended:
      slots = np.full((plan.batch,), plan.batch, np.int32)
      slots[: len(ended)] = ended
      state = release(state, slots)
    for i, record in enumerate(records):
      active[i], held[i] = record.running, record.held
      if plan.group > 1:
        held[i] -= record.completion.prompt_tokens
    state, output = advance(params, state, held=held, active=active, **chunk)
    ended = _take(records, jax.device_get(output), on_tokens)


def generate(
  model: Transformer,
  params: Any,
  prompts: Sequence[Sequence[int]],
  sampling: Sequence[SamplingParams],
  *,
  eos_ids: Sequence[int] = (),
  max_length: int | None = None,
  capacity: int | None = None,
  batch_size: int | None = None,
  chunk_steps: int = CHUNK_STEPS,
  prefill_chunk: int | None = None,
  order: tuple[str, ...] = DEFAULT_ORDER,
  on_tokens: Callable[[int, list[int]], int | None] | None = None,
  cache_dtype: Any = None,
  make_layer: Callable[..., Any] = make_layer,
) -> list[Completion]:
  """Generates one completion per prompt, all in one batch.

  Equal prompts share one prefill. Where all of them come equally often, each in
  a row, their completions share its keys and values too.

  Args:
    model: the transformer.
    params: its parameters.
    prompts: token ids, at least one each.
    sampling: settings, one per prompt, with n = 1.
    eos_ids: tokens that end a row unless its `ignore_eos` is set.
    max_length: tokens that a row may hold; default: `length_limit`.
    capacity: cache slots to allocate; default: what the rows need, on a ladder.
    batch_size: rows to compute (rows beyond the prompts are empty), each with
      a cache of its own; default: the next power of two of them, or of the
      prompts that groups share.
    chunk_steps: decode steps per compiled call, and tokens per `on_tokens`.
    prefill_chunk: tokens of prompt per call; None: whole prompts.
    order: of the logit processors and filters (see `sample_rows`).
    on_tokens: called with (row, new ids) as they come; may return how many of
      them to keep, which ends the row.
    cache_dtype: of keys and values; default: the model's.
    make_layer: makes the layers of the cache (see `init_cache`).

  Returns:
    One Completion per prompt.

  Raises:
    UserError: a prompt is empty or does not fit, or a setting needs text.
  """
  began = time.perf_counter()
  check_room(prompts, sampling, max_length or length_limit(model.config))
  _check_rows(sampling, on_tokens)
  if not prompts:
    return []
  plan = _plan(
    model, prompts, sampling, capacity, batch_size, chunk_steps, prefill_chunk
  )
  asked = max(s.logprobs for s in sampling)
  sampler = {'order': order, 'top_n': bucket(asked, 8) if asked else 0}
  state, output = _begin(
    params,
    plan,
    sampling,
    model=model,
    eos_ids=eos_ids,
    prefill_chunk=prefill_chunk,
    layout={'dtype': cache_dtype or model.dtype, 'make_layer': make_layer},
    sampler=sampler,
  )
  output = jax.tree.map(lambda x: x[None], jax.device_get(output))
  records = [
    Record(len(prompt), own, eos_ids, began)
    for prompt, own in zip(prompts, sampling, strict=True)
  ]
  ended = _take(records, output, on_tokens)
  chunk = {'model': model, 'steps': chunk_steps, **sampler}
  _run(params, state, records, ended, plan, on_tokens, **chunk)
  return [record.finish() for record in records]
