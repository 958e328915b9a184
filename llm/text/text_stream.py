"""The text of one completion while its tokens arrive, cut at stop strings."""

from collections.abc import Iterable, Sequence
import dataclasses

from llm.text import detokenize


@dataclasses.dataclass
class TextStream:
  """Collects one completion.

  Attributes:
    tokenizer: None counts tokens only.
    stops: strings before which the text ends.
    end_ids: tokens that end the completion and are no part of its text.
    state: of the detokenizer.
    stop_state: of the search for stop strings.
    visible: for each character that the search withholds, whether it is of the
      text: special tokens are searched for stops and not shown.
    text: what is certain so far.
    length: tokens so far, including the one that ended the completion.
  """

  tokenizer: object
  stops: Sequence[str] = ()
  end_ids: Sequence[int] = ()
  state: detokenize.State = detokenize.start()
  stop_state: detokenize.StopState = detokenize.StopState()
  visible: list[bool] = dataclasses.field(default_factory=list)
  text: str = ''
  length: int = 0

  @property
  def stopped(self) -> bool:
    return self.stop_state.stop is not None

  def push(self, ids: Iterable[int]) -> str:
    """Takes the next tokens; returns the text that can be shown now."""
    shown = []
    for token in ids:
      if self.stopped:
        break
      self.length += 1
      if self.tokenizer is None or token in self.end_ids:
        continue
      piece = self.tokenizer.piece(int(token))
      if piece is not None and piece.special:
        text = piece.data.decode(errors='replace')
        shown.append(self._search(text, visible=False))
        continue
      self.state, text = detokenize.push(self.tokenizer, self.state, [token])
      shown.append(self._search(text))
    return self._show(shown)

  def finish(self) -> str:
    """Ends the completion; returns the text that was withheld until now."""
    if self.tokenizer is None or self.stopped:
      return ''
    self.state, text = detokenize.flush(self.tokenizer, self.state)
    shown = [self._search(text)]
    self.stop_state, text = detokenize.flush_stop(self.stop_state)
    return self._show([*shown, self._only_visible(text)])

  def _search(self, text: str, visible: bool = True) -> str:
    """Adds text to the search for stop strings; returns what can be shown."""
    self.visible += [visible] * len(text)
    self.stop_state, text = detokenize.push_stop(
      self.stops, self.stop_state, text
    )
    return self._only_visible(text)

  def _only_visible(self, text: str) -> str:
    """What is shown of text that is withheld no longer."""
    shown = ''.join(c for c, on in zip(text, self.visible) if on)
    self.visible = self.visible[len(text) :]
    return shown

  def _show(self, pieces: list[str]) -> str:
    text = ''.join(pieces)
    self.text += text
    return text


def start_stream(
  tokenizer,
  prompt: Sequence[int],
  stops: Sequence[str],
  end_ids: Sequence[int],
  continues: bool,
) -> TextStream:
  """A stream for the completion of `prompt`.

  With `continues` the completion continues the prompt's text, and the two join
  to one text; otherwise it is a text of its own.
  """
  state = detokenize.start()
  if tokenizer is not None and continues:
    state, _ = detokenize.push(tokenizer, state, prompt)
  return TextStream(tokenizer, tuple(stops), tuple(end_ids), state)
