"""The shapes of rows, and the one form that each is brought to.

`canonical_row` reads rows with a completion, `canonical_prompt` those with a
prompt alone. Preference pairs and rated completions are built from the same
parts, in `pairs` and `rated`.
"""

import dataclasses
from typing import Any

from llm.data.columns import Columns, RowOptions, Shared, string, take_shared
from llm.data.conversations import (
  COLUMNS,
  Turns,
  joined,
  read_turns,
  say,
  with_shared,
)
from llm.errors import UserError
from llm.text.chat_options import ChatOptions

SHAPES = (
  '{"messages": […]}',
  '{"conversations": [{"from": …, "value": …}]} (ShareGPT)',
  '{"prompt": …, "completion": …} (or "response")',
  '{"instruction": …, "input": …, "output": …} (Alpaca)',
  '{"instruction": …, "context": …, "response": …} (Dolly)',
  '{"question": …, "answer": …}',
  '{"text": …}',
)
PROMPTS = (
  '{"prompt": …} (a string or a list of messages)',
  '{"messages": […]} or {"conversations": […]} up to the completion',
  '{"question": …} or {"instruction": …, "input": …}',
)
QUESTIONS = ('instruction', 'question', 'query')
_INPUTS = ('input', 'context')
_REPLIES = ('output', 'response', 'answer')
_COMPLETIONS = ('completion', 'response')
_NAMES = {('instruction', 'output'): 'Alpaca'}
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
_NO_TEMPLATE = 'the tokenizer has no chat template to write it with'
_STRINGS = 'prompt and completion are strings, around which nothing is written'


@dataclasses.dataclass(frozen=True)
class Row:
  """A row in the form that `examples.encode_row` takes.

  It has `messages`, or `text`, or `prompt` with `completion`; a prompt alone
  has no completion.

  Attributes:
    shape: of the row in its file.
    messages: canonical ones; those before `learn_from` are context only.
    weights: the loss weight of each message.
    tools, variables: for the chat template.
    prompt, completion, text: strings.
    unread: columns of the row that are not read.
  """

  shape: str
  messages: list[dict] | None = None
  learn_from: int = 0
  weights: tuple[float, ...] | None = None
  tools: list[dict] | None = None
  variables: dict[str, Any] = dataclasses.field(default_factory=dict)
  prompt: str | None = None
  completion: str | None = None
  text: str | None = None
  unread: tuple[str, ...] = ()

  @property
  def chat(self) -> ChatOptions:
    """What the messages are rendered with besides."""
    return ChatOptions(tools=tuple(self.tools or ()), variables=self.variables)

  @property
  def said(self) -> list[str]:
    """All texts of the row."""
    texts = [message['content'] for message in self.messages or ()]
    return [*texts, *filter(None, (self.prompt, self.completion, self.text))]


def canonical_row(
  value: dict[str, Any],
  has_template: bool,
  options: RowOptions = RowOptions(),
) -> Row:
  """Converts a row of any of SHAPES.

  A column whose value is null counts as missing. `text` counts only where there
  is no other shape, since Alpaca's own file has the rendered row under that
  name. Instructions and questions become messages where the tokenizer has a
  chat template, and Stanford's prompt with a completion where it has none (see
  ALPACA). Prompt and completion may both be message lists; then only what the
  completion says is learned.

  Args:
    value: the row.
    has_template: the tokenizer has a chat template.
    options: of the run.

  Raises:
    UserError: no known shape, two shapes at once, a part of a wrong type, or a
      column whose text could not be rendered. The caller puts file and row
      before the message.
  """
  columns = Columns(value, options.ignore)
  return finished(columns, read_row(columns, has_template, options))


def canonical_prompt(
  value: dict[str, Any],
  has_template: bool,
  options: RowOptions = RowOptions(),
) -> Row:
  """Converts a row of any of PROMPTS, which has no completion.

  Columns besides the prompt are for reward functions and may have any name.

  Args and errors are those of `canonical_row`.
  """
  columns = Columns(value, options.ignore)
  row = read_prompt(columns, has_template, options)
  last = row.messages[-1] if row.messages else {}
  if last.get('role') == 'assistant':
    raise UserError(
      'the prompt ends with what the assistant says; leave that message out'
    )
  return row


def is_prompt(
  value: dict[str, Any], options: RowOptions = RowOptions()
) -> bool:
  """True for a row of a prompt without a completion."""
  columns = Columns(value, options.ignore)
  if any(name in columns for name in COLUMNS):
    name = next(name for name in COLUMNS if name in columns)
    turns = read_turns(columns.take(name), name)
    return turns.messages[-1]['role'] != 'assistant'
  if 'prompt' in columns:
    return not any(name in columns for name in _COMPLETIONS)
  asked = any(name in columns for name in QUESTIONS)
  return asked and not any(name in columns for name in _REPLIES)


