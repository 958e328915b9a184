"""A conversation in the terminal; replies appear while they are generated.

Every turn reads the whole conversation anew through the chat template, because
templates may rewrite earlier turns: what is shown is what the model was given.
"""

import contextlib
import dataclasses

from llm.engine import loading, requests
from llm.engine import phases as phases_lib
from llm.engine.completions import (
  TextModel,
  complete,
  output_row,
  plan_decoding,
)
from llm.engine.output import Output, open_output, sample_keys
from llm.errors import UserError
from llm.host import terminal
from llm.text.chat_options import ChatOptions, read_options

with contextlib.suppress(ImportError):  # Windows has none
  import readline  # noqa: F401 – gives `input` line editing and a history

HELP = (
  '/reset starts anew, /system TEXT gives another system prompt, /exit or '
  'Ctrl-D ends, Ctrl-C cuts a reply short'
)


def run(config, opened: loading.OpenedModel, sampling: dict) -> None:
  """Talks until the user leaves.

  Raises:
    UserError: the tokenizer has no chat template, or a field does not go with
      a chat.
  """
  source = opened.source
  if source.tokenizer is None or source.tokenizer.chat_template is None:
    raise UserError(
      f'chat=True needs a tokenizer with a chat template and {source.path!r} '
      'has none: use --config.prompt, or set tokenizer.path'
    )
  output = open_output(config.output, [], fresh=True) if config.output else None
  terminal.log(output and output.note(1))
  text_model = loading.load_weights(config, opened)
  terminal.log(HELP)
  messages, turn, options = [], 0, read_options(config)
  while (line := _read_line()) is not None:
    if line == '/reset':
      messages = []
      terminal.log('a new conversation')
    elif line.startswith('/system '):
      system = line.removeprefix('/system ').strip()
      options = dataclasses.replace(options, system=system)
      terminal.log(f'the system prompt is now {system!r}')
    elif line.startswith('/'):
      terminal.log(f'unknown command {line.split()[0]}; {HELP}')
    elif line:
      asked = [*messages, {'role': 'user', 'content': line}]
      try:
        reply = _reply(
          config, text_model, sampling, asked, options, turn, output
        )
      except UserError as error:
        terminal.log(f'error: {error}; or start anew with /reset')
        continue
      messages = [*asked, {'role': 'assistant', 'content': reply}]
      turn += 1


def _read_line() -> str | None:
  """The user's next line without spaces around it; None at the end."""
  try:
    line = input('> ').strip()
  except (EOFError, KeyboardInterrupt):
    print()
    return None
  return None if line == '/exit' else line


def _reply(
  config,
  text_model: TextModel,
  sampling: dict,
  messages: list[dict],
  options: ChatOptions,
  turn: int,
  output: Output | None,
) -> str:
  """Generates, shows and records one reply."""
  text, tokens = requests.prompt_tokens(
    {'messages': messages}, text_model.tokenizer, 'chat', options
  )
  request = requests.make_request(
    turn,
    text,
    tokens,
    sampling,
    text_model.limits,
    'chat',
    continues=False,
    tokenizer=text_model.tokenizer,
  )
  samples = requests.make_samples([request])
  phases, shown = phases_lib.Phases(), []

  def show(_, piece: str) -> None:
    shown.append(piece)
    terminal.write_text(piece)

  decoding = plan_decoding(config, samples)
  try:
    completions = list(
      complete(text_model, samples, decoding, phases=phases, show=show)
    )
  except KeyboardInterrupt:
    completions = []
  terminal.write_text('\n')
  if completions:
    terminal.log(_speed(phases))
  if output and completions:
    [key] = sample_keys(samples, loading.files_of(config), config.dtype)
    output.write(
      output_row(key, samples[0], completions[0], text_model.tokenizer)
    )
  return ''.join(shown)


def _speed(phases: phases_lib.Phases) -> str:
  record = phases_lib.phase_record(phases)
  return (
    f'[{phases.prompt_tokens} tokens read, first after '
    f'{record["ttft_s"]:.2f} s, {record["decode_tokens_per_s"]:,.0f} tokens/s]'
  )
