"""Token ids to text while they arrive, and stop strings: pure functions.

Each takes a state and returns a new one, so a stream can be forked, stored or
replayed. Work per token does not depend on how much came before.

Worked trace, the euro sign (E2 82 AC) as three byte tokens and then " x":

  state = start()
  state, text = push(tok, state, [E2])     # '' (half a character is withheld)
  state, text = push(tok, state, [82, AC])  # the euro sign
  state, text = push(tok, state, [' x', E2])  # ' x'
  state, text = flush(tok, state)            # U+FFFD, nothing more can come
"""

import codecs
from collections.abc import Iterable, Sequence
from typing import NamedTuple

REPLACEMENT = '\ufffd'


class Piece(NamedTuple):
  """What one token id contributes to the text.

  Attributes:
    data: its bytes, with SentencePiece's mark already turned into a space.
    is_byte: whether `data` may hold a part of a character.
    special: whether it is left out where special tokens are skipped.
  """

  data: bytes
  is_byte: bool
  special: bool


class State(NamedTuple):
  """Where a stream of tokens stands.

  Attributes:
    pending: bytes of a character that is not complete yet (at most 3).
    leading: whether the tokenizer's space before the first word has yet to be
      dropped.
    skip_special: whether special tokens are left out.
  """

  pending: bytes = b''
  leading: bool = True
  skip_special: bool = True


def start(skip_special: bool = True, continued: bool = False) -> State:
  """The state before the first token.

  Args:
    skip_special: leave out special tokens (BOS, EOS, chat marks).
    continued: the text follows other text, so that the space before its first
      word is kept.
  """
  return State(leading=not continued, skip_special=skip_special)


def push(tok, state: State, ids: Iterable[int]) -> tuple[State, str]:
  """Takes the next tokens and returns the text that is certain now.

  The pieces returned by successive calls, with `flush` at the end, join to
  `tok.decode` of all ids, however the ids were split into calls. Invalid bytes
  become U+FFFD: one for each maximal part of a character where the tokenizer
  works on bytes (as in the tokenizers library and in Python), one for each
  byte where bytes are a fallback only (as in SentencePiece).

  Args:
    tok: a `Tokenizer`.
    state: from `start` or an earlier call.
    ids: token ids; an id without a token adds nothing.
  """
  pending, leading, skip_special = state
  texts = []
  for token in ids:
    piece = tok.piece(int(token))
    if piece is None or (piece.special and skip_special):
      continue
    if piece.is_byte:
      text, pending = _decode(pending + piece.data, tok.replace_each, False)
    else:
      text, pending = _decode(pending, tok.replace_each, True)
      text += piece.data.decode()
    text, leading = _lead(tok.lead, text, leading)
    texts.append(text)
  return State(pending, leading, skip_special), ''.join(texts)


def flush(tok, state: State) -> tuple[State, str]:
  """Ends the stream: withheld bytes can no longer become a character."""
  if not state.pending:
    return state, ''
  text, _ = _decode(state.pending, tok.replace_each, True)
  text, leading = _lead(tok.lead, text, state.leading)
  return State(b'', leading, state.skip_special), text


def _decode(data: bytes, each: bool, final: bool) -> tuple[str, bytes]:
  """UTF-8 to (text, bytes that may begin a character); see `push`."""
  text = ''
  while True:
    try:
      tail, used = codecs.utf_8_decode(data, 'strict', final)
      return text + tail, data[used:]
    except UnicodeDecodeError as error:
      text += data[: error.start].decode()
      text += REPLACEMENT * (error.end - error.start if each else 1)
      data = data[error.end :]


def _lead(rule: str, text: str, leading: bool) -> tuple[str, bool]:
  """Applies the tokenizer's rule for spaces at the start of the text.

  Args:
    rule: 'keep'; 'one' (drop one space before the text); 'each' (drop one of
      each token until there is text); 'token' (drop those of the first token);
      'join' (tokens are words: put a space before all but the first).
    text: what this token adds.
    leading: whether the text has not begun yet.
  """
  if rule == 'join':
    return (text if leading else ' ' + text), False
  if not leading or rule == 'keep':
    return text, False
  if rule == 'token':
    return text.lstrip(' '), False
  rest = text.removeprefix(' ')
  return rest, not (rest if rule == 'each' else text)


class StopState(NamedTuple):
  """Where the search for stop strings stands.

  Attributes:
    held: text withheld because a stop string may have begun in it.
    stop: the stop string that was found; no text is returned after it.
  """

  held: str = ''
  stop: str | None = None


def push_stop(
  stops: Sequence[str], state: StopState, text: str
) -> tuple[StopState, str]:
  """Takes the next text and returns what can be shown.

  Text is withheld as long as a stop string may begin with it. The stream is cut
  before the stop string that is complete first (the longest of those that end
  at the same character), so that the result does not depend on how the text was
  split. Trace with stops ['END']: push 'aE' -> 'a' (held 'E'), push 'x' ->
  'Ex', push 'EN' -> '', push 'D..' -> '' and stop = 'END'.
  """
  if state.stop is not None:
    return state, ''
  text = state.held + text
  found = []
  for stop in stops:
    at = text.find(stop) if stop else -1
    if at >= 0:
      found.append((at + len(stop), at, stop))
  if found:
    _, at, stop = min(found)
    return StopState('', stop), text[:at]
  longest = max(map(len, stops), default=1) - 1
  for at in range(max(0, len(text) - longest), len(text)):
    if any(stop.startswith(text[at:]) for stop in stops):
      return StopState(text[at:], None), text[:at]
  return StopState('', None), text


def flush_stop(state: StopState) -> tuple[StopState, str]:
  """Ends the text: returns what was withheld, since no stop string came."""
  return StopState('', state.stop), state.held
