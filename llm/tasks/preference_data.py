"""Pairs, rated answers and labelled steps: read, checked and counted."""

from collections.abc import Callable
from typing import Any

from llm.data.examples import check_vocabulary
from llm.errors import UserError
from llm.tasks import report, supervised
from llm.tasks.trainee import Blueprint

_LEFT_OUT = ('truncated', 'dropped', 'emptied', 'empty', 'equal')


def load(
  config, blueprint: Blueprint, read: Callable, name: str, **options: Any
) -> tuple[Any, Any]:
  """The data to train on and those held out, or None; tells what became of it.

  Args:
    config: of the run.
    blueprint: the model.
    read: such as `pairs.load_pairs`.
    name: what it reads, for messages.
    **options: keywords of `read`.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  data, tok = config.data, blueprint.tokenizer
  if data.curriculum or data.separator:
    raise UserError(
      f'data.curriculum and data.separator are of texts: leave them unset for '
      f'{name}'
    )
  supervised.check_data(data, blueprint)
  check_vocabulary(tok, blueprint.config.vocab_size)
  options |= {'max_length': data.max_length, 'overlong': data.overlong}
  with report.progress_bar() as bar:
    examples, held_out = read(
      data.path,
      tok,
      eval_fraction=data.eval_fraction,
      on_bytes=supervised.on_bytes(bar, 'reading data.path'),
      **options,
    )
    if data.eval_path is not None:
      held_out, _ = read(
        data.eval_path,
        tok,
        field='data.eval_path',
        on_bytes=supervised.on_bytes(bar, 'reading data.eval_path'),
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
  report.tell('data: ' + ', '.join(parts))
  return examples, held_out
