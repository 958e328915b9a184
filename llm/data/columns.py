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
import json
from typing import Any

from llm.errors import UserError
from llm.text.chat_mask import LEARN
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
    system, tools, variables: for conversations that have none of their own: the
      text of a system message, JSON schemas, variables of the chat template.

  Raises:
    UserError: a value is none of these; the config's field is named.
  """

  learn: str = 'all'
  ignore: tuple[str, ...] = ()
  system: str | None = None
  tools: Sequence[dict] | None = None
  variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)

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

  `own_system` is of the row, `system` of the run.
  """

  own_system: str | None
  system: str | None
  history: tuple[dict, ...]
  tools: list[dict] | None
  variables: dict[str, Any]

  def refuse(self, why: str) -> None:
    """Refuses what the row itself has, where nothing can be rendered."""
    given = [name for name in self._of_row() if self._of_row()[name]]
    if given:
      raise UserError(
        f'{given[0]}: {why}; write the row as messages (with a tokenizer that'
        ' has a chat template), or name the column in data.ignore_columns'
      )

  def _of_row(self) -> dict[str, Any]:
    return {
      'system': self.own_system,
      'history': self.history,
      'tools': self.tools,
      'chat_template_kwargs': self.variables,
    }


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
  own = system_text(columns.take(name), name) if name else ''
  variables = _object(columns.take('chat_template_kwargs'))
  if documents := columns.take('documents'):
    variables['documents'] = documents
  return Shared(
    own_system=own or None,
    system=options.system,
    history=_history(columns.take('history')),
    tools=canonical_tools(columns.take('tools')),
    variables=variables,
  )


def system_text(value: Any, name: str) -> str:
  """What a system message says, written as a string or as text parts."""
  message = {'role': 'system', 'content': value}
  return canonical_messages([message], name)[0]['content']


def string(value: Any, name: str) -> str:
  """A value that has to be a string."""
  if not isinstance(value, str):
    raise UserError(f'{name}={show(value)}: give a string')
  return value


def _object(value: Any) -> dict[str, Any]:
  """`chat_template_kwargs` as an object."""
  name = 'chat_template_kwargs'
  if isinstance(value, str) and value.strip():
    try:
      value = json.loads(value)
    except (ValueError, RecursionError) as error:
      raise UserError(
        f'{name}={show(value)}: is not JSON ({error}); give an object'
      ) from None
  if not value:
    return {}
  if not isinstance(value, dict):
    raise UserError(f'{name}={show(value)}: give an object')
  return dict(value)


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
