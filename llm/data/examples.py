"""Rows as token ids and loss masks, all checked before training."""

from collections.abc import Iterable, Iterator
import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from llm.data import shapes
from llm.data.columns import RowOptions
from llm.errors import UserError
from llm.text import chat, chat_mask
from llm.text.chat_options import check_template

OVERLONG = ('truncate', 'drop', 'split')


class EmptyCompletionError(UserError):
  """An empty completion: refused in fine-tuning, left out of rated rows."""


class Example(NamedTuple):
  """One row: `tokens` int32[n] and `loss_weights` float32[n].

  A token of weight 0 is not to be predicted. The first one never is, since
  nothing comes before it.
  """

  tokens: np.ndarray
  loss_weights: np.ndarray

  @property
  def loss_mask(self) -> np.ndarray:
    """bool[n], the tokens to predict."""
    return self.loss_weights > 0


@dataclasses.dataclass(frozen=True)
class Examples:
  """Many examples in flat arrays, which may be mapped from disk.

  Attributes:
    tokens: int32[total].
    loss_weights: float32[total].
    offsets: int64[N + 1], where each example begins, and the end of the last.
    digest: of the content; a resumed run compares it.
    counts: what became of the rows: 'rows', 'examples', 'truncated', 'dropped',
      'emptied', 'split', 'shapes' and 'unread', the columns that were not read.
  """

  tokens: np.ndarray = dataclasses.field(repr=False)
  loss_weights: np.ndarray = dataclasses.field(repr=False)
  offsets: np.ndarray = dataclasses.field(repr=False)
  digest: str
  counts: dict

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(f'example {index} of {len(self)}')
    part = slice(self.offsets[index], self.offsets[index + 1])
    return Example(self.tokens[part], self.loss_weights[part])

  @property
  def loss_mask(self) -> np.ndarray:
    """bool[total], the tokens to predict."""
    return self.loss_weights > 0

  @property
  def lengths(self) -> np.ndarray:
    """int64[N], tokens of each example."""
    return np.diff(self.offsets)

  def part(self, start: int, stop: int) -> 'Examples':
    """Examples `start` to `stop`, without copying them."""
    offsets = self.offsets[start : stop + 1]
    tokens = slice(offsets[0], offsets[-1])
    return dataclasses.replace(
      self,
      tokens=self.tokens[tokens],
      loss_weights=self.loss_weights[tokens],
      offsets=offsets - offsets[0],
      digest=f'{self.digest}[{start}:{stop}]',
    )


def from_list(examples: Iterable[Example]) -> Examples:
  """Joins examples into flat arrays in memory."""
  examples = list(examples)
  tokens, masks = [np.zeros(0)], [np.zeros(0)]
  for example in examples:
    tokens.append(example.tokens)
    masks.append(example.loss_weights)
  offsets = np.cumsum([len(part) for part in tokens], dtype=np.int64)
  arrays = [
    np.concatenate(tokens).astype(np.int32),
    np.concatenate(masks).astype(np.float32),
    offsets,
  ]
  content = b''.join(array.tobytes() for array in arrays)
  return Examples(
    *arrays,
    digest=hashlib.sha256(content).hexdigest(),
    counts={'rows': len(examples), 'examples': len(examples)},
  )


def encode_row(tok, row: shapes.Row, learn: str = 'all') -> Example:
  """Token ids and loss weights of one row.

    prompt, completion   BOS prompt completion EOS
                                    ^^^^^^^^^^^^^^
    text                 BOS text EOS
                             ^^^^^^^^
    messages             as `chat_mask.encode_with_mask`

  BOS is there where the tokenizer puts one. EOS is its first end token, and is
  not doubled where the row ends with it. Prompt and completion are joined as
  they are and tokenized once, so that the ids are those of the whole text. A
  token that lies across the seam counts as the completion's, so that the loss
  covers all of its characters.

  Args:
    tok: a `Tokenizer`.
    row: from `shapes.canonical_row`.
    learn: 'all' the assistant's turns, or the 'last' one.

  Raises:
    UserError: the row has nothing to learn, or the tokenizer or its chat
      template refuses it. The caller puts file and row before the message.
  """
  if row.messages is not None:
    ids, weights = _encode_messages(tok, row, learn)
  elif row.text is not None:
    if not row.text:
      raise UserError('text is empty, so that nothing is learned from it')
    ids = tok.encode(row.text)
    if tok.eos_ids and not (ids and ids[-1] in tok.eos_ids):
      ids = [*ids, tok.eos_ids[0]]
    weights = [1.0] * len(ids)
  else:
    ids, weights = _encode_completion(tok, row)
  weights = np.array(weights, np.float32)
  weights[:1] = 0.0
  if not weights.any():
    raise UserError(
      'no token has a loss weight above 0, so that nothing is learned from it'
    )
  return Example(np.array(ids, np.int32), weights)


