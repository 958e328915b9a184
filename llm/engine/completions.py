"""Answers to requests, a batch at a time: decoded, timed, ready to write."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from llm.decode import sampling_params
from llm.decode.generate import Completion, capacity_for, generate
from llm.decode.sampling_params import SamplingParams
from llm.engine import phases as phases_lib
from llm.engine.loading import Loaded, files_of
from llm.engine.output import Key, digest
from llm.engine.requests import Request
from llm.errors import UserError
from llm.host import bandwidth
from llm.host.compile_clock import compile_clock
from llm.text.text_stream import TextStream, start_stream


@dataclasses.dataclass(frozen=True)
class Row:
  """One answer to make: sample `sample` of a request, with its own seed."""

  request: Request
  sample: int
  sampling: SamplingParams
  key: Key


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How rows are decoded; the same for a whole run, so that it compiles once.

  `capacity` are the cache slots per row, `batch_size` the rows per batch.
  """

  capacity: int
  batch_size: int
  chunk_steps: int
  prefill_chunk: int | None


def make_rows(found: list[Request], config) -> list[Row]:
  """One row per request and sample, in order."""
  model = files_of(config)
  rows = []
  for request in found:
    for i, sampling in enumerate(sampling_params.expand(request.sampling)):
      parts = (model, config.dtype, request.tokens)
      settings = dataclasses.asdict(sampling)
      settings['logit_bias'] = sorted(settings['logit_bias'].items())
      key = (request.index, i, digest(*parts, request.prompt, settings))
      rows.append(Row(request, i, sampling, key))
  return rows


def plan_decoding(config, rows: list[Row]) -> Decoding:
  """Sizes that serve every batch of these rows."""
  for field in ('batch_size', 'chunk_steps', 'prefill_chunk'):
    value = config[field]
    if value is not None and value < 1:
      raise UserError(f'{field}={value}: use 1 or more')
  prompt = max(len(row.request.tokens) for row in rows)
  total = max(
    len(row.request.tokens) + row.sampling.max_new_tokens for row in rows
  )
  return Decoding(
    capacity=capacity_for(
      prompt, total, config.chunk_steps, config.prefill_chunk
    ),
    batch_size=min(config.batch_size, len(rows)),
    chunk_steps=config.chunk_steps,
    prefill_chunk=config.prefill_chunk,
  )


def generate_rows(
  loaded: Loaded,
  rows: list[Row],
  decoding: Decoding,
  phases: phases_lib.Phases,
  show: Callable[[int, str], None] | None = None,
) -> list[dict]:
  """Generates one batch and adds its times to `phases`.

  Args:
    loaded: the model.
    rows: at most `decoding.batch_size`.
    decoding: sizes.
    phases: changed in place.
    show: called with (row of the batch, text) as text becomes certain.

  Returns:
    The rows of the output file, in order.
  """
  eos_ids = loaded.source.limits.eos_ids
  streams = [_stream(loaded.source.tokenizer, row, eos_ids) for row in rows]
  clock = compile_clock()
  began = clock.seconds()
  compiled: dict[int, list[float]] = {}  # per row: until first, last token

  def on_tokens(i: int, ids: list[int]) -> int | None:
    compiled.setdefault(i, []).append(clock.seconds() - began)
    before = streams[i].length
    text = streams[i].push(ids)
    if show and text:
      show(i, text)
    return streams[i].length - before if streams[i].stopped else None

  completions = generate(
    loaded.model,
    loaded.params,
    [row.request.tokens for row in rows],
    [row.sampling for row in rows],
    eos_ids=eos_ids,
    max_length=loaded.source.limits.max_length,
    capacity=decoding.capacity,
    batch_size=decoding.batch_size,
    chunk_steps=decoding.chunk_steps,
    prefill_chunk=decoding.prefill_chunk,
    on_tokens=on_tokens,
  )
  results = []
  for i, (row, completion) in enumerate(zip(rows, completions, strict=True)):
    rest = streams[i].finish()
    if show and rest:
      show(i, rest)
    first, last = compiled[i][0], compiled[i][-1]
    completion.timing = _without_compiling(completion, first, last - first)
    results.append(_result(row, completion, streams[i]))
  _add_phases(phases, loaded, rows, completions)
  return results


def _stream(tokenizer, row: Row, eos_ids) -> TextStream:
  end_ids = sampling_params.stop_ids(row.sampling, eos_ids)
  return start_stream(
    tokenizer,
    row.request.tokens,
    row.sampling.stop,
    end_ids,
    row.request.continues,
  )


def _without_compiling(
  completion: Completion, in_prefill: float, in_decode: float
) -> dict[str, float]:
  """The row's timing with compilation named apart.

  `ttft_s` stays what a user waited; the phases are the work itself.
  """
  timing = completion.timing
  prefill_s = max(timing['prefill_s'] - in_prefill, 1e-6)
  decode_s = max(timing['decode_s'] - in_decode, 0.0)
  steps = len(completion.token_ids) - 1
  return {
    'ttft_s': timing['ttft_s'],
    'prefill_s': prefill_s,
    'decode_s': decode_s,
    'prefill_tokens_per_s': completion.prompt_tokens / prefill_s,
    'decode_tokens_per_s': steps / decode_s if decode_s else 0.0,
    'compile_s': in_prefill + in_decode,
  }


def _result(row: Row, completion: Completion, stream: TextStream) -> dict:
  """The row of the output file."""
  index, sample, row_id = row.key
  result = {
    'index': index,
    'sample': sample,
    'id': row_id,
    'prompt': row.request.prompt,
    'text': None if stream.tokenizer is None else stream.text,
    'token_ids': completion.token_ids,
    'logprobs': _finite(completion.logprobs),
    'finish_reason': completion.finish_reason,
    'prompt_tokens': completion.prompt_tokens,
    'prompt_token_ids': list(row.request.tokens),
    'timing': completion.timing,
  }
  if row.sampling.logprobs:
    result['logprobs_processed'] = _finite(completion.logprobs_processed)
    result['logprobs_filtered'] = _finite(completion.logprobs_filtered)
    result['surviving_mass'] = _finite(completion.surviving_mass)
    result['top_logprobs'] = [
      _alternatives(stream.tokenizer, *top) for top in completion.top
    ]
  return result


def _alternatives(tokenizer, ids, logprobs) -> list[dict[str, Any]]:
  return [
    {
      'token_id': token,
      'token': tokenizer
      and tokenizer.token_bytes(token).decode(errors='replace'),
      'logprob': logprob,
    }
    for token, logprob in zip(ids, _finite(logprobs), strict=True)
  ]


def _finite(values: list[float]) -> list[float | None]:
  # JSON has no infinity: the logarithm of 0 is null.
  return [v if math.isfinite(v) else None for v in values]


def _add_phases(phases, loaded, rows, completions) -> None:
  timings = [c.timing for c in completions]
  phases.ttft_s.append(max(t['ttft_s'] for t in timings))
  phases.prompt_tokens += sum(map(len, {r.request.tokens for r in rows}))
  phases.prefill_s += max(t['prefill_s'] for t in timings)
  phases.compile_s += max(t['compile_s'] for t in timings)
  steps = max(len(c.token_ids) for c in completions) - 1
  phases.decode_tokens += sum(len(c.token_ids) - 1 for c in completions)
  phases.decode_steps += steps
  phases.decode_s += max(t['decode_s'] for t in timings)
  halfway = [c.prompt_tokens + len(c.token_ids) // 2 for c in completions]
  per_step = bandwidth.step_bytes(loaded.source.config, loaded.params, halfway)
  phases.bytes_moved += steps * per_step
