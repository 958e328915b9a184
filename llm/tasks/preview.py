"""The run `preview`: what each row of a file becomes in training."""

from collections.abc import Callable, Iterator
import contextlib
import itertools
import json
import os
import pathlib

from rich import console as rich_console

from llm.checkpoints.source import open_checkpoint
from llm.data import examples, reading, records
from llm.data.records import Record
from llm.engine.output import check_output
from llm.errors import UserError
from llm.host import terminal
from llm.models.config import length_limit
from llm.preview import show
from llm.preview.rows import KINDS, Reader, Seen, see_row
from llm.preview.summary import Summary
from llm.runs.checks import check_length, row_options
from llm.text.chat_options import check_template
from llm.text.tokenizer import load_tokenizer

_ON_PROMPTS = ('rl',)
_MAX_LENGTH = 512  # of the training configs


def run(config, workdir: str | None) -> None:
  """Shows the rows of `configs/preview.py`.

  Raises:
    UserError: a field or a file is wrong. A row that training would refuse is
      shown as left out.
  """
  reader = open_reader(config)
  several = len(records.find_files(config.data.path)) > 1
  has_loss = reader.kind not in _ON_PROMPTS
  summary = Summary(reader.max_length, has_loss)
  first = []
  with _opened(config.output) as write:
    for record, seen in _seen_rows(config, reader):
      name = f'{record.file}:{record.row}' if several else str(record.row)
      if summary.rows < config.show:
        first.append((seen, name))
      summary.add(seen, name)
      place = {'file': record.file} if several else {}
      row = show.seen_object(reader.tok, seen, has_loss)
      write(place | {'row': record.row} | row)
  # Not among the rows: a progress bar is there.
  console = rich_console.Console(highlight=False)
  for seen, name in first:
    _show(reader, seen, name, console)
  terminal.print_table(summary.table(reader.tok))
  if workdir:
    from llm.runs import outputs

    outputs.write_result(workdir, summary.record())


def check_fields(config) -> None:
  """Refuses fields and paths that have no meaning.

  Raises:
    UserError: naming the field.
  """
  if config.kind not in KINDS:
    raise UserError(f'kind={config.kind!r}: use one of {", ".join(KINDS)}')
  if config.model.path is None and config.tokenizer.path is None:
    raise UserError(
      'neither model.path nor tokenizer.path is set: give the model that will '
      'be trained, or its tokenizer'
    )
  data = config.data
  row_options(data)
  if data.path is None:
    raise UserError('data.path is not set: give a file (--config.data.path=…)')
  if data.step_separator is not None and config.kind != 'reward':
    raise UserError(
      f'data.step_separator={data.step_separator!r}: is of kind=reward'
    )
  overlong = _overlong(config)
  length = _MAX_LENGTH if data.max_length is None else data.max_length
  examples.check_options(length, overlong)
  if config.kind in _ON_PROMPTS and overlong != 'drop':
    raise UserError(
      f"data.overlong={overlong!r}: prompts are not cut; use 'drop'"
    )
  if config.kind not in ('sft', *_ON_PROMPTS):
    reading.check_options(length, overlong, 0.0)
  if config.limit is not None and config.limit < 1:
    raise UserError(f'limit={config.limit}: use 1 or more')
  if config.show < 0:
    raise UserError(f'show={config.show}: use 0 or more')
  files = records.find_files(data.path)
  if config.output is not None:
    check_output(config.output)
    _check_own(config.output, files)


def open_reader(config) -> Reader:
  """How the rows are read; reads the tokenizer, and no weights.

  Raises:
    UserError: a field is wrong, or there is no tokenizer.
  """
  check_fields(config)
  data, length = config.data, config.data.max_length
  if config.model.path is None:
    tok, limit = load_tokenizer(config.tokenizer.path), _MAX_LENGTH
  else:
    source = open_checkpoint(config.model.path, config.tokenizer.path)
    tok, limit = source.tokenizer, length_limit(source.config)
    if length is not None:
      check_length(data, limit)
  if tok is None:
    raise UserError(
      f'model.path={config.model.path!r} has no tokenizer: set '
      '--config.tokenizer.path'
    )
  tok = tok.with_tokens(config.tokenizer.add_tokens)
  options = row_options(data)
  check_template(tok, options.chat, 'data.')
  separator = data.step_separator
  return Reader(
    config.kind,
    tok,
    options,
    min(_MAX_LENGTH, limit) if length is None else length,
    _overlong(config),
    '\n' if separator is None else separator,
  )


def _overlong(config) -> str:
  default = 'drop' if config.kind in _ON_PROMPTS else 'truncate'
  given = config.data.overlong
  return default if given is None else given


def _seen_rows(config, reader: Reader) -> Iterator[tuple[Record, Seen]]:
  """The rows with what becomes of each, those that are refused too."""
  refused: list[tuple[Record, str]] = []
  with terminal.progress_bar() as bar:
    task = bar.add_task('reading data.path', total=None)
    rows = records.read_records(
      config.data.path,
      separator=config.data.separator,
      on_bytes=lambda done, total: bar.update(
        task, completed=done, total=total
      ),
      on_bad=lambda record, why: refused.append((record, why)),
    )
    found = itertools.chain.from_iterable(
      [*_taken(refused), (record, see_row(reader, record.value))]
      for record in rows
    )
    found = itertools.chain(found, _taken(refused))
    yield from itertools.islice(found, config.limit)


def _taken(refused: list) -> Iterator[tuple[Record, Seen]]:
  """The rows that could not be read since the last call."""
  while refused:
    record, why = refused.pop(0)
    yield record, Seen(left_out=why, counted='refused')


def _show(reader: Reader, seen: Seen, name: str, console) -> None:
  """A row in the terminal."""
  if seen.left_out is not None:
    why = terminal.printable(seen.left_out)
    console.print(f'row {name}: left out: {why}', markup=False)
  for part, example in seen.parts.items():
    count = f'{len(example.tokens):,} tokens'
    if reader.kind not in _ON_PROMPTS:
      count += f', {show.learned(example):,} learned'
    caption = ', '.join(filter(None, (f'row {name}', part, count)))
    show.print_example(reader.tok, example, caption, console)
  for part, why in seen.missing.items():
    console.print(f'row {name}, {part}: left out: {why}', markup=False)
  console.print()


def _check_own(path: str, files: list[pathlib.Path]) -> None:
  """Refuses to write over the rows themselves, or over something else."""
  out = pathlib.Path(path)
  if out.resolve() in [file.resolve() for file in files]:
    raise UserError(f'output={path!r} is data.path itself: name another file')
  if not out.exists() or not out.stat().st_size:
    return
  try:
    with out.open(encoding='utf-8') as file:
      is_ours = 'row' in json.loads(file.readline())
  except (ValueError, TypeError):
    is_ours = False
  if not is_ours:
    raise UserError(
      f'output={path!r} exists and is no preview: name another file'
    )


@contextlib.contextmanager
def _opened(path: str | None) -> Iterator[Callable[[dict], None]]:
  """Gives what writes a row; the file appears whole or not at all."""
  if path is None:
    yield lambda row: None
    return
  out = pathlib.Path(path)
  partial = out.with_name(f'{out.name}.partial')
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    # A lone surrogate in a row is written as JSON's escape of it.
    with partial.open('w', encoding='utf-8', errors='backslashreplace') as file:
      yield lambda row: print(json.dumps(row, ensure_ascii=False), file=file)
    os.replace(partial, out)
  except OSError as error:
    raise UserError(
      f'output={path!r}: cannot be written ({error.strerror})'
    ) from None
  finally:
    partial.unlink(missing_ok=True)