def encode_prompt_row(tok, row: shapes.Row) -> list[int]:
  """Token ids of a prompt, up to where its completion begins.

  Args:
    tok: a `Tokenizer`.
    row: from `shapes.canonical_prompt`.

  Raises:
    UserError: the tokenizer or its chat template refuses it, or it is empty.
  """
  if row.messages is None:
    ids = tok.encode_prompt(row.prompt)
  else:
    check_template(tok, row.chat)
    ids = chat.encode(tok, row.messages, True, tools=row.tools, **row.variables)
  if not ids:
    raise UserError('the prompt has no token; give it a text')
  return ids


def unread_columns(
  tok, rows: Iterable[shapes.Row], options: RowOptions
) -> list[str]:
  """Columns, and keys of messages, that nothing was read from, in order.

  Args:
    tok: a `Tokenizer`; what its chat template does not read counts too.
    rows: made of one row of a file.
    options: of the run; its `ignore` are left out.
  """
  found = {}
  for row in rows:
    found |= dict.fromkeys(row.unread)
    if row.messages is not None and tok.chat_templates:
      keys = chat.unread_keys(tok, row.messages, tools=row.tools)
      keys = [k for k in keys if k not in ('role', 'content')]
      found |= dict.fromkeys(f'messages.{key}' for key in keys)
  return [name for name in found if name not in options.ignore]


def fit_example(
  example: Example, max_length: int, overlong: str, is_text: bool = True
) -> Iterator[Example]:
  """Yields what is left of an example in rows of `max_length` tokens.

  'truncate' keeps the beginning, 'drop' nothing. 'split' cuts a text into
  windows; the last token of one is the first of the next, so that each token is
  predicted once and none is lost.

    max_length 3: a b c d e -> a b c | c d e

  A window that holds nothing to predict is left out.

  Args:
    example: of any length.
    max_length: tokens of a row, at least 2.
    overlong: one of OVERLONG.
    is_text: only a text can be split; windows of a dialogue would lack the
      question.

  Raises:
    UserError: 'split' on a row that is no text.
  """
  length = len(example.tokens)
  if length <= max_length:
    yield example
  elif overlong == 'truncate':
    kept = Example(*(part[:max_length] for part in example))
    if kept.loss_weights.any():
      yield kept
  elif overlong == 'split':
    if not is_text:
      raise UserError(
        f'has {length} tokens, more than data.max_length={max_length}, and'
        " data.overlong='split' cuts texts only: use 'truncate' or 'drop'"
      )
    for start in range(0, length - 1, max_length - 1):
      part = slice(start, start + max_length)
      weights = example.loss_weights[part].copy()
      weights[0] = 0.0  # the window before has predicted it
      if weights.any():
        yield Example(example.tokens[part], weights)


def check_options(max_length: int, overlong: str) -> None:
  """Refuses values of `data.max_length` and `data.overlong`."""
  if max_length < 2:
    raise UserError(
      f'data.max_length={max_length}: use 2 or more, a token and the next one'
    )
  if overlong not in OVERLONG:
    raise UserError(
      f'data.overlong={overlong!r}: use one of {", ".join(OVERLONG)}'
    )


def check_vocabulary(tok, vocab_size: int) -> None:
  """Refuses a tokenizer that has more ids than the model.

  Args:
    tok: a `Tokenizer`.
    vocab_size: of the model.

  Raises:
    UserError: tok.vocab_size exceeds it.
  """
  if tok.vocab_size > vocab_size:
    raise UserError(
      f'{tok.source}: the tokenizer has {tok.vocab_size} ids and the model'
      f' model.vocab_size={vocab_size}: use the tokenizer of the model, or a'
      ' model with a larger vocabulary'
    )


def _encode_messages(
  tok, row: shapes.Row, learn: str
) -> tuple[list[int], list[float]]:
  learned = chat_mask.learned_turns(
    row.messages, row.learn_from, learn, row.weights
  )
  if not learned:
    raise UserError(
      'has no assistant message to learn, so that nothing is learned from it'
    )
  if not any(_says_something(row.messages[i]) for i in learned):
    raise EmptyCompletionError(
      'has only empty assistant messages, so that nothing is learned from it'
    )
  check_template(tok, row.chat)
  return chat_mask.encode_with_mask(
    tok,
    row.messages,
    learn_from=row.learn_from,
    learn=learn,
    weights=row.weights,
    tools=row.tools,
    variables=row.variables,
  )


def _says_something(message: dict) -> bool:
  keys = ('content', 'reasoning_content', 'tool_calls')
  return any(message.get(key) for key in keys)


def _encode_completion(tok, row: shapes.Row) -> tuple[list[int], list[float]]:
  if not row.completion:
    raise EmptyCompletionError(
      'the completion is empty, so that nothing is learned from it'
    )
  if not tok.eos_ids:
    raise UserError(
      f'{tok.source}: the tokenizer has no end-of-sequence token to put after'
      ' a completion; name its eos_token in tokenizer_config.json'
    )
  text, seam = row.prompt + row.completion, len(row.prompt)
  ids, offsets = tok.encode_with_offsets(text)
  weights = [float(end > seam) for _, end in offsets]
  if not (ids and weights[-1] and ids[-1] in tok.eos_ids):
    ids, weights = [*ids, tok.eos_ids[0]], [*weights, 1.0]
  return ids, weights
