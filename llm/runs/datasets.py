"""The rows of a run: read with a progress bar, checked and counted."""

from collections.abc import Callable
import functools
from typing import Any

from llm.data import dataset, prompts, reading
from llm.data.examples import Examples, check_vocabulary
from llm.data.prompts import Prompt
from llm.errors import UserError
from llm.host import terminal
from llm.models.config import length_limit
from llm.runs import outputs
from llm.runs.checks import check_data, row_options
from llm.runs.train_model import ModelSpec
from llm.text.chat_options import check_template

# The counts that are logged where they are not 0.
_LEFT_OUT = (
  'truncated', 'split', 'dropped', 'emptied', 'empty', 'equal', 'overlong',
)  # fmt: skip
_IN_WORDS = {'overlong': 'too long'}


def load_texts(config, spec: ModelSpec) -> tuple[Examples, Examples | None]:
  """The examples to train on and those held out, or None.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  data = config.data
  examples, held_out = _load_rows(
    config,
    spec,
    dataset.load_examples,
    'examples',
    separator=data.separator,
    cache_dir=outputs.cache_dir(),
  )
  others = sorted(set(examples.counts['shapes']) - {'text'})
  if data.curriculum and others:
    raise UserError(
      f'data.curriculum={data.curriculum}: {data.path} has rows of the shape '
      f'{others[0]}, whose completions it would cut from their prompts; it is '
      'of texts'
    )
  return examples, held_out


def load_ratings(
  config, spec: ModelSpec, load: Callable, name: str, **options: Any
) -> tuple[Any, Any]:
  """The rated completions to train on and those held out, or None.

  Args:
    config: of the run.
    spec: the model.
    load: such as `pairs.load_pairs`, `rated.load_rated`, `steps.load_steps`.
    name: what it loads, in the plural, for messages.
    **options: more keywords of `load`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  if config.data.curriculum or config.data.separator:
    raise UserError(
      f'data.curriculum and data.separator are of texts: leave them unset for '
      f'{name}'
    )
  return _load_rows(config, spec, load, name, **options)


def load_prompts(
  config,
  spec: ModelSpec,
  check: Callable[[dict[str, Any]], None] = lambda row: None,
  load_eval: Callable | None = None,
) -> tuple[list[Prompt], Any, dict[str, Any]]:
  """The prompts to train on, what is held out or None, and counts of the rows.

  Args:
    config: of the run.
    spec: the model.
    check: raises a UserError for a row that cannot be used.
    load_eval: reads `data.eval_path`, such as `dataset.load_examples`; None:
      it has prompts too.

  Raises:
    UserError: a file or a row is wrong; the message says which.
  """
  data, counts = config.data, {}
  check_vocabulary(spec.tokenizer, spec.config.vocab_size)
  check_template(spec.tokenizer, row_options(data).chat, 'data.')

  def load(path, field, **options):
    found, counts[field] = prompts.load_prompts(
      path,
      spec.tokenizer,
      max_length=data.max_length,
      check=check,
      options=row_options(data),
      field=field,
      **options,
    )
    return found, None

  found, held_out = _read_files(data, load, load_eval or load)
  if data.eval_fraction:
    train = reading.train_share(len(found), data.eval_fraction, 'prompts')
    found, held_out = found[:train], found[train:]
  overlong = sum(of_file['overlong'] for of_file in counts.values())
  _log([f'{len(found):,} prompts'], held_out, {'overlong': overlong})
  return found, held_out, counts['data.path']


def _load_rows(config, spec: ModelSpec, load, name: str, **options: Any):
  """Calls a loader of `llm.data` for each file, and logs what it counted."""
  data, tok = config.data, spec.tokenizer
  check_data(data, length_limit(spec.config))
  check_vocabulary(tok, spec.config.vocab_size)
  check_template(tok, row_options(data).chat, 'data.')
  load = functools.partial(
    load,
    tok=tok,
    max_length=data.max_length,
    overlong=data.overlong,
    # 0 where there is a data.eval_path, see `check_data`.
    eval_fraction=data.eval_fraction,
    options=row_options(data),
    **options,
  )
  found, held_out = _read_files(data, load, load)
  counts = found.counts
  rows, shapes = f'{counts["rows"]:,} rows', counts.get('shapes', {})
  if len(shapes) > 1:  # such as a licence among the data
    of = (f'{count:,} {shape}' for shape, count in shapes.items())
    rows += f' ({", ".join(of)})'
  _log([rows, f'{len(found):,} {name} to train on'], held_out, counts)
  unread = dict(counts['unread'])
  if data.eval_path is not None:
    unread |= held_out.counts['unread']
  for file, columns in unread.items():
    terminal.log(
      f'data: {file}: not read: {", ".join(columns)} (data.ignore_columns '
      'names what need not be said)'
    )
  return found, held_out


def _read_files(data, load: Callable, load_eval: Callable):
  """`data.path` by `load`, `data.eval_path` by `load_eval`; with a bar.

  Both take (path, field=, on_bytes=) and return (what to train on, what is held
  out or None).
  """
  with terminal.progress_bar() as bar:

    def read(field, load):
      task = bar.add_task(f'reading {field}', total=None)

      def on_bytes(done, total):
        bar.update(task, completed=done, total=total)

      path = data[field.removeprefix('data.')]
      return load(path, field=field, on_bytes=on_bytes)

    found, held_out = read('data.path', load)
    if data.eval_path is not None:
      held_out, _ = read('data.eval_path', load_eval)
  return found, held_out


def _log(parts: list[str], held_out: Any, counts: dict[str, Any]) -> None:
  """Says what became of the rows; nothing is dropped silently."""
  if held_out is not None:
    parts.append(f'{len(held_out):,} held out')
  for name in _LEFT_OUT:
    if counts.get(name):
      parts.append(f'{counts[name]:,} {_IN_WORDS.get(name, name)}')
  terminal.log('data: ' + ', '.join(parts))
