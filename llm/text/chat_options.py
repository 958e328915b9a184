"""How a run renders its conversations: system prompt, tools, variables.

They come from the fields `system`, `tools` (a file) and `chat_template_kwargs`
of a config, and from a row's columns of these names, which win.
"""

import ast
from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

from llm.errors import UserError
from llm.text import chat
from llm.text.messages import canonical_tools, show

# Fields of a config, and columns of a row.
FIELDS = ('system', 'tools', 'chat_template_kwargs')
# Names that are no free variables of a template, and why.
_TAKEN = {
  'add_generation_prompt': 'the run sets it',
  'continue_final_message': 'the run sets it',
  'messages': 'it is what is rendered',
  'self': 'Jinja has it',
  'template': 'the tokenizer has it',
  'tok': 'it is the tokenizer',
  'tools': 'it has a field of its own, tools',
}
_SYSTEM_ROLES = ('system', 'developer')


@dataclasses.dataclass(frozen=True)
class ChatOptions:
  """What a conversation is rendered with besides its messages.

  Attributes:
    system: the system prompt of conversations that have none; '' is none.
    tools: JSON schemas of functions; none: ().
    variables: further variables of the template, such as enable_thinking.
  """

  system: str = ''
  tools: tuple[dict, ...] = ()
  variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def given(self) -> tuple[str, ...]:
    """The FIELDS that are set."""
    values = (self.system, self.tools, self.variables)
    return tuple(name for name, value in zip(FIELDS, values) if value)


def read_options(fields, prefix: str = '') -> ChatOptions:
  """The options that a config asks for.

  Args:
    fields: a config with FIELDS, all None where they are not set.
    prefix: the group that they are in, such as 'data.', for messages.

  Raises:
    UserError: a value is malformed, or `tools` names no file of tools.
  """
  system, tools, variables = (fields[name] for name in FIELDS)
  if system is not None and not system.strip():
    raise UserError(f'{prefix}system={system!r}: write one, or leave it unset')
  return ChatOptions(
    system or '',
    () if tools is None else read_tools(tools, f'{prefix}tools'),
    {}
    if variables is None
    else parse_variables(variables, f'{prefix}chat_template_kwargs'),
  )


def row_options(
  row: Mapping[str, Any], messages: Any, options: ChatOptions
) -> ChatOptions:
  """The options of a row: its own columns, and the run's where it has none.

  Variables are merged name by name. `tools: []` is a row without tools. A
  column whose value is null counts as missing, and so does `system: ""`.

  Args:
    row: with or without FIELDS.
    messages: of the row; None where it is a plain text.
    options: the run's.

  Raises:
    UserError: a column is malformed, the messages begin with another system
      prompt than the column's, or a plain text has options. The caller puts
      file and row before the message.
  """
  system, tools, variables = (row.get(name) for name in FIELDS)
  if not isinstance(system, str | None):
    raise UserError(f'system={show(system)}: give a string')
  if tools is not None:
    options = dataclasses.replace(options, tools=parse_tools(tools, 'tools'))
  if variables is not None:
    own = parse_variables(variables, 'chat_template_kwargs')
    merged = {**options.variables, **own}
    options = dataclasses.replace(options, variables=merged)
  if system:
    options = dataclasses.replace(options, system=system)
    if _has_system(messages) and messages[0].get('content') != system:
      raise UserError(
        f'system={show(system)}: the messages begin with another one,'
        f' {show(messages[0].get("content"))}; keep one of them'
      )
  if messages is None and options.given:
    raise UserError(
      f'{" and ".join(options.given)}: of conversations only, and this is a'
      ' plain text, which no chat template writes; give messages'
    )
  return options


def check_template(tok, options: ChatOptions, prefix: str = '') -> None:
  """Refuses options that the tokenizer's chat template does not read.

  Args:
    tok: a `Tokenizer`.
    options: of the run or of a row.
    prefix: the group of the fields, for messages.

  Raises:
    UserError: there is no template, or it reads nothing by one of the names.
  """
  if not options.given:
    return
  if not tok.chat_templates:
    name = options.given[0]
    raise UserError(
      f'{prefix}{name}: is written by a chat template, and {tok.source} has'
      f' none; leave {prefix}{name} unset, or set tokenizer.path'
    )
  tools = list(options.tools) or None
  names = ['tools'] * bool(tools) + list(options.variables)
  for name in chat.unread_variables(tok, names, tools=tools):
    if name == 'tools':
      raise UserError(
        f'{prefix}tools: the chat template of {tok.source} does not read tools;'
        f' leave {prefix}tools unset, or use a model that was tuned on them'
      )
    raise UserError(
      f'{prefix}chat_template_kwargs: the chat template of {tok.source} reads'
      f' no {name!r}, so it would change nothing; leave it out, or correct its'
      ' name'
    )


