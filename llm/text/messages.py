"""Messages as data sets write them, in the one form that templates are given.

  {"role": "assistant", "content": "…", "reasoning_content": "…",
   "tool_calls": [{"type": "function",
                   "function": {"name": "…", "arguments": {…}}}]}

`canonical_messages` brings text parts, OpenAI's JSON strings and older keys to
this form. It is that of transformers' chat templates
(https://huggingface.co/docs/transformers/chat_extras).
"""

import json
from typing import Any

from llm.errors import UserError

# Other names of `reasoning_content`, as vLLM, OpenRouter and GPT-OSS write it.
REASONING = ('reasoning_content', 'reasoning', 'thinking')
_WHO = ('role', 'name')  # the keys for who speaks; the others are content


def canonical_messages(messages: Any, name: str = 'messages') -> list[dict]:
  """Messages in the form that chat templates read.

  - A key whose value is null, and `tool_calls` without a call, count as missing.
  - `content` made of text parts becomes their joined text; a message without
    content has the content ''.
  - `tool_calls` may be flat ({"name", "arguments"}), their arguments a JSON
    string; `function_call` is the older name of a single call.
  - `reasoning` and `thinking` are called `reasoning_content`.

  All other keys stay as they are.

  Args:
    messages: such as [{'role': 'user', 'content': 'hi'}].
    name: the column that holds them, for messages of errors.

  Raises:
    UserError: there is no message, or one cannot be read; its number is named.
  """
  if not isinstance(messages, (list, tuple)) or not messages:
    raise UserError(
      f'{name}={show(messages)}: give a list of at least one message, such as'
      ' [{"role": "user", "content": "…"}]'
    )
  return [
    _canonical(message, f'{name}[{number}]')
    for number, message in enumerate(messages)
  ]


def canonical_tools(tools: Any, name: str = 'tools') -> list[dict] | None:
  """The JSON schemas of functions as a list; None where there are none.

  Args:
    tools: a list of schemas or its JSON text. A bare function ({"name", …}) is
      put under "function", as OpenAI and transformers write it.
    name: the column that holds them, for messages of errors.

  Raises:
    UserError: they are something else.
  """
  if isinstance(tools, str):
    tools = _parse(tools, name) if tools.strip() else None
  if isinstance(tools, dict) and isinstance(tools.get('tools'), list):
    tools = tools['tools']
  if tools is None or tools == []:
    return None
  if not isinstance(tools, (list, tuple)):
    raise UserError(f'{name}={show(tools)}: give a list of JSON schemas')
  found = []
  for number, tool in enumerate(tools):
    if isinstance(tool, str):
      tool = _parse(tool, f'{name}[{number}]')
    if not isinstance(tool, dict) or not tool:
      raise UserError(
        f'{name}[{number}]={show(tool)}: give a JSON schema, such as'
        ' {"type": "function", "function": {"name": "…", "parameters": {…}}}'
      )
    is_bare = 'name' in tool and not {'type', 'function'} & set(tool)
    found.append({'type': 'function', 'function': tool} if is_bare else tool)
  return found


def canonical_calls(calls: Any, name: str) -> list[dict]:
  """Tool calls with their arguments as objects; [] where there are none.

  Args:
    calls: a list of calls, one call, or their JSON text.
    name: the key that holds them, for messages of errors.

  Raises:
    UserError: they are something else.
  """
  if isinstance(calls, str):
    calls = _parse(calls, name) if calls.strip() else []
  calls = [calls] if isinstance(calls, dict) else calls
  if not isinstance(calls, (list, tuple)):
    raise UserError(f'{name}={show(calls)}: give a list of tool calls')
  return [_call(call, f'{name}[{n}]') for n, call in enumerate(calls)]


def show(value: Any) -> str:
  """A value for a message, cut where it is long."""
  text = repr(value)
  return text if len(text) <= 60 else text[:57] + '…'


def _canonical(message: Any, where: str) -> dict:
  if not isinstance(message, dict) or not isinstance(message.get('role'), str):
    raise UserError(
      f'{where}: {show(message)} is not an object with a "role"; give'
      ' {"role": "user", "content": "…"}'
    )
  out = {key: value for key, value in message.items() if value is not None}
  for key in ('tool_calls', 'function_call'):
    if key in out and not (
      calls := canonical_calls(out[key], f'{where}.{key}')
    ):
      del out[key]
    elif key in out:
      out[key] = calls
  if 'function_call' in out:
    _rename(out, 'function_call', 'tool_calls', where)
  for key in REASONING[1:]:
    if isinstance(out.get(key), str):
      _rename(out, key, REASONING[0], where)
  if not isinstance(out.get(REASONING[0], ''), str):
    raise UserError(
      f'{where}.{REASONING[0]}={show(out[REASONING[0]])}: give a string'
    )
  if not out.get(REASONING[0], ' '):
    del out[REASONING[0]]
  if not set(out).difference(_WHO):
    raise UserError(
      f'{where}: {show(message)} says nothing; give its "content" a text, or'
      ' leave the message out'
    )
  return out | {'content': _text(out.get('content', ''), f'{where}.content')}


def _rename(message: dict, key: str, name: str, where: str) -> None:
  value = message.pop(key)
  if message.setdefault(name, value) != value:
    raise UserError(f'{where}: has {name} and another {key}: keep one of them')


def _text(content: Any, where: str) -> str:
  """The text of a content; parts follow each other with nothing between."""
  if isinstance(content, str):
    return content
  if isinstance(content, dict):
    content = [content]
  if not isinstance(content, (list, tuple)):
    raise UserError(f'{where}={show(content)}: give a string or text parts')
  texts = []
  for number, part in enumerate(content):
    if isinstance(part, dict):
      part = {k: v for k, v in part.items() if v is not None}
      # OpenAI's Responses API names its parts input_text and output_text.
      kind = part.get('type', 'text')
      known = kind in ('text', 'input_text', 'output_text')
      part = part.get('text') if known else part
    if not isinstance(part, str):
      raise UserError(
        f'{where}[{number}]={show(part)}: only text parts,'
        ' {"type": "text", "text": "…"}, can be read'
      )
    texts.append(part)
  return ''.join(texts)


def _call(call: Any, where: str) -> dict:
  if isinstance(call, str):
    call = _parse(call, where)
  if isinstance(call, dict):
    call = {k: v for k, v in call.items() if v is not None}
    if 'function' not in call and 'name' in call:
      named = {k: call.pop(k) for k in ('name', 'arguments') if k in call}
      call['function'] = named
  function = call.get('function') if isinstance(call, dict) else None
  if not isinstance(function, dict) or not isinstance(
    function.get('name'), str
  ):
    raise UserError(
      f'{where}={show(call)}: give {{"type": "function", "function": {{"name":'
      ' "…", "arguments": {…}}}}'
    )
  arguments = function.get('arguments')
  if isinstance(arguments, str):
    blank = not arguments.strip()
    arguments = {} if blank else _parse(arguments, f'{where}.arguments')
  arguments = {} if arguments is None else arguments
  if not isinstance(arguments, dict):
    raise UserError(
      f'{where}.arguments={show(arguments)}: give an object, or its JSON text'
    )
  function = function | {'arguments': arguments}
  return {'type': 'function'} | call | {'function': function}


def _parse(text: str, name: str) -> Any:
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(
      f'{name}={show(text)}: is not JSON ({error}); give an object or its JSON'
      ' text'
    ) from None
