"""Files of text rows to examples, kept on disk for the next start."""

from collections.abc import Callable
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np

from llm.data import examples as examples_lib
from llm.data import reading, records, shapes
from llm.data.columns import RowOptions
from llm.data.examples import Example, Examples
from llm.errors import UserError

# Part of the key; raise it whenever the same rows give other examples.
_VERSION = 2
_PARTS = {'tokens': np.int32, 'loss_weights': np.float32, 'lengths': np.int64}


def load_examples(
  path,
  tok,
  *,
  max_length: int,
  overlong: str = 'truncate',
  separator: str | None = None,
  eval_fraction: float = 0.0,
  options: RowOptions = RowOptions(),
  cache_dir=None,
  field: str = 'data.path',
  on_bytes: Callable[[int, int], None] | None = None,
) -> tuple[Examples, Examples | None]:
  """Reads, checks and tokenizes files of text rows.

  Args:
    path: see `records.read_records`.
    tok: a `Tokenizer`.
    max_length: tokens of a row.
    overlong: what to do with longer rows, see `examples.fit_example`.
    separator: stands between the documents of plain text.
    eval_fraction: the share of the rows that is held out, the last ones. Of a
      single text the last characters are held out, as in nanoGPT.
    options: how rows are read.
    cache_dir: the examples are kept below this folder, under a name made of the
      files' content, the tokenizer and these options, and mapped into memory.
      None keeps them in memory.
    field: the config field of `path`, for messages.
    on_bytes: progress, called with (bytes done, bytes in all).

  Returns:
    examples to train on, and those held out (None for eval_fraction=0). Both
    have the counts of the whole file.

  Raises:
    UserError: a bad file, row or option, by name and row number, before
      anything is returned.
  """
  examples_lib.check_options(max_length, overlong)
  reading.check_fraction(eval_fraction)
  files = records.find_files(path, field)
  # The rows held out may be no texts, though training is on texts.
  is_cut = field != 'data.path' or any(map(records.is_text, files))
  if separator is not None and not is_cut:
    raise UserError(
      f'data.separator={separator!r}: {files[0]} is no text to cut; leave it '
      'unset'
    )
  loaded = folder = None
  if cache_dir is not None:
    settings = [max_length, overlong, separator, eval_fraction]
    settings.append(dataclasses.asdict(options))
    folder = pathlib.Path(cache_dir, 'examples', _key(files, tok, settings))
    loaded = _load(folder)
  if loaded is None:
    rows = records.read_records(
      files, field=field, separator=separator, on_bytes=on_bytes
    )
    loaded = _store(
      folder,
      lambda files: _write(
        files, rows, tok, max_length, overlong, eval_fraction, options
      ),
    )
  examples, train = loaded
  if not len(examples):
    counts = examples.counts
    raise UserError(
      f'{field}: no row is left of {counts["rows"]}: {counts["dropped"]} were'
      f' dropped for their length and {counts["emptied"]} kept nothing to'
      ' learn; use a larger data.max_length'
    )
  if not eval_fraction:
    return examples, None
  if not 0 < train < len(examples):
    raise UserError(
      f'data.eval_fraction={eval_fraction}: of {len(examples)} examples it'
      f' leaves {train} to train on and {len(examples) - train} to hold out;'
      ' both need at least one'
    )
  return examples.part(0, train), examples.part(train, len(examples))


def encode_text(
  tok,
  value: dict[str, Any],
  options: RowOptions,
  max_length: int,
  overlong: str,
  counts: dict[str, Any],
) -> tuple[list[Example], list[str]]:
  """What is learned of a row: examples, none for a row that is left out.

  Args:
    tok: a `Tokenizer`.
    value: the row, as it stands in its file.
    options: how rows are read.
    max_length, overlong: as for `load_examples`.
    counts: what happens to a row is counted up, its shape in 'shapes'.

  Returns:
    the examples, and the columns that were not read.

  Raises:
    UserError: the row is refused.
  """
  row = shapes.canonical_row(value, bool(tok.chat_templates), options)
  counts['shapes'][row.shape] = counts['shapes'].get(row.shape, 0) + 1
  whole = examples_lib.encode_row(tok, row, options.learn)
  is_text = row.text is not None
  parts = reading.fit_row([whole], max_length, overlong, counts, is_text)
  unread = examples_lib.unread_columns(tok, [row], options)
  return (parts[0] if parts else []), unread


