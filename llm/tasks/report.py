"""What a run shows in the terminal: progress bars and the table of phases."""

from collections.abc import Sequence
import dataclasses
import sys

from rich import console as rich_console
from rich import progress, table
from rich.markup import escape


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


def progress_bar(unit: str | None = None) -> progress.Progress:
  """A bar on stderr, if that is a terminal; it leaves nothing behind.

  `unit` is what it counts; None: bytes.
  """
  console = rich_console.Console(stderr=True)
  count = (
    (progress.MofNCompleteColumn(), progress.TextColumn(unit))
    if unit
    else (progress.DownloadColumn(),)
  )
  return progress.Progress(
    progress.TextColumn('{task.description}'),
    progress.BarColumn(),
    *count,
    progress.TimeRemainingColumn(),
    console=console,
    disable=not console.is_terminal,
    transient=True,
  )


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


def print_table(rows: list[tuple[str, str]]) -> None:
  """Prints (name, value) lines as a small table on stdout."""
  grid = table.Table(show_header=False, box=None, pad_edge=False)
  grid.add_column(style='dim')
  grid.add_column()
  for name, value in rows:
    grid.add_row(name, value)
  rich_console.Console(highlight=False, soft_wrap=True).print(grid)


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
  """Prints rows of texts under a header on stdout."""
  grid = table.Table(box=None, pad_edge=False, header_style='dim')
  for name in header:
    grid.add_column(name)
  for row in rows:
    grid.add_row(*(escape(cell) for cell in row))
  rich_console.Console(highlight=False).print(grid)


def tell(note: str | None) -> None:
  """Prints a remark on stderr, if there is one."""
  if note:
    print(note, file=sys.stderr)


def write_text(text: str) -> None:
  """Writes model text to stdout at once, without terminal control codes."""
  sys.stdout.write(printable(text))
  sys.stdout.flush()


def printable(text: str) -> str:
  """`text` with control characters shown as U+FFFD; newline and tab stay.

  A model can write escape sequences; a terminal must not obey them.
  """
  return ''.join(
    c if c in '\n\t' or not _is_control(ord(c)) else '\ufffd' for c in text
  )


def _is_control(code: int) -> bool:
  return code < 0x20 or 0x7F <= code < 0xA0


def _mean(values: list[float]) -> float:
  return sum(values) / len(values)


def _rate(tokens: int, seconds: float) -> str:
  return f'{tokens:,} tokens, {tokens / max(seconds, 1e-9):,.0f} tokens/s'
