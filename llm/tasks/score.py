"""The run `score`: log-probabilities of given tokens."""

import math
import time

from llm.decode.score import score
from llm.engine import loading, requests
from llm.engine.output import digest, open_output
from llm.engine.requests import Limits
from llm.errors import UserError
from llm.host import terminal
from llm.runs import outputs

ROW_KEYS = ('token_ids', 'prompt', 'completion')
TEXT_KEYS = ('prompt', 'completion')


def run(config, workdir: str | None) -> None:
  """Scores the rows of `configs/score.py`.

  Every row is checked before the weights are read.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  for field in ('input', 'output'):
    if config[field] is None:
      raise UserError(f'{field} is not set: set --config.{field}=FILE.jsonl')
  if config.batch_size < 1:
    raise UserError(f'batch_size={config.batch_size}: use 1 or more')
  opened = loading.open_model(config)
  rows = read_rows(config.input, opened.source.tokenizer, opened.limits)
  model = [*loading.files_of(config), config.dtype]
  keys = [
    (i, 0, digest(model, tokens, prompt_tokens))
    for i, (tokens, prompt_tokens) in enumerate(rows)
  ]
  output = open_output(config.output, keys)
  terminal.log(output.note(len(rows)))
  left = [i for i, key in enumerate(keys) if key not in output.done]
  if not left:
    return
  text_model = loading.load_weights(config, opened)
  began = time.perf_counter()
  with terminal.progress_bar('rows') as bar:
    task = bar.add_task('scoring', total=len(left))

    def write(i, logprobs):
      tokens, prompt_tokens = rows[left[i]]
      output.write(_result(keys[left[i]], tokens, prompt_tokens, logprobs))
      bar.advance(task)

    score(
      text_model.model,
      text_model.params,
      [rows[i][0] for i in left],
      batch_size=config.batch_size,
      on_row=write,
    )
  seconds = time.perf_counter() - began
  count = sum(len(rows[i][0]) for i in left)
  terminal.print_table(
    [
      ('scored', f'{len(left):,} rows, {count:,} tokens'),
      ('rate', f'{count / seconds:,.0f} tokens/s, compilation included'),
    ]
  )
  if workdir:
    outputs.write_result(
      workdir, {'tokens': count, 'tokens_per_s': count / seconds}
    )


def read_rows(
  path: str, tokenizer, limits: Limits
) -> list[tuple[tuple[int, ...], int]]:
  """Reads and checks the whole input: (token ids, prompt tokens) per row.

  Raises:
    UserError: the first bad row, by its line, field and value.
  """
  rows = []
  for where, row in requests.read_jsonl(path, 'input'):
    requests.check_keys(row, ROW_KEYS, where)
    if set(row) == {'token_ids'}:
      tokens = requests.token_list(row['token_ids'], 'token_ids', where)
      prompt_tokens = 0
    elif set(row) == set(TEXT_KEYS):
      tokens, prompt_tokens = _encode(row, tokenizer, where)
    else:
      raise UserError(
        f'{where}: has {" and ".join(row) or "no key"}: give either token_ids '
        'or prompt and completion'
      )
    if not tokens:
      raise UserError(f'{where}: there is no token to score: give at least one')
    requests.check_tokens(tokens, limits, where)
    rows.append((tokens, prompt_tokens))
  return rows


def _encode(row, tokenizer, where: str) -> tuple[tuple[int, ...], int]:
  """Tokens of the joined text, and how many of them end inside the prompt.

  The text is encoded as one, because tokenizers that mark the start of a text
  would put a space between two parts.
  """
  if tokenizer is None:
    raise UserError(
      f'{where}: text needs a tokenizer and none lies beside the model: set '
      'tokenizer.path, or give token_ids'
    )
  for key in TEXT_KEYS:
    if not isinstance(row[key], str):
      raise UserError(f'{where}: {key}={row[key]!r}: give a string')
  prompt = row['prompt']
  try:
    tokens, offsets = tokenizer.encode_with_offsets(prompt + row['completion'])
  except UserError as error:
    raise UserError(f'{where}: {error}') from None
  in_prompt = sum(end <= len(prompt) for _, end in offsets)
  return tuple(tokens), in_prompt


def _result(key, tokens, prompt_tokens: int, logprobs) -> dict:
  index, sample, row_id = key
  # JSON has no infinity: a token of probability 0 is null, like the first.
  values = [v if math.isfinite(v) else None for v in logprobs.tolist()]
  return {
    'index': index,
    'sample': sample,
    'id': row_id,
    'token_ids': list(tokens),
    'logprobs': [None, *values],
    'prompt_tokens': prompt_tokens,
  }
