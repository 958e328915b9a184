"""A conversation in the terminal; answers appear while they are generated.

Every turn reads the whole conversation anew through the chat template, because
templates may rewrite earlier turns: what is shown is what the model was given.
"""

import contextlib

from llm.engine import loading, requests
from llm.engine import phases as phases_lib
from llm.engine.completions import generate_rows, make_rows, plan_decoding
from llm.engine.output import Output, open_output
from llm.errors import UserError
from llm.host import terminal

with contextlib.suppress(ImportError):  # Windows has none
  import readline  # noqa: F401 – gives `input` line editing and a history

HELP = '/reset starts anew, /exit or Ctrl-D ends, Ctrl-C cuts an answer short'


def run(config, source: loading.Source, sampling: dict) -> None:
  """Talks until the user leaves.

  Raises:
    UserError: the tokenizer has no chat template, or a field does not go with
      a chat.
  """
  if source.tokenizer is None or source.tokenizer.chat_template is None:
    raise UserError(
      f'chat=True needs a tokenizer with a chat template and {source.path!r} '
      'has none: use --config.prompt, or set tokenizer.path'
    )
  if sampling.get('n', 1) != 1:
    raise UserError(f'sampling.n={sampling["n"]} with chat=True: use 1')
  output = open_output(config.output, [], fresh=True) if config.output else None
  terminal.log(output and output.note(1))
  loaded = loading.load_weights(config, source)
  terminal.log(HELP)
  messages, turn = [], 0
  while (line := _read_line()) is not None:
    if line == '/reset':
      messages = []
      terminal.log('a new conversation')
    elif line.startswith('/'):
      terminal.log(f'unknown command {line.split()[0]}; {HELP}')
    elif line:
      asked = [*messages, {'role': 'user', 'content': line}]
      try:
        completion = _complete(config, loaded, sampling, asked, turn, output)
      except UserError as error:
        terminal.log(f'error: {error}; or start anew with /reset')
        continue
      messages = [*asked, {'role': 'assistant', 'content': completion}]
      turn += 1


def _read_line() -> str | None:
  """The user's next line without spaces around it; None at the end."""
  try:
    line = input('> ').strip()
  except (EOFError, KeyboardInterrupt):
    print()
    return None
  return None if line == '/exit' else line


def _complete(
  config,
  loaded: loading.Loaded,
  sampling: dict,
  messages: list[dict],
  turn: int,
  output: Output | None,
) -> str:
  """Generates, shows and records one answer."""
  source = loaded.source
  text, tokens = requests.prompt_tokens(
    {'messages': messages}, source.tokenizer, 'chat'
  )
  request = requests.make_request(
    turn, text, tokens, sampling, source.limits, 'chat', continues=False
  )
  rows = make_rows([request], config)
  phases, shown = phases_lib.Phases(), []

  def show(_, piece: str) -> None:
    shown.append(piece)
    terminal.write_text(piece)

  try:
    results = generate_rows(
      loaded, rows, plan_decoding(config, rows), phases, show
    )
  except KeyboardInterrupt:
    results = []
  terminal.write_text('\n')
  if results:
    terminal.log(_speed(phases))
  if output:
    for result in results:
      output.write(result)
  return ''.join(shown)


def _speed(phases: phases_lib.Phases) -> str:
  record = phases_lib.phase_record(phases)
  return (
    f'[{phases.prompt_tokens} tokens read, first after '
    f'{record["ttft_s"]:.2f} s, {record["decode_tokens_per_s"]:,.0f} tokens/s]'
  )
