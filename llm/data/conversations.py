"""Lists of turns as data sets write them, to one form with weights.

  OpenAI     {"role": "user", "content": "…"}
  ShareGPT   {"from": "human", "value": "…"}

Either may have the columns `messages` and `conversations`. A turn of the
assistant may say how much it counts: `weight` (0 or more, as in OpenAI's
fine-tuning files), `train` (axolotl) or `loss` (ms-swift), true or false.
"""

import dataclasses
import math
from typing import Any

from llm.data.columns import Shared
from llm.errors import UserError
from llm.text.messages import canonical_calls, canonical_messages, show

COLUMNS = ('messages', 'conversations', 'conversation')
# The roles of ShareGPT files, as FastChat, axolotl and LLaMA-Factory have them.
# A call is what the assistant says in `tool_calls`.
CALL = 'function_call'
ROLES = {
  'system': 'system',
  'human': 'user',
  'user': 'user',
  'gpt': 'assistant',
  'chatgpt': 'assistant',
  'assistant': 'assistant',
  'model': 'assistant',
  'tool': 'tool',
  'observation': 'tool',
  'function_response': 'tool',
  CALL: 'assistant',
  'tool_call': 'assistant',
}
_SYSTEM = ('system', 'developer')
_WEIGHTS = ('weight', 'train', 'loss')


@dataclasses.dataclass(frozen=True)
class Turns:
  """Canonical messages with the weight of each; 1 where the file says none."""

  messages: tuple[dict, ...]
  weights: tuple[float, ...]

  def __add__(self, other: 'Turns') -> 'Turns':
    return Turns(self.messages + other.messages, self.weights + other.weights)

  def __getitem__(self, part: slice) -> 'Turns':
    return Turns(self.messages[part], self.weights[part])

  def __len__(self) -> int:
    return len(self.messages)


def plain_turns(*messages: dict) -> Turns:
  """Turns of weight 1."""
  return Turns(messages, (1.0,) * len(messages))


def say(role: str, text: str) -> Turns:
  """One turn of weight 1."""
  return plain_turns({'role': role, 'content': text})


def read_turns(value: Any, name: str) -> Turns:
  """Reads a list of turns.

  Args:
    value: what the column holds.
    name: of the column, for messages.

  Raises:
    UserError: it is no such list; the turn is named by its number.
  """
  if not isinstance(value, list) or not value:
    raise UserError(
      f'{name}={show(value)}: give a list of turns, at least one message'
    )
  messages, weights = [], []
  for number, turn in enumerate(value):
    where = f'{name}[{number}]'
    turn = dict(turn) if isinstance(turn, dict) else turn
    weight = _take_weight(turn, where) if isinstance(turn, dict) else None
    if isinstance(turn, dict) and 'role' not in turn and 'from' in turn:
      turn = _sharegpt(turn, where)
    messages.append(turn)
    weights.append(weight)
  messages = canonical_messages(messages, name)
  for number, (message, weight) in enumerate(zip(messages, weights)):
    if weight and message['role'] != 'assistant':
      raise UserError(
        f'{name}[{number}]: has the weight {weight} and the role'
        f' {message["role"]!r}; only what the assistant says is learned, so'
        ' leave the weight of other turns out'
      )
  return Turns(tuple(messages), tuple(1.0 if w is None else w for w in weights))


def joined(before: Turns, turns: Turns) -> tuple[Turns, int]:
  """A prompt and a completion as one conversation.

  Many data sets repeat the prompt at the beginning of the completion, and one
  of the two may have the system message that the other lacks.

  Args:
    before: the turns of the prompt.
    turns: those of the completion, or of the whole conversation.

  Returns:
    the conversation, and how many of its turns are the prompt's.

  Raises:
    UserError: the two begin with different system messages.
  """
  (head, asked), (other, said) = _without_system(before), _without_system(turns)
  count = len(asked)
  repeats = said.messages[:count] == asked.messages and len(said) > count
  if not (count and repeats):
    return before + turns, len(before)
  if len(head) and len(other) and head.messages != other.messages:
    raise UserError(
      'the prompt and the conversation that repeats it begin with different'
      ' system messages: keep one of them'
    )
  head = head if len(head) else other
  return head + said, len(head) + count


def with_shared(turns: Turns, shared: Shared) -> Turns:
  """A conversation with its system message and history.

  Raises:
    UserError: the row has two different system messages.
  """
  head, rest = _without_system(turns)
  if len(head):
    text = head.messages[0]['content']
    if shared.own_system not in (None, text):
      raise UserError(
        f'system={show(shared.own_system)}: the conversation begins with'
        f' another system message, {show(text)}; keep one of them'
      )
  elif system := shared.own_system or shared.chat.system:
    head = say('system', system)
  return head + plain_turns(*shared.history) + rest


def _without_system(turns: Turns) -> tuple[Turns, Turns]:
  """The system message at the beginning, if there is one, and the rest."""
  at = int(turns.messages[0]['role'] in _SYSTEM) if len(turns) else 0
  return turns[:at], turns[at:]


def _sharegpt(turn: dict, where: str) -> dict:
  """A turn {"from", "value"} as a message."""
  said = turn.pop('value', None)
  if said is None:
    said = turn.get('content')
  who = turn.pop('from')
  role = ROLES.get(who) if isinstance(who, str) else None
  if role is None:
    raise UserError(
      f'{where}: from={show(who)} is no known role; known are'
      f' {", ".join(ROLES)}'
    )
  if said is None and not turn.get('tool_calls'):
    raise UserError(f'{where}={show(turn)}: give "from" and "value"')
  if who in (CALL, 'tool_call'):
    calls = canonical_calls(said, f'{where}.value')
    return turn | {'role': role, 'content': '', 'tool_calls': calls}
  if role == 'tool' and isinstance(said, (dict, list)):
    raise UserError(
      f'{where}.value={show(said)}: give a string, such as the JSON text of it'
    )
  return turn | {'role': role, 'content': said}


def _take_weight(turn: dict, where: str) -> float | None:
  """Removes the weight of a turn and returns it; None where it has none."""
  found = {}
  for key in _WEIGHTS:
    value = turn.pop(key, None)
    if value is None:
      continue
    is_flag = isinstance(value, bool)
    if key == 'weight' and (is_flag or not _is_weight(value)):
      raise UserError(
        f'{where}.weight={show(value)}: give a number of 0 or more'
      )
    if key != 'weight' and not is_flag:
      raise UserError(f'{where}.{key}={show(value)}: give true or false')
    found[key] = float(value)
  if len(set(found.values())) > 1:
    raise UserError(
      f'{where}: {" and ".join(found)} do not agree: keep one of them'
    )
  return next(iter(found.values()), None)


def _is_weight(value: Any) -> bool:
  # An integer may be larger than any float; such a weight is no weight.
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return number and 0 <= value < 2**63 and math.isfinite(value)