def _write(
  files, rows, tok, max_length, overlong, eval_fraction, options
) -> dict:
  """Writes the arrays of all rows to open files.

  Returns:
    the note to keep beside them: counts, digest, how many are to train on.
  """
  rows, is_cut = _cut_text(rows, eval_fraction)
  counts = dict.fromkeys(
    ('rows', 'examples', 'truncated', 'dropped', 'emptied', 'split'), 0
  )
  counts['shapes'] = {}
  ends = [0]  # how many examples there are before each row
  digest = hashlib.sha256()

  def encode(value):
    return encode_text(tok, value, options, max_length, overlong, counts)

  for kept in reading.encode_records(rows, encode, counts):
    for example in kept:
      parts = (*example, np.int64(len(example.tokens)))
      for name, part in zip(_PARTS, parts):
        data = part.tobytes()
        files[name].write(data)
        digest.update(data)
    counts['examples'] += len(kept)
    ends.append(counts['examples'])
  train = 1 if is_cut else reading.train_count(counts['rows'], eval_fraction)
  if is_cut:
    counts['rows'], counts['shapes'] = 1, {'text': 1}
  return {
    'counts': counts,
    'train_examples': ends[train],
    'digest': digest.hexdigest(),
  }


def _cut_text(rows, eval_fraction: float):
  """Splits a text that is the only row; its second part is to be held out.

  Returns:
    the rows, and whether there was such a text.
  """
  first = list(itertools.islice(rows, 2))
  text = first[0].value.get('text') if len(first) == 1 else None
  if not eval_fraction or not isinstance(text, str) or len(first[0].value) > 1:
    return itertools.chain(first, rows), False
  cut = int(len(text) * (1 - eval_fraction) + 1e-9)
  if not 0 < cut < len(text):
    raise UserError(
      f'data.eval_fraction={eval_fraction}: of a text of {len(text)} characters'
      f' it leaves {cut} to train on; both parts need at least one'
    )
  parts = [{'text': part} for part in (text[:cut], text[cut:])]
  return [dataclasses.replace(first[0], value=part) for part in parts], True


def _key(files, tok, settings: list) -> str:
  """A name for the examples that changes with all that they depend on."""
  parts = [_VERSION, settings, _fingerprint(tok)]
  for file in files:
    with file.open('rb') as opened:
      content = hashlib.file_digest(opened, 'sha256').hexdigest()
    parts.append([file.suffixes[-2:], content])
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _fingerprint(tok) -> list:
  """Names and digests of the files that the tokenizer would be saved as."""
  with tempfile.TemporaryDirectory() as folder:
    tok.save(folder)
    return [
      [file.name, hashlib.sha256(file.read_bytes()).hexdigest()]
      for file in sorted(pathlib.Path(folder).rglob('*'))
      if file.is_file()
    ]


def _store(folder: pathlib.Path | None, write) -> tuple[Examples, int]:
  """Runs `write` on open files, in memory or for `folder`, and loads them.

  The folder appears whole or not at all.
  """
  if folder is None:
    files = {name: io.BytesIO() for name in _PARTS}
    note = write(files)
    arrays = {
      name: np.frombuffer(file.getbuffer(), _PARTS[name])
      for name, file in files.items()
    }
    return _assemble(arrays, note)
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = tempfile.mkdtemp(prefix='partial-', dir=folder.parent)
    partial = pathlib.Path(partial)
    try:
      with contextlib.ExitStack() as stack:
        note = write(
          {
            name: stack.enter_context((partial / name).open('wb'))
            for name in _PARTS
          }
        )
      (partial / 'note.json').write_text(json.dumps(note), encoding='utf-8')
      shutil.rmtree(folder, ignore_errors=True)  # a damaged one
      # Another process may have been quicker; its folder is as good.
      with contextlib.suppress(OSError):
        os.rename(partial, folder)
    finally:
      shutil.rmtree(partial, ignore_errors=True)
    return _load(folder)
  except OSError as error:
    raise UserError(
      f'{folder.parent}: the tokenized rows cannot be kept there ({error});'
      ' set LLM_CACHE_DIR to a folder with room'
    ) from None


def _load(folder: pathlib.Path) -> tuple[Examples, int] | None:
  """Maps stored arrays into memory; None if they are missing or damaged."""
  try:
    note = json.loads((folder / 'note.json').read_text(encoding='utf-8'))
    arrays = {}
    for name, dtype in _PARTS.items():
      size = (folder / name).stat().st_size
      arrays[name] = np.zeros(0, dtype)
      if size:  # An empty file cannot be mapped.
        arrays[name] = np.memmap(folder / name, dtype, 'r')
    return _assemble(arrays, note)
  except (OSError, ValueError, KeyError):
    return None


def _assemble(arrays: dict, note: dict) -> tuple[Examples, int]:
  offsets = np.concatenate([[0], np.cumsum(arrays['lengths'])])
  offsets = offsets.astype(np.int64)
  sizes = {offsets[-1], len(arrays['tokens']), len(arrays['loss_weights'])}
  if len(sizes) > 1 or len(offsets) - 1 != note['counts']['examples']:
    raise ValueError('the arrays do not belong together')
  examples = Examples(
    tokens=arrays['tokens'],
    loss_weights=arrays['loss_weights'],
    offsets=offsets,
    digest=note['digest'],
    counts=note['counts'],
  )
  return examples, note['train_examples']
