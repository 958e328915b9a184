"""Where an assistant's turn stands in a rendered conversation.

Templates differ in what they write around, between and instead of the parts of
a message, and some write earlier turns anew when later ones follow. So a turn
is found by rendering the conversation again with a changed message, and looking
where the text changes:

  text     …<|im_start|>assistant⏎       ho     <|im_end|>⏎<|im_start|>user…
  changed  …<|im_start|>assistant⏎(BEGIN)ho(END)<|im_end|>⏎<|im_start|>user…
                                  ^ first difference     ^ here it is the same

The turn begins where the generation prompt ends, which stands before the first
difference, and ends with a special token after the last one.
"""

import bisect
import dataclasses
import os
import re
from typing import Any, NamedTuple

from llm.errors import UserError
from llm.text import chat
from llm.text.messages import REASONING, canonical_tools

# Around the n-th part of a changed message: BEGIN + 2n and BEGIN + 2n + 1, of
# Unicode's last plane for private use, which texts do not have.
_BEGIN = 0x10E000
_PLAIN = chr(_BEGIN - 1)
_FOLLOWING = {'role': 'user', 'content': _PLAIN}


@dataclasses.dataclass(frozen=True)
class Page:
  """A rendered conversation; made by `open_page`.

  Attributes:
    tok: the tokenizer.
    messages: canonical ones.
    text: of all of them, without a generation prompt.
    special: the ranges of characters of the special tokens in it, in order.
    options: how it was rendered, as keywords of `chat.render`.
  """

  tok: Any
  messages: list[dict]
  text: str
  special: list[tuple[int, int]]
  options: dict

  def render(self, messages: list[dict], prompt: bool = False) -> str:
    """Other messages, rendered in the same way."""
    return chat.render(self.tok, messages, prompt, **self.options)


class Turn(NamedTuple):
  """What the assistant writes: a range of characters, and a mark behind it."""

  start: int
  end: int
  mark: str = ''


def open_page(tok, messages: list[dict], text: str, options: dict) -> Page:
  """The page of a conversation that was rendered as `text`."""
  return Page(tok, messages, text, _special(tok, text), options)


def find_turn(page: Page, number: int, after: int) -> Turn:
  """The range of characters that the assistant writes in a turn.

  Args:
    page: the conversation.
    number: of the message.
    after: where the learned turn before it ends.

  Returns:
    where it begins and ends, and the mark that is to be put after the text: ''
    but for a last turn that the mark of the next role would end.

  Raises:
    UserError: the template leaves out or changes a part of the message, or
      nothing marks the end of the turn.
  """
  return _find_plain(page, number, after) or _find_changed(page, number, after)


def check_turn(page: Page, number: int, span: tuple[int, int]) -> None:
  """Refuses a template whose tags leave out a part of a learned message."""
  content = page.messages[number]['content'].strip()
  if _is_plain(page.messages[number]) and content in page.text[slice(*span)]:
    return
  changed, parts = _changed(page.messages[number])
  text, marked = chat.render_with_generation(
    page.tok, _replaced(page.messages, number, changed), **page.options
  )
  inside = ''.join(text[start:end] for start, end in marked)
  _check_parts(inside, parts, number)


def check_context(page: Page, number: int) -> None:
  """Refuses a template that leaves out a message which is not learned.

  The reasoning of an earlier turn may be missing: that is how models with
  thoughts are given a conversation.
  """
  message = page.messages[number]
  if _is_plain(message) and message['content'].strip() in page.text:
    return
  changed, parts = _changed(message)
  text = page.render(_replaced(page.messages, number, changed))
  for part in parts:
    if part.name == 'content' and message['role'] == 'assistant':
      found = part.end in text  # a template may cut off <think>…</think>
    else:
      found = part.begin in text and part.end in text
    if not found and part.name != REASONING[0]:
      raise UserError(
        f'messages[{number}]: the chat template leaves out its {part.name}'
        f' (role {message["role"]!r}); change the message or use another'
        ' template'
      )


def check_tools(page: Page, tools: Any) -> None:
  """Refuses a template that leaves out the name of a tool."""
  for number, tool in enumerate(canonical_tools(tools) or ()):
    function = tool.get('function')
    name = function.get('name') if isinstance(function, dict) else None
    if isinstance(name, str) and name not in page.text:
      raise UserError(
        f'tools[{number}]: the chat template does not write {name!r} into this'
        ' conversation; leave it out or use another template'
      )


def with_end_mark(page: Page, span: tuple[int, int]) -> tuple[int, int]:
  """A range with the special token behind it, if one follows.

  Many templates with tags close them before `<|im_end|>`, which the model has
  to write all the same.
  """
  start, end = span
  if any(start < stop == end for _, stop in page.special):
    return span
  at = bisect.bisect_left(page.special, (end, end))
  if at < len(page.special) and page.special[at][0] == end:
    return start, page.special[at][1]
  return span