def read_row(columns: Columns, has_template: bool, options: RowOptions) -> Row:
  """A row of one of SHAPES; `finished` says which columns are left."""
  shapes = {}
  if name := columns.only(COLUMNS):
    shapes[name] = lambda: _messages(columns, name, options)
  if 'prompt' in columns and any(n in columns for n in _COMPLETIONS):
    shapes['prompt/completion'] = lambda: _completion(columns, options)
  question = next((n for n in QUESTIONS if n in columns), None)
  reply = next((n for n in _REPLIES if n in columns), None)
  if question and reply and 'prompt/completion' not in shapes:
    shape = _NAMES.get((question, reply), f'{question}/{reply}')
    shapes[shape] = lambda: _question(
      columns, shape, reply, has_template, options
    )
  if 'text' in columns and not shapes:
    shapes['text'] = lambda: _text(columns, options)
  if len(shapes) > 1:
    raise UserError(
      f'is of two shapes, {" and ".join(shapes)}: keep one of them, or name the'
      ' columns of the other in data.ignore_columns'
    )
  if not shapes:
    raise UserError(
      f'is of no known shape (its keys: {listed(columns)}); known are'
      f' {"; ".join(SHAPES)}'
    )
  [read] = shapes.values()
  return read()


def read_prompt(
  columns: Columns, has_template: bool, options: RowOptions
) -> Row:
  """The prompt of a row, as messages or as a text, without a completion."""
  shared = take_shared(columns, options)
  if 'prompt' in columns:
    prompt = columns.take('prompt')
    if isinstance(prompt, list):
      return as_row('prompt', read_turns(prompt, 'prompt'), shared)
    if not isinstance(prompt, str):
      raise UserError(f'prompt={prompt!r}: give a string or a list of messages')
    shared.refuse('the prompt is a string, around which nothing is written')
    return Row('prompt', prompt=prompt)
  if name := columns.only(COLUMNS):
    turns = read_turns(columns.take(name), name)
    return as_row('prompt', turns, shared)
  if any(name in columns for name in QUESTIONS):
    asked = take_question(columns)
    if has_template:
      return as_row('prompt', say('user', asked.text), shared)
    shared.refuse(_NO_TEMPLATE)
    return Row('prompt', prompt=asked.prompt)
  raise UserError(
    f'has no prompt (its keys: {listed(columns)}); known are'
    f' {"; ".join(PROMPTS)}'
  )


def finished(columns: Columns, row: Row) -> Row:
  """A row with the columns that were not read.

  Raises:
    UserError: one of them has text that is not in the row.
  """
  return dataclasses.replace(row, unread=columns.unread(row.said))


def as_row(
  shape: str,
  turns: Turns,
  shared: Shared,
  context: int = 0,
) -> Row:
  """A row of messages, of which the first `context` are not learned."""
  whole = with_shared(turns, shared)
  added = len(whole) - len(turns)
  return Row(
    shape,
    messages=list(whole.messages),
    learn_from=context + added if context else 0,
    weights=whole.weights,
    tools=list(shared.chat.tools) or None,
    variables=dict(shared.chat.variables),
  )


@dataclasses.dataclass(frozen=True)
class Question:
  """A question with its input: as what a user says, as Stanford's prompt."""

  text: str
  prompt: str


def take_question(columns: Columns) -> Question:
  """Reads the columns of a question."""
  instruction = columns.text(columns.only(QUESTIONS))
  name = columns.only(_INPUTS)
  more = columns.text(name) if name else ''
  form = ALPACA_INPUT if more else ALPACA
  return Question(
    '\n\n'.join(part for part in (instruction, more) if part),
    form.format(instruction=instruction, input=more),
  )


def listed(columns: Columns) -> str:
  """The names of a row's columns, for messages."""
  return ', '.join(map(repr, columns.names)) or 'none'


def _messages(columns: Columns, name: str, options: RowOptions) -> Row:
  shared = take_shared(columns, options)
  turns = read_turns(columns.take(name), name)
  return as_row(name, turns, shared)


def _completion(columns: Columns, options: RowOptions) -> Row:
  shared = take_shared(columns, options)
  name = columns.only(_COMPLETIONS)
  prompt, completion = columns.take('prompt'), columns.take(name)
  if isinstance(prompt, list) and isinstance(completion, list):
    turns, context = joined(
      read_turns(prompt, 'prompt'), read_turns(completion, name)
    )
    return as_row('prompt/completion', turns, shared, context)
  if isinstance(prompt, list) or isinstance(completion, list):
    raise UserError(
      f'prompt and {name} are a string and a list of messages; give two'
      ' strings or two lists'
    )
  shared.refuse(_STRINGS)
  return Row(
    'prompt/completion',
    prompt=string(prompt, 'prompt'),
    completion=string(completion, name),
  )


def _question(
  columns: Columns,
  shape: str,
  reply: str,
  has_template: bool,
  options: RowOptions,
) -> Row:
  shared = take_shared(columns, options)
  asked, said = take_question(columns), columns.text(reply)
  if has_template:
    turns = say('user', asked.text) + say('assistant', said)
    return as_row(shape, turns, shared)
  shared.refuse(_NO_TEMPLATE)
  return Row(shape, prompt=asked.prompt, completion=said)


def _text(columns: Columns, options: RowOptions) -> Row:
  shared = take_shared(columns, options)
  shared.refuse('the row is a text, around which nothing is written')
  return Row('text', text=columns.text('text'))
