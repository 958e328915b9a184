"""A conversation in the terminal; answers appear while they are generated.

Every turn reads the whole conversation anew through the chat template, because
templates may rewrite earlier turns: what is shown is what the model was given.
"""

import contextlib

from llm.errors import UserError
from llm.tasks import loading, report, requests
from llm.tasks.answers import generate_rows, make_rows, plan_decoding
from llm.tasks.output import Output, open_output

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
  report.tell(output and output.note(1))
  loaded = loading.load_weights(config, source)
  report.tell(HELP)
  messages, turn = [], 0
  while (line := _read_line()) is not None:
    if line == '/reset':
      messages = []
      report.tell('a new conversation')
    elif line.startswith('/'):
      report.tell(f'unknown command {line.split()[0]}; {HELP}')
    elif line:
      asked = [*messages, {'role': 'user', 'content': line}]
      try:
        answer = _answer(config, loaded, sampling, asked, turn, output)
      except UserError as error:
        report.tell(f'error: {error}; or start anew with /reset')
        continue
      messages = [*asked, {'role': 'assistant', 'content': answer}]
      turn += 1


def _read_line() -> str | None:
  """The user's next line without spaces around it; None at the end."""
  try:
    line = input('> ').strip()
  except (EOFError, KeyboardInterrupt):
    print()
    return None
  return None if line == '/exit' else line


def _answer(
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
  phases, shown = report.Phases(), []

  def show(_, piece: str) -> None:
    shown.append(piece)
    report.write_text(piece)

  try:
    results = generate_rows(
      loaded, rows, plan_decoding(config, rows), phases, show
    )
  except KeyboardInterrupt:
    results = []
  report.write_text('\n')
  if results:
    report.tell(_speed(phases))
  if output:
    for result in results:
      output.write(result)
  return ''.join(shown)


def _speed(phases: report.Phases) -> str:
  record = report.phase_record(phases)
  return (
    f'[{phases.prompt_tokens} tokens read, first after '
    f'{record["ttft_s"]:.2f} s, {record["decode_tokens_per_s"]:,.0f} tokens/s]'
  )