def _find_plain(page: Page, number: int, after: int) -> Turn | None:
  """A turn of nothing but its content, right after the generation prompt.

  None where it is anything else. This is the common case, and the others cost
  several renderings more.
  """
  messages, text = page.messages, page.text
  message = messages[number]
  if not number or not _is_plain(message) or not message['content'].strip():
    return None
  before = _try(page, messages[:number], True)
  if before is None or not text.startswith(before) or len(before) < after:
    return None
  if before == _try(page, messages[:number]):
    return None  # a template without a generation prompt
  start = len(before)
  space = len(text[start:]) - len(text[start:].lstrip())
  forms = (message['content'], message['content'].strip())
  for at, form in ((start, forms[0]), (start + space, forms[1])):
    end = at + len(form)
    if not text.startswith(form, at):
      continue
    next_ = bisect.bisect_left(page.special, (end, end))
    upto = text
    if number + 1 < len(messages):
      upto = _try(page, messages[: number + 1])
    if upto is None or not text.startswith(upto):
      return None
    zone = [s for s in page.special[next_:] if s[1] <= len(upto)]
    # Exactly one special token, and only space before it.
    if len(zone) == 1 and not text[end : zone[0][0]].strip():
      return Turn(start, zone[0][1])
  return None


def _find_changed(page: Page, number: int, after: int) -> Turn:
  messages, text = page.messages, page.text
  changed, parts = _changed(messages[number])
  other = page.render(_replaced(messages, number, changed))
  _check_parts(other, parts, number)
  first, last = _difference(text, other)
  start = _start(page, number, after, first)
  if start < after:
    raise _refuse(number, 'moves')
  return Turn(start, *_end(page, number, changed, last))


def _difference(text: str, other: str) -> tuple[int, int]:
  """Where the text begins to differ from the other, and where it is the same
  again up to its end.
  """
  first = len(os.path.commonprefix([text, other]))
  same = len(os.path.commonprefix([text[::-1], other[::-1]]))
  return first, len(text) - min(same, len(text) - first)


def _start(page: Page, number: int, after: int, first: int) -> int:
  """Where the generation prompt of a turn ends.

  Args:
    page: the conversation.
    number: of the message.
    after: where the learned turn before it ends.
    first: where the text first changes with the message.
  """
  messages, text = page.messages, page.text
  # A conversation may begin with the assistant: then the generation prompt is
  # that of another one.
  asked = messages[:number] or [_FOLLOWING]
  before, context = _try(page, asked, True), _try(page, asked)
  if before is None or context is None:
    return first
  prompt = before[len(os.path.commonprefix([before, context])) :]
  if number and text.startswith(before) and len(before) <= first:
    # Without a generation prompt, up to where a plain text would begin.
    return len(before) + (0 if prompt else _header(page, number, before))
  # The template has written something before this turn anew, or a part of the
  # generation prompt (such as <think>) is not in this turn.
  for header in _shortened(page, prompt):
    at = text.rfind(header, after, first)
    if at >= 0:
      return at + len(header)
  return first


def _prompt(page: Page) -> str:
  """The generation prompt after what a user says; '' where there is none."""
  before = _try(page, [_FOLLOWING], True) or ''
  context = _try(page, [_FOLLOWING]) or before
  return before[len(os.path.commonprefix([before, context])) :]


def _header(page: Page, number: int, before: str) -> int:
  """Characters of the role that a template writes between two messages.

  0 for nothing but white space, which the model has to write.
  """
  said = page.messages[:number] + [{'role': 'assistant', 'content': _PLAIN}]
  header = (_try(page, said) or before).removeprefix(before).split(_PLAIN)[0]
  rest = page.text[len(before) :]
  return len(os.path.commonprefix([header, rest])) if header.strip() else 0


def _shortened(page: Page, prompt: str) -> list[str]:
  """A generation prompt, and what is left of it before later tags and lines."""
  cuts = {len(prompt)}
  cuts |= {stop for _, stop in _special(page.tok, prompt)}
  cuts |= {match.end() for match in re.finditer(r'\n|<[^<>\s]+>', prompt)}
  return [prompt[:cut] for cut in sorted(cuts, reverse=True) if cut]


def _special(tok, text: str) -> list[tuple[int, int]]:
  """The ranges of characters of the special tokens in a text."""
  ids, offsets = tok.encode_with_offsets(text, bos=False)
  special = tok.special_ids | set(tok.eos_ids)
  return [range_ for id, range_ in zip(ids, offsets) if id in special]


