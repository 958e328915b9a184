"""The two phases of generation in numbers: prefill and decode."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from llm.decode.completion import Completion
from llm.host import bandwidth as bandwidth_lib
from llm.models.config import ModelConfig


@dataclasses.dataclass
class Phases:
  """Sums over the batches of a run; seconds, tokens and bytes.

  `ttft_s` holds one entry per batch, compilation included; the phases are
  without it. `decode_steps` counts steps of a whole batch, `decode_tokens` the
  tokens of all its rows after their first ones.
  """

  ttft_s: list[float] = dataclasses.field(default_factory=list)
  prompt_tokens: int = 0
  prefill_s: float = 0.0
  decode_tokens: int = 0
  decode_steps: int = 0
  decode_s: float = 0.0
  bytes_moved: float = 0.0
  compile_s: float = 0.0

  @property
  def bytes_per_s(self) -> float:
    """Bytes that a second of decoding moved; 0 without decode steps."""
    return self.bytes_moved / max(self.decode_s, 1e-9)


def add_batch(
  phases: Phases,
  config: ModelConfig,
  params: Any,
  prompts: Sequence[tuple[int, ...]],
  completions: Sequence[Completion],
) -> None:
  """Adds the times of one batch; equal prompts are read, and counted, once.

  Args:
    phases: changed in place.
    config: the shape of the model.
    params: its parameters.
    prompts: token ids, one entry per row.
    completions: of the rows, with `compile_s` in their timing.
  """
  timings = [completion.timing for completion in completions]
  steps = max(len(c.token_ids) for c in completions) - 1
  phases.ttft_s.append(max(t['ttft_s'] for t in timings))
  phases.prompt_tokens += sum(map(len, set(prompts)))
  phases.prefill_s += max(t['prefill_s'] for t in timings)
  phases.compile_s += max(t['compile_s'] for t in timings)
  phases.decode_tokens += sum(len(c.token_ids) - 1 for c in completions)
  phases.decode_steps += steps
  phases.decode_s += max(t['decode_s'] for t in timings)
  halfway = [c.prompt_tokens + len(c.token_ids) // 2 for c in completions]
  per_step = bandwidth_lib.step_bytes(config, params, halfway)
  phases.bytes_moved += steps * per_step


def phase_table(phases: Phases) -> list[tuple[str, str]]:
  """`phase_rows` with the bandwidth that the machine has now."""
  measured = bandwidth_lib.measure_bandwidth(at_least=phases.bytes_per_s)
  return phase_rows(phases, measured)


def phase_rows(phases: Phases, bandwidth: float) -> list[tuple[str, str]]:
  """(name, value) lines of the table.

  Args:
    phases: of the run.
    bandwidth: bytes per second that the machine was measured to read. Where
      decoding moved more, the measurement was disturbed (or the weights were
      in a cache), and no share of it is stated.
  """
  rows = []
  if phases.ttft_s:
    rows.append(
      ('time to first token', f'{_mean(phases.ttft_s) * 1e3:,.1f} ms')
    )
    rows.append(
      ('prefill', _rate(phases.prompt_tokens, phases.prefill_s)),
    )
  if phases.decode_steps:
    per_step = phases.decode_s / phases.decode_steps
    rows.append(('time per token', f'{per_step * 1e3:,.2f} ms'))
    rows.append(('decode', _rate(phases.decode_tokens, phases.decode_s)))
    moved = phases.bytes_per_s
    share = (
      f'{moved / bandwidth:.0%} of the'
      if moved <= bandwidth
      else 'more (other work, or a cache) than the'
    )
    rows.append(
      (
        'bytes moved in decode',
        f'{moved / 1e9:,.2f} GB/s, {share} {bandwidth / 1e9:,.1f} GB/s that '
        'this run measured',
      )
    )
  if phases.compile_s >= 0.05:
    what = 'not counted in the speeds above'
    rows.append(('compiling', f'{phases.compile_s:,.1f} s, {what}'))
  return rows


def phase_record(phases: Phases) -> dict[str, float]:
  """The numbers of the table, for a sweep to gather."""
  return {
    'ttft_s': _mean(phases.ttft_s),
    'prefill_tokens_per_s': phases.prompt_tokens / max(phases.prefill_s, 1e-9),
    'decode_tokens_per_s': phases.decode_tokens / max(phases.decode_s, 1e-9),
    'decode_bytes_per_s': phases.bytes_per_s,
    'compile_s': phases.compile_s,
  }


def _mean(values: list[float]) -> float:
  return sum(values) / len(values)


def _rate(tokens: int, seconds: float) -> str:
  return f'{tokens:,} tokens, {tokens / max(seconds, 1e-9):,.0f} tokens/s'
