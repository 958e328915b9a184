"""The run `generate`: one prompt, a file of prompts, or a chat."""

from collections.abc import Iterator
import pathlib
import sys

from rich import console as rich_console

from llm.engine import loading, requests
from llm.engine import phases as phases_lib
from llm.engine.completions import Row, generate_rows, make_rows, plan_decoding
from llm.engine.output import Output, open_output
from llm.engine.requests import Request
from llm.errors import UserError
from llm.host import bandwidth, terminal
from llm.host.compile_clock import compile_clock
from llm.runs import outputs


def run(config, workdir: str | None) -> None:
  """Generates what `configs/generate.py` asks for.

  Every input is checked before the weights are read.

  Raises:
    UserError: a field, a file or a row is wrong; the message says which.
  """
  compile_clock()
  source = loading.open_model(config)
  _check_inputs(config)
  sampling = requests.run_sampling(config.sampling)
  if config.chat:
    from llm.tasks import chat

    chat.run(config, source, sampling)
    return
  rows = make_rows(_read_requests(config, source, sampling), config)
  single = config.prompts_file is None
  output = None
  if config.output is not None:
    output = open_output(config.output, [r.key for r in rows], fresh=single)
    terminal.log(output.note(len(rows)))
    rows = [row for row in rows if row.key not in output.done]
  if not rows:
    return
  decoding = plan_decoding(config, rows)
  loaded = loading.load_weights(config, source)
  if single:
    phases = _run_single(loaded, rows, decoding, output)
  else:
    phases = _run_file(loaded, rows, decoding, output)
  table = phases_lib.phase_rows(phases, bandwidth.measure_bandwidth())
  if output:
    table.insert(0, ('written', f'{len(rows):,} answers to {output.path}'))
  terminal.print_table(table)
  if workdir:
    outputs.write_result(workdir, phases_lib.phase_record(phases))


def _check_inputs(config) -> None:
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


def _read_requests(config, source, sampling: dict) -> list[Request]:
  if config.prompts_file is not None:
    return requests.read_requests(
      config.prompts_file, source.tokenizer, sampling, source.limits
    )
  row = {'prompt': config.prompt}
  where = 'prompt'
  text, tokens = requests.prompt_tokens(row, source.tokenizer, where)
  return [
    requests.make_request(0, text, tokens, sampling, source.limits, where)
  ]


def _run_single(loaded, rows, decoding, output) -> phases_lib.Phases:
  """One prompt: its text appears while it is generated."""
  phases = phases_lib.Phases()
  several = len(rows) > 1
  prompt = rows[0].request.prompt
  if prompt and not several:
    _print_prompt(prompt)
  for batch in _batches(rows, decoding.batch_size):
    show = None if several else (lambda _, text: terminal.write_text(text))
    for result in generate_rows(loaded, batch, decoding, phases, show):
      if several:
        terminal.write_text(f'[{result["sample"]}] ')
        if prompt:
          _print_prompt(prompt)
        terminal.write_text(result['text'] or '')
      if result['text'] is None:
        terminal.write_text(f'token_ids: {result["token_ids"]}')
      terminal.write_text('\n\n')
      if output:
        output.write(result)
  return phases


def _run_file(loaded, rows, decoding, output: Output) -> phases_lib.Phases:
  """A file of prompts: a bar, and each batch's rows written when it is done."""
  phases = phases_lib.Phases()
  with terminal.progress_bar('answers') as bar:
    task = bar.add_task('generating', total=len(rows))
    for batch in _batches(rows, decoding.batch_size):
      for result in generate_rows(loaded, batch, decoding, phases):
        output.write(result)
        bar.advance(task)
  return phases


def _batches(rows: list[Row], size: int) -> Iterator[list[Row]]:
  for first in range(0, len(rows), size):
    yield rows[first : first + size]


def _print_prompt(prompt: str) -> None:
  console = rich_console.Console(highlight=False, markup=False, emoji=False)
  console.print(terminal.printable(prompt), style='dim', end='', soft_wrap=True)
  sys.stdout.flush()
