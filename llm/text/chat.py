"""Chat templates: messages to text or ids, in the form a model was tuned on.

Templates run as in transformers' `apply_chat_template`, for which they are
written: sandboxed jinja2 with trimmed blocks, loop controls, `raise_exception`,
`strftime_now`, a plain `tojson` and the tag `generation`.
"""

from collections.abc import Iterable
import datetime
import functools
import json
import re
from typing import Any, NamedTuple

from llm.errors import UserError
from llm.text.messages import REASONING, canonical_messages

_GENERATION_TAG = re.compile(r'\{%[-+]?\s*generation\s*[-+]?%\}')
_TRACKER = '_generation_tracker'  # the template variable that collects ranges


def render(
  tok,
  messages: list[dict],
  add_generation_prompt: bool = True,
  *,
  template: str | None = None,
  tools: list[dict] | None = None,
  documents: list[dict] | None = None,
  continue_final_message: bool = False,
  **variables,
) -> str:
  """Messages to text by the tokenizer's chat template.

  Args:
    tok: a `Tokenizer`.
    messages: [{'role': …, 'content': …}, …], read by `canonical_messages`.
    add_generation_prompt: end with the text that opens the assistant's turn.
    template: the name of one of `tok.chat_templates` or a template; None takes
      'tool_use' where there are tools and such a template, else 'default'.
    tools: JSON schemas of functions.
    documents: documents for templates that quote them.
    continue_final_message: end in the last message, without its end mark, so
      that the model continues it; needs add_generation_prompt=False.
    **variables: further variables of the template.

  Raises:
    UserError: malformed messages, no template, or the template refuses them.
  """
  if continue_final_message and add_generation_prompt:
    raise UserError(
      'continue_final_message: a text cannot continue the last message and'
      ' begin a new one; set add_generation_prompt to False'
    )
  name, text, _ = _run(
    tok,
    messages,
    template,
    tools=tools,
    documents=documents,
    add_generation_prompt=add_generation_prompt,
    **variables,
  )
  if not continue_final_message:
    return text
  return _cut(text, canonical_messages(messages)[-1], name)


def render_with_generation(
  tok,
  messages: list[dict],
  *,
  template: str | None = None,
  tools: list[dict] | None = None,
  documents: list[dict] | None = None,
  **variables,
) -> tuple[str, list[tuple[int, int]] | None]:
  """Renders a whole conversation, with the parts marked for learning.

  Args and errors are those of `render`.

  Returns:
    the text, and the half-open ranges of characters between the template's tags
    `generation` and `endgeneration`, in order; None instead of ranges where the
    template has no such tags.
  """
  _, source = _choose(tok, template, tools)
  _, text, spans = _run(
    tok,
    messages,
    template,
    tools=tools,
    documents=documents,
    add_generation_prompt=False,
    **variables,
  )
  return text, spans if _GENERATION_TAG.search(source) else None


def unread_variables(
  tok, names: Iterable[str], template: str | None = None, tools: Any = None
) -> list[str]:
  """Those of `names` that the chat template reads nothing by.

  Args:
    tok: a `Tokenizer`.
    names: of variables, such as 'enable_thinking'.
    template, tools: as for `render`, which template it is.

  Raises:
    UserError: there is no such template, or it does not compile.
  """
  name, source = _choose(tok, template, tools)
  read = _names(source, name)
  return [n for n in names if n not in read.variables]


def unread_keys(
  tok, messages: list[dict], template: str | None = None, tools: Any = None
) -> list[str]:
  """Keys of canonical messages that the chat template reads nothing by.

  Args and errors are those of `unread_variables`.
  """
  name, source = _choose(tok, template, tools)
  read = _names(source, name)
  keys = dict.fromkeys(key for m in messages for key in _renamed(m, read))
  return [key for key in keys if key not in read.keys]


def _run(tok, messages, template, *, tools, **variables):
  """Runs a template; returns (its name for messages, text, marked ranges)."""
  messages = canonical_messages(messages)
  name, source = _choose(tok, template, tools)
  read = _names(source, name)
  blocks, spans = _Blocks(), []
  variables = tok.special_tokens | variables
  try:
    # Block by block, so that a tag can tell how much text is before it.
    for block in _compile(source).generate(
      messages=[_renamed(message, read) for message in messages],
      tools=tools,
      **(variables | {_TRACKER: (blocks, spans)}),
    ):
      blocks.append(block)
  except Exception as error:  # A template can raise anything.
    raise UserError(
      f'{name} refuses the messages: {error}; check their roles, order and'
      ' contents'
    ) from None
  return name, ''.join(blocks.texts), spans


