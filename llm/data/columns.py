"""The columns of a row: which are read, and what all shapes of rows share.

Beside the prompt and the completion a row of any shape may have

  system, system_prompt   what a system message says
  history                 earlier turns: [[question, reply], …] or messages
  tools                   JSON schemas of functions, a list or its JSON text
  documents               for templates that quote them
  chat_template_kwargs    variables of the chat template, an object or its text
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

from llm.errors import UserError
from llm.text.chat_mask import LEARN
from llm.text.chat_options import ChatOptions, parse_variables
from llm.text.messages import canonical_messages, canonical_tools, show

# Columns that hold a part of what was said. Where one is not read, and its text
# is nowhere in the conversation, something would be missing.
TEXTS = (
  'context', 'functions', 'history', 'input', 'instruction', 'prompt', 'query',
  'question',
)  # fmt: skip
MEDIA = ('audio', 'audios', 'image', 'images', 'video', 'videos')


@dataclasses.dataclass(frozen=True)
class RowOptions:
  """How rows are read, the same for all rows of a run.

  Attributes:
    learn: 'all' the assistant's turns of a completion, or the 'last' one.
    ignore: columns that are taken as missing.
    chat: what conversations are rendered with that have none of their own.

  Raises:
    UserError: a value is none of these; the config's field is named.
  """

  learn: str = 'all'
  ignore: tuple[str, ...] = ()
  chat: ChatOptions = ChatOptions()

  def __post_init__(self):
    if self.learn not in LEARN:
      raise UserError(
        f'data.learn={self.learn!r}: use one of {", ".join(LEARN)}'
      )
    if isinstance(self.ignore, str) or not all(
      isinstance(name, str) for name in self.ignore
    ):
      raise UserError(
        f'data.ignore_columns={self.ignore!r}: give names of columns, such as'
        " ('id', 'source')"
      )


class Columns:
  """The columns of one row that have a value, and which of them were read."""

  def __init__(self, value: Mapping[str, Any], ignore: Iterable[str] = ()):
    ignored = set(ignore)
    self._values = {
      k: v for k, v in value.items() if v is not None and k not in ignored
    }
    self._read = set()

  def __contains__(self, name: str) -> bool:
    return name in self._values

  def take(self, name: str, default: Any = None) -> Any:
    """The value of a column, which counts as read now."""
    self._read.add(name)
    return self._values.get(name, default)

  def text(self, name: str) -> str:
    """The same where it has to be a string; '' for a missing one."""
    return string(self.take(name, ''), name)

  def only(self, names: Sequence[str]) -> str | None:
    """The one of `names` that the row has; None for none of them.

    Raises:
      UserError: it has two of them.
    """
    given = [name for name in names if name in self]
    if len(given) > 1:
      raise UserError(
        f'has {given[0]} and {given[1]}: keep one of them, or name the other in'
        ' data.ignore_columns'
      )
    return given[0] if given else None

  @property
  def names(self) -> list[str]:
    return list(self._values)

  def unread(self, said: Sequence[str]) -> tuple[str, ...]:
    """The columns that were not read, in order.

    Args:
      said: the texts of the conversation.

    Raises:
      UserError: one of them holds text that is missing there.
    """
    rest = [name for name in self._values if name not in self._read]
    for name in rest:
      value = self._values[name]
      if name not in TEXTS or value in ('', [], {}):
        continue
      if not isinstance(value, str) or not any(value in t for t in said):
        raise UserError(
          f'{name}={show(value)} has no place in a row of this shape, and is'
          ' not in its conversation; write it into the messages, or name it in'
          ' data.ignore_columns'
        )
    return tuple(name for name in rest if name not in TEXTS)


@dataclasses.dataclass(frozen=True)
class Shared:
  """What any shape of row may have besides, see the top of this file.

  Attributes:
    own_system: the system prompt of the row, None where it has none.
    chat: of the run, with tools and variables of the row.
    history: earlier turns.
    given: names of what is set, by the row or by the run.
  """

  own_system: str | None
  chat: ChatOptions
  history: tuple[dict, ...]
  given: tuple[str, ...]

  def refuse(self, why: str) -> None:
    """Refuses what is given, where nothing can be rendered."""
    if self.given:
      raise UserError(
        f'{self.given[0]}: {why}; write the row as messages (with a tokenizer'
        ' that has a chat template), or leave it out (data.ignore_columns)'
      )


def take_shared(columns: Columns, options: RowOptions) -> Shared:
  """Reads the columns that all shapes share.

  Raises:
    UserError: one is of a wrong type, or the row has images and the like.
  """
  for name in MEDIA:
    if columns.take(name):
      raise UserError(
        f'{name}: only text is read; leave such rows out, or name the column in'
        ' data.ignore_columns'
      )
  name = columns.only(('system', 'system_prompt'))
  own = (system_text(columns.take(name), name) if name else '') or None
  history, chat = _history(columns.take('history')), options.chat
  if 'tools' in columns:  # an empty list is a row without tools
    tools = canonical_tools(columns.take('tools'))
    chat = dataclasses.replace(chat, tools=tuple(tools or ()))
  variables = _variables(columns.take('chat_template_kwargs'))
  documents = columns.take('documents')
  if documents:
    variables['documents'] = documents
  chat = dataclasses.replace(chat, variables={**chat.variables, **variables})
  own_names = {'system': own, 'history': history, 'documents': documents}
  given = [name for name, value in own_names.items() if value]
  given += [name for name in chat.given if name not in given]
  return Shared(own, chat, history, tuple(given))


def system_text(value: Any, name: str) -> str:
  """What a system message says, written as a string or as text parts."""
  message = {'role': 'system', 'content': value}
  return canonical_messages([message], name)[0]['content']


def string(value: Any, name: str) -> str:
  """A value that has to be a string."""
  if not isinstance(value, str):
    raise UserError(f'{name}={show(value)}: give a string')
  return value


def _variables(value: Any) -> dict[str, Any]:
  name = 'chat_template_kwargs'
  blank = isinstance(value, str) and not value.strip()
  return {} if value is None or blank else parse_variables(value, name)


def _history(value: Any) -> tuple[dict, ...]:
  """Earlier turns, written as pairs of strings or as messages."""
  if not value:
    return ()
  if isinstance(value, list) and isinstance(value[0], dict):
    return tuple(canonical_messages(value, 'history'))
  turns = []
  for number, pair in enumerate(value if isinstance(value, list) else [value]):
    if (
      not isinstance(pair, (list, tuple))
      or len(pair) != 2
      or not all(isinstance(text, str) for text in pair)
    ):
      raise UserError(
        f'history[{number}]={show(pair)}: give pairs of strings, [question,'
        ' reply], or messages'
      )
    turns += [
      {'role': 'user', 'content': pair[0]},
      {'role': 'assistant', 'content': pair[1]},
    ]
  return tuple(turns)