def render(tok, messages: list[dict], options: ChatOptions) -> str:
  """Messages to text, up to where the assistant begins to write.

  Args:
    tok: a `Tokenizer`.
    messages: see `chat.render`.
    options: with them a system prompt is put before messages that have none.

  Raises:
    UserError: as `chat.render` and `check_template`; or the template leaves out
      the system prompt or a tool.
  """
  check_template(tok, options)
  text = chat.render(
    tok, conversation(messages, options), **template_arguments(options)
  )
  if (
    options.system
    and not _has_system(messages)
    and options.system.strip() not in text
  ):
    raise UserError(
      f'system={show(options.system)}: the chat template of {tok.source} leaves'
      ' it out; leave system unset, or write it into what the user says'
    )
  for tool in options.tools:
    name = tool['function']['name']
    if name not in text:
      raise UserError(
        f'tools: the chat template of {tok.source} does not write {name!r} into'
        ' this conversation; leave it out, or use a model that was tuned on'
        ' tools'
      )
  return text


def encode(tok, messages: list[dict], options: ChatOptions) -> list[int]:
  """Token ids of what `render` gives, whose errors it has."""
  return tok.encode(render(tok, messages, options), bos=False)


def conversation(messages: Any, options: ChatOptions) -> Any:
  """The messages, with the system prompt before them if they have none."""
  is_list = isinstance(messages, (list, tuple)) and messages
  if not options.system or not is_list or _has_system(messages):
    return messages
  return [{'role': 'system', 'content': options.system}, *messages]


def template_arguments(options: ChatOptions) -> dict[str, Any]:
  """Keywords of `chat.render` for tools and variables."""
  return {'tools': list(options.tools) or None, **options.variables}


def read_tools(path: str, field: str) -> tuple[dict, ...]:
  """The tools of a file.

  Args:
    path: JSON (what `parse_tools` takes) or JSON lines, a tool a line.
    field: of the config, for messages.

  Raises:
    UserError: no such file, or it holds something else.
  """
  where = f'{field}={path!r}'
  file = pathlib.Path(path)
  if not file.is_file():
    what = 'is a folder' if file.is_dir() else 'does not exist'
    raise UserError(f'{where} {what}: name a JSON file with a list of tools')
  try:
    text = file.read_bytes().decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(f'{where}: not UTF-8 at byte {error.start}') from None
  except OSError as error:
    raise UserError(f'{where}: cannot be read ({error.strerror})') from None
  if not text.strip():
    raise UserError(f'{where} is empty: write a list of tools')
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    lines = [line for line in text.split('\n') if line.strip()]
    try:
      value = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
      raise UserError(f'{where}: not valid JSON ({error})') from None
  tools = parse_tools(value, where)
  if not tools:
    raise UserError(f'{where} holds no tools: leave {field} unset')
  return tools


def parse_tools(value: Any, where: str) -> tuple[dict, ...]:
  """Tools as templates read them: {"type": "function", "function": {…}}.

  Args:
    value: what `canonical_tools` takes, or a single tool.
    where: the field or column, for messages.

  Raises:
    UserError: it is something else, a function has no name, or two have one.
  """
  if isinstance(value, Mapping) and 'tools' not in value:
    value = [value]
  tools = tuple(canonical_tools(value, where) or ())
  for number, tool in enumerate(tools):
    function = tool.get('function')
    if (
      tool.get('type') != 'function'
      or not isinstance(function, dict)
      or not isinstance(function.get('name'), str)
      or not function['name'].strip()
      or not isinstance(function.get('parameters') or {}, dict)
    ):
      raise UserError(
        f'{where}[{number}]: {show(tool)} is no function; write {{"type":'
        ' "function", "function": {"name": "…", "description": "…",'
        ' "parameters": {…}}}'
      )
  names = [tool['function']['name'] for tool in tools]
  for name in names:
    if names.count(name) > 1:
      raise UserError(f'{where}: two tools are called {name!r}: rename one')
  return tools


def parse_variables(value: Any, where: str) -> dict[str, Any]:
  """Variables of a template by name.

  Args:
    value: an object, or its text in JSON or Python.
    where: the field or column, for messages.

  Raises:
    UserError: it is something else, or a name is not free.
  """
  if isinstance(value, str):
    value = _literal(value, where)
  if not isinstance(value, Mapping):
    raise UserError(
      f'{where}={show(value)}: write \'{{"NAME": VALUE, …}}\', such as'
      ' \'{"enable_thinking": False}\''
    )
  for name in value:
    if not isinstance(name, str) or not name.isidentifier():
      raise UserError(f'{where}: {name!r} is no name of a variable')
    if name in _TAKEN:
      raise UserError(f'{where}: {name!r} cannot be set here: {_TAKEN[name]}')
  try:
    return json.loads(json.dumps(dict(value)))
  except (TypeError, ValueError, RecursionError):
    raise UserError(
      f'{where}={show(value)}: use values that JSON has'
    ) from None


def _literal(text: str, where: str) -> Any:
  """The value of a text in JSON or Python."""
  for parse in (json.loads, ast.literal_eval):
    try:
      return parse(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
      continue
  raise UserError(
    f'{where}={show(text)}: neither JSON nor Python; write \'{{"NAME": VALUE,'
    " …}', such as '{\"enable_thinking\": False}'"
  )


def _has_system(messages: Any) -> bool:
  first = messages[0] if isinstance(messages, (list, tuple)) and messages else 0
  return isinstance(first, dict) and first.get('role') in _SYSTEM_ROLES
