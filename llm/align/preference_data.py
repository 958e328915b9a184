"""Pairs, rated answers and labelled steps: read, checked and counted."""

from collections.abc import Callable
from typing import Any

from llm.data.examples import check_vocabulary
from llm.errors import UserError
from llm.host import terminal
from llm.runs import datasets
from llm.runs.train_model import ModelSpec

_LEFT_OUT = ('truncated', 'dropped', 'emptied', 'empty', 'equal')


def load(
  config, spec: ModelSpec, read: Callable, name: str, **options: Any
) -> tuple[Any, Any]:
  """The data to train on and those held out, or None; tells what became of it.

  Args:
    config: of the run.
    spec: the model.
    read: such as `pairs.load_pairs`.
    name: what it reads, for messages.
    **options: keywords of `read`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  data, tok = config.data, spec.tokenizer
  if data.curriculum or data.separator:
    raise UserError(
      f'data.curriculum and data.separator are of texts: leave them unset for '
      f'{name}'
    )
  datasets.check_data(data, spec)
  check_vocabulary(tok, spec.config.vocab_size)
  options |= {'max_length': data.max_length, 'overlong': data.overlong}
  with terminal.progress_bar() as bar:
    examples, held_out = read(
      data.path,
      tok,
      eval_fraction=data.eval_fraction,
      on_bytes=datasets.on_bytes(bar, 'reading data.path'),
      **options,
    )
    if data.eval_path is not None:
      held_out, _ = read(
        data.eval_path,
        tok,
        field='data.eval_path',
        on_bytes=datasets.on_bytes(bar, 'reading data.eval_path'),
        **options,
      )
  counts = examples.counts
  parts = [
    f'{counts["rows"]:,} rows',
    f'{len(examples):,} {name} to train on',
  ]
  if held_out is not None:
    parts.append(f'{len(held_out):,} held out')
  parts += [f'{counts[n]:,} {n}' for n in _LEFT_OUT if counts.get(n)]
  terminal.log('data: ' + ', '.join(parts))
  return examples, held_out
