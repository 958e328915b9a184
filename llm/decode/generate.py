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
from llm.decode.prefill import (
  empty_cache,
  fork,
  pad_rows,
  prefill,
  prefill_length,
)
from llm.decode.rows import stack_rows
from llm.decode.sampling import DEFAULT_ORDER
from llm.decode.sampling_params import SamplingParams
from llm.decode.step import (
  CHUNK_STEPS,
  decode_chunk,
  finish_rows,
  reread,
  start,
)
from llm.errors import UserError
from llm.models.config import length_limit
from llm.models.transformer import Transformer


@dataclasses.dataclass
class Completion:
  """What was generated for one row.

  `logprobs` are natural logarithms of the raw model's probabilities;
  `logprobs_processed` after penalties and temperature, `logprobs_filtered`
  after the filters, `surviving_mass` what the filters left. `top` holds
  (ids, raw log-probabilities) of the most likely tokens, if asked for.
  `timing` is in seconds and tokens per second. `text` is set by `llm.generate`,
  which has the tokenizer.
  """

  token_ids: list[int]
  logprobs: list[float]
  logprobs_processed: list[float]
  logprobs_filtered: list[float]
  surviving_mass: list[float]
  top: list[tuple[list[int], list[float]]]
  finish_reason: str
  prompt_tokens: int
  timing: dict[str, float]
  text: str | None = None


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
    total: tokens of the longest prompt with its answer.
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


class _Record:
  """Host-side account of a batch while it runs."""

  def __init__(self, prompts, sampling, stop_ids, began):
    self._sampling = sampling
    self._stop_ids = [set(ids[ids >= 0].tolist()) for ids in stop_ids]
    self._began = began
    self._prefill_s = None
    self._last_s = [0.0] * len(prompts)
    self._open = [True] * len(prompts)
    self._rows = [
      Completion([], [], [], [], [], [], 'length', len(p), {}) for p in prompts
    ]

  def active(self, batch):
    """bool[batch]: rows that still run."""
    mask = np.zeros((batch,), bool)
    mask[: len(self._open)] = self._open
    return mask

  def held(self, plan):
    """int[batch]: tokens in each row's cache, all but the last sampled one."""
    held = np.zeros((plan.batch,), np.int64)
    for i, row in enumerate(self._rows):
      held[i] = len(row.token_ids) - 1
      if plan.group == 1:
        held[i] += row.prompt_tokens
    return held

  def take(self, output, on_tokens):
    """Adds a chunk's tokens [k, B]; returns the rows that `on_tokens` ended."""
    elapsed = time.perf_counter() - self._began
    if self._prefill_s is None:
      self._prefill_s = elapsed
    ended = np.zeros((output.valid.shape[1],), bool)
    for i, row in enumerate(self._rows):
      if not self._open[i]:
        continue
      steps = np.flatnonzero(output.valid[:, i])
      ids = output.token[steps, i].tolist()
      keep = on_tokens(i, ids) if on_tokens else None
      if keep is not None:
        steps, ids, ended[i] = steps[:keep], ids[:keep], True
      self._extend(row, ids, output.info, steps, i)
      self._last_s[i] = elapsed
      stopped = ended[i] or bool(ids and ids[-1] in self._stop_ids[i])
      if stopped:
        row.finish_reason = 'stop'
      full = len(row.token_ids) >= self._sampling[i].max_new_tokens
      self._open[i] = not (stopped or full)
    return ended

  def _extend(self, row, ids, info, steps, i):
    row.token_ids += ids
    row.logprobs += info.logprob[steps, i].tolist()
    row.logprobs_processed += info.logprob_processed[steps, i].tolist()
    row.logprobs_filtered += info.logprob_filtered[steps, i].tolist()
    row.surviving_mass += info.surviving_mass[steps, i].tolist()
    count = self._sampling[i].logprobs
    if count:
      ids = info.top_ids[steps, i, :count].tolist()
      logprobs = info.top_logprobs[steps, i, :count].tolist()
      row.top += list(zip(ids, logprobs, strict=True))

  def completions(self):
    """The rows with their timings."""
    for row, last_s in zip(self._rows, self._last_s, strict=True):
      decode_s, steps = last_s - self._prefill_s, len(row.token_ids) - 1
      row.timing = {
        'ttft_s': self._prefill_s,
        'prefill_s': self._prefill_s,
        'decode_s': decode_s,
        'prefill_tokens_per_s': row.prompt_tokens / self._prefill_s,
        'decode_tokens_per_s': steps / decode_s if steps else 0.0,
      }
    return self._rows


def _check_rows(sampling, on_tokens):
  """Refuses what needs more than token ids."""
  for params in sampling:
    if params.n != 1:
      raise UserError(
        f'sampling.n={params.n}: a row is one answer; '
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
    group: rows after each other that answer one prompt and share its cache; 1
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
  """How often each prompt comes, if all do so equally and in a row; or 1.

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


def _begin(model, params, plan, rows, limits, dtype, prefill_chunk, settings):
  """Prefills the batch and samples each row's first token."""
  tokens, lengths = plan.tokens, plan.lengths
  allocate = functools.partial(empty_cache, model=model, dtype=dtype)
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
    **settings,
  )


def _advance(params, state, model, held, active, plan, steps, settings):
  """One chunk. `held[i]` tokens are in the cache of row i; `active` is a mask.

  Before a row of a LongRoPE model outgrows the original context, chunks are
  single steps, and the row is read again at that point.
  """
  if model.config.rope.type == 'longrope':
    left = model.config.rope.original_max_length - held
    crossing = active & (left == 0)
    if crossing.any():
      longest = bucket(int(held[crossing].max()))
      state = reread(
        params, state, crossing, model=model, length=min(longest, plan.slots)
      )
    if (active & (left > 0) & (left < steps)).any():
      steps = 1
  # Own tokens begin at 0, and the first steps are worth programs of their own.
  least = 64 if plan.group == 1 else 16
  attend = min(fine_bucket(int(held[active].max()), least), plan.slots)
  return decode_chunk(
    params, state, model=model, steps=steps, attend_length=attend, **settings
  )


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
) -> list[Completion]:
  """Generates one completion per prompt, all in one batch.

  Equal prompts share one prefill. Where all of them come equally often, each in
  a row, their answers share its keys and values too.

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
  settings = {'order': order, 'top_n': bucket(asked, 8) if asked else 0}
  fill = plan.batch - len(sampling)
  rows = stack_rows(
    [*sampling, *[SamplingParams()] * fill],
    vocab_size=model.config.vocab_size,
    eos_ids=eos_ids,
  )
  limits = np.array([s.max_new_tokens for s in sampling] + [0] * fill, np.int32)
  dtype = cache_dtype or model.dtype
  state, output = _begin(
    model, params, plan, rows, limits, dtype, prefill_chunk, settings
  )
  output = jax.tree.map(lambda x: x[None], jax.device_get(output))
  record = _Record(prompts, sampling, np.asarray(rows.stop_ids), began)
  ended = record.take(output, on_tokens)
  while (active := record.active(plan.batch)).any():
    if ended.any():
      state = finish_rows(state, ended)
    state, output = _advance(
      params,
      state,
      model,
      record.held(plan),
      active,
      plan,
      chunk_steps,
      settings,
    )
    ended = record.take(jax.device_get(output), on_tokens)
  return record.completions()