def _end(page: Page, number: int, changed: dict, last: int) -> tuple[int, str]:
  """The end of the mark that ends a turn, and the mark if it is not there.

  Args:
    page: the conversation.
    number: of the message.
    changed: the message as `_changed` gives it.
    last: where the text last changes with it.
  """
  message, text = page.messages[number], page.text
  closing = _closing(page, number, changed, text[last:])
  zone = os.path.commonprefix([text[last:], closing])
  inside = [
    stop
    for start, stop in page.special
    if start >= last and stop <= last + len(zone)
  ]
  if inside:
    return inside[-1], ''
  # GLM's turns end where the mark of the next role begins; GPT-OSS ends the
  # last turn with another mark than those before it.
  at = bisect.bisect_left(page.special, (last, last))
  if at < len(page.special) and page.special[at][0] <= last + len(zone):
    start, stop = page.special[at]
    if not _prompt(page).startswith(text[start:stop]):
      return stop, ''
    raise UserError(
      f'messages[{number + 1}]: follows another message of the assistant, and'
      ' the chat template writes nothing between the two that ends a turn; join'
      ' them, or use another template'
    )
  if zone.strip() and 'tool_calls' not in message:
    return last + len(zone.rstrip()), ''
  # Nothing follows the last turn, and so it lacks the mark of the next role.
  if len(text) == last + len(zone):
    rest = closing[len(zone) :]
    start, stop = next(iter(_special(page.tok, rest)), (1, 0))
    if start == 0:
      return len(text), rest[:stop]
  raise UserError(
    f'messages[{number}]: the chat template writes nothing that ends the turn,'
    ' so that a model would not learn to stop there; use a template that ends'
    " each of the assistant's turns"
  )


def _closing(page: Page, number: int, changed: dict, rest: str) -> str:
  """What the template writes after the parts of a message when it is the last.

  For the last message of the conversation: when another one follows. Templates
  may put something behind a conversation, which is no part of a turn.
  """
  upto, tails = page.messages[: number + 1], [[]]
  if number + 1 == len(page.messages):
    tails = [[_FOLLOWING]]
    if calls := page.messages[number].get('tool_calls'):
      tool = {'role': 'tool', 'content': _PLAIN}
      tails.insert(0, [tool | {'tool_call_id': calls[0].get('id', '')}])
  for tail in tails:
    plain = _try(page, [*upto, *tail])
    other = _try(page, [*_replaced(upto, number, changed), *tail])
    if plain is not None and other is not None:
      return plain[_difference(plain, other)[1] :]
  return rest  # some templates refuse such conversations


@dataclasses.dataclass(frozen=True)
class _Part:
  """A part of a message, and the characters that were put around it."""

  name: str
  text: str
  begin: str
  end: str


def _changed(message: dict) -> tuple[dict, list[_Part]]:
  """A message with marks around its parts, and its parts in their order.

  Of a tool call the marks are one more argument.
  """
  parts = []

  def mark(name: str, text: str) -> str:
    at = _BEGIN + 2 * len(parts)
    # Thoughts that are written into the content: their tag stays its beginning.
    tag = re.match(r'\s*<think>|', text)[0]
    text = text[len(tag) :]
    parts.append(_Part(name, text, chr(at), chr(at + 1)))
    return f'{tag}{chr(at)}{text}{chr(at + 1)}'

  out = dict(message)
  if REASONING[0] in message:
    out[REASONING[0]] = mark(REASONING[0], message[REASONING[0]])
  if message['content'] or not message.get('tool_calls'):
    out['content'] = mark('content', message['content'])
  calls = []
  for number, call in enumerate(message.get('tool_calls') or ()):
    function = call['function']
    added = mark(f'tool_calls[{number}]', '')
    arguments = function['arguments'] | {added: added}
    calls.append(call | {'function': function | {'arguments': arguments}})
  return (out | {'tool_calls': calls} if calls else out), parts


def _check_parts(text: str, parts: list[_Part], number: int) -> None:
  """Refuses what a rendering with marks shows to be lost or changed."""
  for part in parts:
    begins, ends = text.count(part.begin), text.count(part.end)
    if not begins or not ends:
      raise _refuse(number, f'leaves out {part.name} of')
    if part.text or part.name == 'content':
      if begins > 1 or ends > 1:
        raise _refuse(number, 'repeats')
      between = text[text.index(part.begin) + 1 : text.index(part.end)]
      if ''.join(between.split()) != ''.join(part.text.split()):
        raise _refuse(number, f'changes {part.name} of')


def _is_plain(message: dict) -> bool:
  return 'tool_calls' not in message and REASONING[0] not in message


def _replaced(messages: list[dict], number: int, message: dict) -> list[dict]:
  return [*messages[:number], message, *messages[number + 1 :]]


def _try(page: Page, messages: list[dict], prompt: bool = False) -> str | None:
  try:
    return page.render(messages, prompt)
  except UserError:  # some templates refuse a part of a conversation
    return None


def _refuse(number: int, what: str) -> UserError:
  return UserError(
    f'messages[{number}]: the chat template {what} what the assistant says, so'
    ' it cannot be learned; change the message, use another template, or learn'
    " other turns (data.learn='last', weights)"
  )