class _Names(NamedTuple):
  """What a template reads: variables, and keys of objects."""

  variables: frozenset[str]
  keys: frozenset[str]


@functools.lru_cache(maxsize=32)
def _names(source: str, name: str) -> _Names:
  import jinja2
  from jinja2 import nodes

  try:
    tree = _environment().parse(source)
    _compile(source)
  except jinja2.TemplateSyntaxError as error:
    raise UserError(
      f'{name} does not compile: {error.message} (line {error.lineno}); fix it'
      ' or pass another template'
    ) from None
  # Any name that is read somewhere, also where the template sets it first.
  variables = {
    node.name for node in tree.find_all(nodes.Name) if node.ctx == 'load'
  }
  # A key is an attribute or a string: m.name, m['name'], 'name' in m.
  keys = {node.attr for node in tree.find_all(nodes.Getattr)}
  keys |= {
    node.value
    for node in tree.find_all(nodes.Const)
    if isinstance(node.value, str)
  }
  return _Names(frozenset(variables), frozenset(keys))


def _renamed(message: dict, read: _Names) -> dict:
  """A message with the reasoning under the name that the template reads."""
  if REASONING[0] not in message or REASONING[0] in read.keys:
    return message
  theirs = next((key for key in REASONING if key in read.keys), REASONING[0])
  return {theirs if k == REASONING[0] else k: v for k, v in message.items()}


class _Blocks:
  """The text rendered so far, in pieces, and its length."""

  def __init__(self):
    self.texts, self.length = [], 0

  def append(self, text: str) -> None:
    self.texts.append(text)
    self.length += len(text)


def encode(tok, messages: list[dict], *args, **kwargs) -> list[int]:
  """Messages to ids: `render`, and no BOS or EOS beyond what the template has.

  Arguments and errors are those of `render`.
  """
  return tok.encode(render(tok, messages, *args, **kwargs), bos=False)


def _choose(tok, template: str | None, tools) -> tuple[str, str]:
  """The template to use: (its name for messages, its source)."""
  templates = tok.chat_templates
  if template is not None and '{' in template:
    return 'template', template
  if template is None:
    template = 'default'
    if tools is not None and 'tool_use' in templates:
      template = 'tool_use'
  if template not in templates:
    has = f'only the templates {sorted(templates)}' if templates else 'none'
    raise UserError(
      f'{tok.source}: messages need a chat template and this tokenizer has'
      f' {has}; name a folder with one as tokenizer.path or model.path, or put'
      ' a chat_template.jinja into this one; Python takes template=, too'
    )
  return f"{tok.source}: the chat template '{template}'", templates[template]


def _cut(text: str, message: dict, name: str) -> str:
  """Cuts a rendered text after the content of its last message."""
  content = message.get('content')
  stripped = content.strip() if isinstance(content, str) else ''
  at = text.rfind(stripped)
  if not stripped or at < 0:
    raise UserError(
      f'continue_final_message: {name} does not write the last message'
      f' {message!r} as it is; give it a non-empty text'
    )
  # Where the template keeps trailing space, it is part of the message.
  whole = content.lstrip()
  return text[:at] + (whole if text.startswith(whole, at) else stripped)


@functools.cache
def _environment():
  import jinja2
  import jinja2.ext
  import jinja2.sandbox

  class Generation(jinja2.ext.Extension):
    """{% generation %} renders its body and records the range of its text."""

    tags = {'generation'}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
      call = self.call_method('_mark', [jinja2.nodes.ContextReference()])
      return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, context, caller):
      blocks, spans = context[_TRACKER]
      start, text = blocks.length, caller()
      spans.append((start, start + len(text)))
      return text

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  def tojson(
    value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
  ):
    # jinja2's own filter escapes HTML, which no chat format wants.
    return json.dumps(
      value,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=sort_keys,
    )

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, jinja2.ext.loopcontrols],
  )
  environment.filters['tojson'] = tojson
  environment.globals['raise_exception'] = raise_exception
  environment.globals['strftime_now'] = lambda form: (
    datetime.datetime.now().strftime(form)
  )
  return environment


@functools.lru_cache(maxsize=32)
def _compile(source: str):
  return _environment().from_string(source)
