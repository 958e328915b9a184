"""The run `score`: log-probabilities of given tokens."""

import math
import time

from llm.decode.score import score
from llm.engine import loading
from llm.engine.checks import check_score
from llm.engine.output import digest, open_output
from llm.engine.score_rows import read_rows
from llm.host import terminal
from llm.runs import outputs


def run(config, workdir: str | None) -> None:
  """Scores the rows of `configs/score.py`.

  Every row is checked before the weights are read.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  check_score(config)
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
