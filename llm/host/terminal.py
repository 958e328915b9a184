"""The terminal: progress bars, tables, remarks, and text from a model."""

from collections.abc import Sequence
import sys

from rich import console as rich_console
from rich import progress, table
from rich.markup import escape


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


def log(note: str | None) -> None:
  """Prints a remark on stderr, if there is one."""
  if note:
    print(note, file=sys.stderr)


def write_text(text: str) -> None:
  """Writes model text to stdout at once, without terminal control codes."""
  sys.stdout.write(printable(text))
  sys.stdout.flush()


def printable(text: str) -> str:
  """`text` with control characters shown as U+FFFD; newline and tab stay.

  A model can write escape sequences; a terminal must not obey them. Half a
  surrogate pair, which a row of data can hold, cannot be printed either.
  """
  return ''.join(
    c if c in '\n\t' or not _is_control(ord(c)) else '\ufffd' for c in text
  )


def _is_control(code: int) -> bool:
  return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000
