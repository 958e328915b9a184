"""The shapes of text rows, and the one form they are converted to."""

import dataclasses
from typing import Any

from llm.errors import UserError

SHAPES = (
  '{"messages": […]}',
  '{"prompt": …, "completion": …} (or "response")',
  '{"text": …}',
  '{"instruction": …, "input": …, "output": …} (Alpaca)',
  '{"conversations": [{"from": …, "value": …}]} (ShareGPT)',
)
SHAREGPT_ROLES = {
  'system': 'system',
  'human': 'user',
  'user': 'user',
  'gpt': 'assistant',
  'chatgpt': 'assistant',
  'assistant': 'assistant',
}
# PROMPT_DICT of train.py in tatsu-lab/stanford_alpaca, and a line end after it,
# as most later tools write it. Without one a completion that begins with a
# quotation mark would share a token with the colon, and prompts do not end so.
ALPACA = (
  'Below is an instruction that describes a task. Write a response that'
  ' appropriately completes the request.\n\n'
  '### Instruction:\n{instruction}\n\n### Response:\n'
)
ALPACA_INPUT = (
  'Below is an instruction that describes a task, paired with an input that'
  ' provides further context. Write a response that appropriately completes'
  ' the request.\n\n'
  '### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n'
)


@dataclasses.dataclass(frozen=True)
class Row:
  """A row in the form that `examples.encode_row` takes.

  It has `messages`, or `text`, or `prompt` with `completion`. Messages before
  `learn_from` are context only. `shape` names the shape of the row in its file.
  """

  shape: str
  messages: list[dict] | None = None
  learn_from: int = 0
  tools: list[dict] | None = None
  prompt: str | None = None
  completion: str | None = None
  text: str | None = None


def canonical_row(value: dict[str, Any], has_template: bool) -> Row:
  """Converts a row of any known shape.

  Keys that belong to no shape are ignored (data sets carry categories and
  sources), and a key whose value is null counts as missing. `text` counts only
  where there is no other shape, since Alpaca's own file has the rendered row
  under that name. An Alpaca row becomes messages where the tokenizer has a chat
  template, and Stanford's prompt with a completion where it has none (see
  ALPACA). Prompt and completion may both be message lists; then only what the
  completion says is learned.

  Args:
    value: the row.
    has_template: the tokenizer has a chat template.

  Raises:
    UserError: no known shape, two shapes at once, or a part of a wrong type.
      The caller puts file and row before the message.
  """
  value = {k: v for k, v in value.items() if v is not None}
  shapes = []
  if 'messages' in value:
    shapes.append(('messages', _messages))
  if 'conversations' in value:
    shapes.append(('conversations', _sharegpt))
  if 'prompt' in value and ('completion' in value or 'response' in value):
    shapes.append(('prompt/completion', _completion))
  if 'instruction' in value and 'output' in value:
    shapes.append(('Alpaca', lambda row: _alpaca(row, has_template)))
  if 'text' in value and not shapes:
    shapes.append(('text', _text))
  if len(shapes) > 1:
    names = ' and '.join(name for name, _ in shapes)
    raise UserError(f'is of two shapes, {names}: keep one of them')
  if not shapes:
    keys = ', '.join(map(repr, value)) or 'none'
    raise UserError(
      f'is of no known shape (its keys: {keys}); known are {"; ".join(SHAPES)}'
    )
  return shapes[0][1](value)


def _messages(value: dict) -> Row:
  return Row(
    'messages',
    messages=_checked_messages(value['messages'], 'messages'),
    tools=value.get('tools') or None,
  )


def _sharegpt(value: dict) -> Row:
  turns = value['conversations']
  if not isinstance(turns, list) or not turns:
    raise UserError(f'conversations={_show(turns)}: give a list of turns')
  if isinstance(turns[0], dict) and 'role' in turns[0]:
    return Row(
      'conversations', messages=_checked_messages(turns, 'conversations')
    )
  messages = []
  if value.get('system'):
    messages.append({'role': 'system', 'content': value['system']})
  for number, turn in enumerate(turns):
    name = f'conversations[{number}]'
    if not isinstance(turn, dict) or not {'from', 'value'} <= set(turn):
      raise UserError(f'{name}={_show(turn)}: give "from" and "value"')
    role = SHAREGPT_ROLES.get(turn['from'])
    if role is None:
      raise UserError(
        f'{name}: from={turn["from"]!r} is no known role; known are'
        f' {", ".join(SHAREGPT_ROLES)}'
      )
    content = _string(turn['value'], f'{name}.value')
    messages.append({'role': role, 'content': content})
  return Row('conversations', messages=messages)


def _completion(value: dict) -> Row:
  name = 'completion' if 'completion' in value else 'response'
  prompt, completion = value['prompt'], value[name]
  if isinstance(prompt, list) and isinstance(completion, list):
    before = _checked_messages(prompt, 'prompt')
    after = _checked_messages(completion, name)
    return Row(
      'prompt/completion',
      messages=before + after,
      learn_from=len(before),
      tools=value.get('tools') or None,
    )
  if isinstance(prompt, list) or isinstance(completion, list):
    raise UserError(
      f'prompt and {name} are a string and a list of messages; give two'
      ' strings or two lists'
    )
  return Row(
    'prompt/completion',
    prompt=_string(prompt, 'prompt'),
    completion=_string(completion, name),
  )


def _alpaca(value: dict, has_template: bool) -> Row:
  parts = {
    name: _string(value.get(name, ''), name)
    for name in ('instruction', 'input', 'output', 'system')
  }
  if value.get('history'):
    raise UserError('history: not read in Alpaca rows; write it as messages')
  if has_template:
    asked = [parts['instruction'], parts['input']]
    question = '\n\n'.join(part for part in asked if part)
    messages = [
      {'role': 'system', 'content': parts['system']},
      {'role': 'user', 'content': question},
      {'role': 'assistant', 'content': parts['output']},
    ]
    return Row('Alpaca', messages=messages[0 if parts['system'] else 1 :])
  if parts['system']:
    raise UserError(
      'system: an Alpaca row with one needs a tokenizer with a chat template'
    )
  form = ALPACA_INPUT if parts['input'] else ALPACA
  return Row('Alpaca', prompt=form.format(**parts), completion=parts['output'])


def _text(value: dict) -> Row:
  return Row('text', text=_string(value['text'], 'text'))


def _checked_messages(messages, name: str) -> list[dict]:
  if not isinstance(messages, list) or not messages:
    raise UserError(
      f'{name}={_show(messages)}: give a list of at least one message'
    )
  for number, message in enumerate(messages):
    if not isinstance(message, dict) or not isinstance(
      message.get('role'), str
    ):
      raise UserError(
        f'{name}[{number}]={_show(message)}: give an object with "role" and'
        ' "content"'
      )
  return messages


def _string(value, name: str) -> str:
  if not isinstance(value, str):
    raise UserError(f'{name}={_show(value)}: give a string')
  return value


def _show(value) -> str:
  text = repr(value)
  return text if len(text) <= 60 else text[:57] + '…'
