"""What `generate` and `score` refuse before JAX is imported.

That is all but what needs the tokenizer, the rows after the first one, or the
weights.
"""

import pathlib

from llm.engine.loading import open_model
from llm.engine.output import check_output
from llm.engine.requests import check_first_request, read_jsonl, run_sampling
from llm.engine.score_rows import parse_row
from llm.errors import UserError
from llm.text.chat_options import FIELDS, read_options


def check_generate(config) -> None:
  """Refuses fields, paths and a first row that `configs/generate.py` may not
  have.

  Raises:
    UserError: naming the field.
  """
  open_model(config)
  check_inputs(config)
  check_sizes(config)
  sampling = run_sampling(config.sampling)
  if config.output is not None:
    check_output(config.output)
  options = read_options(config)
  if config.prompts_file is not None:
    check_first_request(config.prompts_file, sampling, options)


def check_score(config) -> None:
  """Refuses fields, paths and a first row that `configs/score.py` may not have.

  Raises:
    UserError: naming the field.
  """
  for field in ('input', 'output'):
    if config[field] is None:
      raise UserError(f'{field} is not set: set --config.{field}=FILE.jsonl')
  if config.batch_size < 1:
    raise UserError(f'batch_size={config.batch_size}: use 1 or more')
  open_model(config)
  check_output(config.output)
  where, row = next(read_jsonl(config.input, 'input'))
  parse_row(row, where)


def check_inputs(config) -> None:
  """Refuses prompts that come from nowhere or from several places."""
  given = [
    name
    for name in ('prompt', 'prompts_file', 'chat')
    if config[name] is not None and config[name] is not False
  ]
  if len(given) != 1:
    raise UserError(
      f'{" and ".join(given) + " are" if given else "nothing is"} set: set '
      'exactly one of --config.prompt, --config.prompts_file and --config.chat'
    )
  options = [name for name in FIELDS if config[name] is not None]
  if config.prompt is not None and options:
    raise UserError(
      f'{options[0]}={config[options[0]]!r} with prompt: a plain prompt does '
      'not go through the chat template; use --config.chat=True, or messages '
      'in a prompts_file'
    )
  if config.chat and config.sampling.n != 1:
    raise UserError(f'sampling.n={config.sampling.n} with chat=True: use 1')
  if config.prompts_file is None:
    return
  if config.output is None:
    raise UserError(
      'prompts_file is set and output is not: set --config.output'
    )
  same = pathlib.Path(config.output).resolve()
  if same == pathlib.Path(config.prompts_file).resolve():
    raise UserError(
      f'output={config.output!r} is the prompts_file itself: name another file'
    )


def check_sizes(config) -> None:
  """Refuses sizes of batches and of calls that are below 1."""
  for field in ('batch_size', 'chunk_steps', 'prefill_chunk'):
    value = config[field]
    if value is not None and value < 1:
      raise UserError(f'{field}={value}: use 1 or more')
