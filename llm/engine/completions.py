"""Requests in, completions with text out: the one loop that all users share.

`configs/generate.py`, `llm.generate`, the chat, samples during training and
the exam call `complete`; they differ in what they do with the results.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math
from typing import Any

from llm.decode import sampling_params
from llm.decode.completion import Completion
from llm.decode.generate import capacity_for, generate
from llm.decode.step import CHUNK_STEPS
from llm.engine.checks import check_sizes
from llm.engine.output import Key
from llm.engine.phases import Phases, add_batch
from llm.engine.requests import Limits, Sample
from llm.host.compile_clock import compile_clock
from llm.models.transformer import Transformer
from llm.text.text_stream import TextStream, start_stream
from llm.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TextModel:
  """A model that continues text.

  Attributes:
    model: the transformer, with unrolled or stacked layers.
    params: its parameters.
    tokenizer: None for a model that is given token ids; its completions have
      no text.
    limits: the length of a row and the ids that end one.
  """

  model: Transformer
  params: Any
  tokenizer: Tokenizer | None
  limits: Limits


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How samples are decoded; fixed for a run, so that it compiles once.

  Attributes:
    capacity: cache slots of a row; None: what the rows of a batch need.
    batch_size: rows of a batch; None: all samples are one batch.
    chunk_steps, prefill_chunk: as for `llm.decode.generate.generate`.
  """

  capacity: int | None = None
  batch_size: int | None = None
  chunk_steps: int = CHUNK_STEPS
  prefill_chunk: int | None = None


def plan_decoding(config, samples: Sequence[Sample]) -> Decoding:
  """Sizes that serve every batch of these samples.

  Args:
    config: with `batch_size`, `chunk_steps` and `prefill_chunk`.
    samples: all of the run, at least one.

  Raises:
    UserError: a field is below 1.
  """
  check_sizes(config)
  prompt = max(len(sample.request.tokens) for sample in samples)
  total = max(
    len(sample.request.tokens) + sample.sampling.max_new_tokens
    for sample in samples
  )
  return Decoding(
    capacity=capacity_for(
      prompt, total, config.chunk_steps, config.prefill_chunk
    ),
    batch_size=min(config.batch_size, len(samples)),
    chunk_steps=config.chunk_steps,
    prefill_chunk=config.prefill_chunk,
  )


def complete(
  text_model: TextModel,
  samples: Sequence[Sample],
  decoding: Decoding = Decoding(),
  *,
  phases: Phases | None = None,
  show: Callable[[Sample, str], None] | None = None,
) -> Iterator[Completion]:
  """Yields the completion of each sample, in order, a batch at a time.

  Args:
    text_model: the model.
    samples: what to make.
    decoding: sizes of the batches.
    phases: the times of each batch are added to it.
    show: called with (sample, text) as soon as more of its text is certain.

  Yields:
    Completions with their `text`: what follows the prompt, without stop strings
    and end tokens; None where there is no tokenizer. In `timing` the seconds of
    prefill and decode are without those of compiling, which are `compile_s`.

  Raises:
    UserError: a prompt is empty or does not fit.
  """
  size = decoding.batch_size or max(len(samples), 1)
  for first in range(0, len(samples), size):
    batch = samples[first : first + size]
    yield from _complete_batch(text_model, batch, decoding, phases, show)


def _complete_batch(
  text_model, batch, decoding, phases, show
) -> list[Completion]:
  limits = text_model.limits
  streams = [_stream(text_model, sample) for sample in batch]
  clock = compile_clock()
  began = clock.seconds()
  compiled: dict[int, list[float]] = {}  # per row: until first, last token

  def on_tokens(i: int, ids: list[int]) -> int | None:
    compiled.setdefault(i, []).append(clock.seconds() - began)
    before = streams[i].length
    text = streams[i].push(ids)
    if show and text:
      show(batch[i], text)
    return streams[i].length - before if streams[i].stopped else None

  completions = generate(
    text_model.model,
    text_model.params,
    [sample.request.tokens for sample in batch],
    [sample.sampling for sample in batch],
    eos_ids=limits.eos_ids,
    max_length=limits.max_length,
    capacity=decoding.capacity,
    batch_size=decoding.batch_size,
    chunk_steps=decoding.chunk_steps,
    prefill_chunk=decoding.prefill_chunk,
    on_tokens=on_tokens,
  )
  for i, completion in enumerate(completions):
    rest = streams[i].finish()
    if show and rest:
      show(batch[i], rest)
    if text_model.tokenizer is not None:
      completion.text = streams[i].text
    first, last = compiled[i][0], compiled[i][-1]
    completion.timing = _without_compiling(completion, first, last - first)
  if phases is not None:
    add_batch(
      phases,
      text_model.model.config,
      text_model.params,
      [sample.request.tokens for sample in batch],
      completions,
    )
  return completions


def output_row(
  key: Key, sample: Sample, completion: Completion, tokenizer: Tokenizer | None
) -> dict[str, Any]:
  """The object that a generate run writes for a completion."""
  index, number, row_id = key
  row = {
    'index': index,
    'sample': number,
    'id': row_id,
    'prompt': sample.request.prompt,
    'text': completion.text,
    'token_ids': completion.token_ids,
    'logprobs': _finite(completion.logprobs),
    'finish_reason': completion.finish_reason,
    'prompt_tokens': completion.prompt_tokens,
    'prompt_token_ids': list(sample.request.tokens),
    'timing': completion.timing,
  }
  if sample.sampling.logprobs:
    row['logprobs_processed'] = _finite(completion.logprobs_processed)
    row['logprobs_filtered'] = _finite(completion.logprobs_filtered)
    row['surviving_mass'] = _finite(completion.surviving_mass)
    row['top_logprobs'] = [
      _alternatives(tokenizer, *top) for top in completion.top
    ]
  return row


def _stream(text_model: TextModel, sample: Sample) -> TextStream:
  request = sample.request
  return start_stream(
    text_model.tokenizer,
    request.tokens,
    sample.sampling.stop,
    sampling_params.stop_ids(sample.sampling, text_model.limits.eos_ids),
    request.continues,
  )


def _without_compiling(
  completion: Completion, in_prefill: float, in_decode: float
) -> dict[str, float]:
  """A completion's timing with the time of compiling named apart.

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
