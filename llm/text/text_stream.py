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
    text: what is certain so far.
    length: tokens so far, including the one that ended the completion.
  """

  tokenizer: object
  stops: Sequence[str] = ()
  end_ids: Sequence[int] = ()
  state: detokenize.State = detokenize.start()
  stop_state: detokenize.StopState = detokenize.StopState()
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
    return self._show([*shown, text])

  def _search(self, text: str) -> str:
    self.stop_state, text = detokenize.push_stop(
      self.stops, self.stop_state, text
    )
    return text

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
