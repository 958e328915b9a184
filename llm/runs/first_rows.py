"""The first examples of a run as it learns them: shown, and in a file."""

import json
import os

from rich import console as rich_console

from llm.data.examples import Examples
from llm.errors import RunError
from llm.parallel.distributed import is_writer
from llm.preview import show
from llm.runs.job import Job

ROWS = 8  # rows of preview.jsonl


def show_first(job: Job, examples: Examples, group: int = 1) -> None:
  """Writes `preview.jsonl` and shows the first example in the terminal.

  Rows of the file are {"example", "token_ids", "loss_weights", "text"}, of
  pairs {"example", "chosen": {…}, "rejected": {…}}; prompts have no weights.
  What a preview shows besides, such as rows that were left out, is not known
  here: see `configs/preview.py`.

  Args:
    job: the run.
    examples: those to train on, or prompts.
    group: examples that belong together: 2 for pairs.

  Raises:
    RunError: the file cannot be written.
  """
  if not is_writer():
    return
  console = rich_console.Console(stderr=True, highlight=False)
  tok = job.spec.tokenizer
  names = ('chosen', 'rejected') if group == 2 else ('',)
  rows = []
  for start in range(0, min(len(examples), ROWS * group), group):
    row = {'example': start // group + 1}
    for name, example in zip(names, examples.part(start, start + group)):
      learned = show.learned(example)
      part = show.as_object(tok, example, weights=learned > 0)
      row |= {name: part} if name else part
      if not start:
        count = f'{len(example.tokens):,} tokens'
        count += f', {learned:,} learned' if learned else ''
        caption = ', '.join(filter(None, ('first example', name, count)))
        show.print_example(tok, example, caption, console)
    rows.append(row)
  path = os.path.join(job.workdir, 'preview.jsonl')
  try:
    with open(path, 'w', encoding='utf-8') as file:
      file.writelines(json.dumps(r, ensure_ascii=False) + '\n' for r in rows)
  except OSError as error:
    raise RunError(
      f'{path}: {error.strerror}; fix this and start the same command again'
    ) from error
