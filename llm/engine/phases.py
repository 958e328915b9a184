"""The two phases of generation in numbers: prefill and decode."""

import dataclasses


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


def phase_rows(phases: Phases, bandwidth: float) -> list[tuple[str, str]]:
  """(name, value) lines of the table; `bandwidth` in bytes per second."""
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
    moved = phases.bytes_moved / max(phases.decode_s, 1e-9)
    rows.append(
      (
        'bytes moved in decode',
        f'{moved / 1e9:,.2f} GB/s, {moved / bandwidth:.0%} of the '
        f'{bandwidth / 1e9:,.1f} GB/s that this run measured',
      )
    )
  if phases.compile_s >= 0.05:
    what = 'which no rate above counts'
    rows.append(('compiling', f'{phases.compile_s:,.1f} s, {what}'))
  return rows


def phase_record(phases: Phases) -> dict[str, float]:
  """The numbers of the table, for a sweep to gather."""
  return {
    'ttft_s': _mean(phases.ttft_s),
    'prefill_tokens_per_s': phases.prompt_tokens / max(phases.prefill_s, 1e-9),
    'decode_tokens_per_s': phases.decode_tokens / max(phases.decode_s, 1e-9),
    'decode_bytes_per_s': phases.bytes_moved / max(phases.decode_s, 1e-9),
    'compile_s': phases.compile_s,
  }


def _mean(values: list[float]) -> float:
  return sum(values) / len(values)


def _rate(tokens: int, seconds: float) -> str:
  return f'{tokens:,} tokens, {tokens / max(seconds, 1e-9):,.0f} tokens/s'
