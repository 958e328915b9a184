"""What was generated for a row, and the host's record of it while it runs."""

from collections.abc import Callable, Iterable
import dataclasses
from typing import Any

import numpy as np

from llm.decode.sampling_params import SamplingParams, stop_ids


@dataclasses.dataclass
class Completion:
  """What was generated for one row.

  `logprobs` are natural logarithms of the raw model's probabilities;
  `logprobs_processed` after penalties and temperature, `logprobs_filtered`
  after the filters, `surviving_mass` what the filters left. `top` holds
  (ids, raw log-probabilities) of the most likely tokens, if asked for.
  `timing` is in seconds and tokens per second. `text` is set by `llm.engine`,
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


class Record:
  """One row while it runs.

  Args:
    prompt_tokens: length of its prompt.
    sampling: its settings.
    eos_ids: of the model.
    began: seconds, when its request came.

  Attributes:
    completion: what it has so far.
    running: whether tokens are still to come.
  """

  def __init__(
    self,
    prompt_tokens: int,
    sampling: SamplingParams,
    eos_ids: Iterable[int],
    began: float,
  ):
    self.completion = Completion(
      [], [], [], [], [], [], 'length', prompt_tokens, {}
    )
    self.running = True
    self._sampling = sampling
    self._stop_ids = set(stop_ids(sampling, eos_ids))
    self._began = began
    self._first = self._last = began

  @property
  def held(self) -> int:
    """Tokens in the row's cache, its prompt's included.

    These are all but the last sampled one.
    """
    row = self.completion
    return row.prompt_tokens + len(row.token_ids) - 1

  def take(
    self,
    output: Any,
    slot: int,
    now: float,
    on_tokens: Callable[[list[int]], int | None] | None = None,
  ) -> bool:
    """Adds the tokens of one chunk.

    Args:
      output: a `StepOutput` of NumPy arrays [k, B].
      slot: where the row is in it.
      now: seconds.
      on_tokens: called with the new ids; may return how many of them to keep,
        which ends the row.

    Returns:
      Whether `on_tokens` ended it, so that its slot has to be released; a row
      that ends by itself is done on the device as well.
    """
    steps = np.flatnonzero(output.valid[:, slot])
    ids = output.token[steps, slot].tolist()
    keep = on_tokens(ids) if on_tokens else None
    ended = keep is not None
    if ended:
      steps, ids = steps[:keep], ids[:keep]
    row = self.completion
    if not row.token_ids:
      self._first = now
    self._last = now
    self._extend(ids, output.info, steps, slot)
    stopped = ended or bool(ids and ids[-1] in self._stop_ids)
    if stopped:
      row.finish_reason = 'stop'
    full = len(row.token_ids) >= self._sampling.max_new_tokens
    self.running = not (stopped or full)
    return ended

  def _extend(self, ids, info, steps, slot):
    row, count = self.completion, self._sampling.logprobs
    row.token_ids += ids
    row.logprobs += info.logprob[steps, slot].tolist()
    row.logprobs_processed += info.logprob_processed[steps, slot].tolist()
    row.logprobs_filtered += info.logprob_filtered[steps, slot].tolist()
    row.surviving_mass += info.surviving_mass[steps, slot].tolist()
    if count:
      ids = info.top_ids[steps, slot, :count].tolist()
      logprobs = info.top_logprobs[steps, slot, :count].tolist()
      row.top += list(zip(ids, logprobs, strict=True))

  def finish(self) -> Completion:
    """The completion with its timing."""
    row = self.completion
    prefill_s, decode_s = self._first - self._began, self._last - self._first
    steps = len(row.token_ids) - 1
    row.timing = {
      'ttft_s': prefill_s,
      'prefill_s': prefill_s,
      'decode_s': decode_s,
      'prefill_tokens_per_s': row.prompt_tokens / prefill_s,
      'decode_tokens_per_s': steps / decode_s if decode_s else 0.0,
    }
    return row
