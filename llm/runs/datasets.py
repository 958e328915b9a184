"""The rows of a run: read with a progress bar, checked and counted."""

from llm.data import dataset
from llm.data.examples import Examples, check_vocabulary
from llm.errors import UserError
from llm.host import terminal
from llm.runs import outputs
from llm.runs.train_model import ModelSpec


def check_data(data, spec: ModelSpec) -> None:
  """Refuses fields of `data` that do not fit each other or the model."""
  if data.path is None:
    raise UserError('data.path is not set: give a file (--config.data.path=…)')
  if data.eval_path is not None and data.eval_fraction:
    raise UserError(
      f'data.eval_path={data.eval_path!r} and data.eval_fraction='
      f'{data.eval_fraction}: set one of them'
    )
  limit = spec.config.max_length
  if data.max_length > limit and spec.config.rope.type != 'dynamic':
    raise UserError(
      f'data.max_length={data.max_length}: the model takes {limit} tokens '
      '(model.max_length)'
    )


def load_texts(config, spec: ModelSpec) -> tuple[Examples, Examples | None]:
  """The examples to train on and those held out, or None."""
  data, tok = config.data, spec.tokenizer
  check_data(data, spec)
  check_vocabulary(tok, spec.config.vocab_size)
  shared = {
    'max_length': data.max_length,
    'overlong': data.overlong,
    'separator': data.separator,
    'cache_dir': outputs.cache_dir(),
  }
  with terminal.progress_bar() as bar:
    examples, held_out = dataset.load_examples(
      data.path,
      tok,
      eval_fraction=data.eval_fraction,
      on_bytes=on_bytes(bar, 'reading data.path'),
      **shared,
    )
    if data.eval_path is not None:
      held_out, _ = dataset.load_examples(
        data.eval_path,
        tok,
        field='data.eval_path',
        on_bytes=on_bytes(bar, 'reading data.eval_path'),
        **shared,
      )
  _log(examples, held_out)
  others = sorted(set(examples.counts['shapes']) - {'text'})
  if data.curriculum and others:
    raise UserError(
      f'data.curriculum={data.curriculum}: {data.path} has rows of the shape '
      f'{others[0]}, whose answers it would cut from their questions; it is of '
      'texts'
    )
  return examples, held_out


def on_bytes(bar, text: str):
  """A callback (bytes done, bytes in all) that moves a bar."""
  task = bar.add_task(text, total=None)
  return lambda done, total: bar.update(task, completed=done, total=total)


def _log(examples: Examples, held_out: Examples | None) -> None:
  """What became of the rows; nothing is dropped silently."""
  counts = examples.counts
  rows = f'{counts["rows"]:,} rows'
  if len(counts['shapes']) > 1:  # such as a licence among the data
    of = (f'{count:,} {name}' for name, count in counts['shapes'].items())
    rows += f' ({", ".join(of)})'
  parts = [
    rows,
    f'{len(examples):,} examples to train on',
  ]
  if held_out is not None:
    parts.append(f'{len(held_out):,} held out')
  for name in ('truncated', 'split', 'dropped', 'emptied'):
    if counts.get(name):
      parts.append(f'{counts[name]:,} {name}')
  terminal.log('data: ' + ', '.join(parts))
