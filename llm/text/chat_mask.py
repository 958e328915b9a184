"""What a model learns of a conversation: the tokens that the assistant writes.

The conversation is rendered and tokenized once, as a whole. A template with the
tags `generation` and `endgeneration` marks the assistant's text itself. For all
others the turns are found by `turns.find_turn`, from the places of the rendered
text that change with a message. Either way a token is learned where it covers
at least one learned character.
"""

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from llm.errors import UserError
from llm.text import chat, turns
from llm.text.messages import canonical_messages

LEARN = ('all', 'last')


def encode_with_mask(
  tok,
  messages: list[dict],
  *,
  learn_from: int = 0,
  learn: str = 'all',
  weights: Sequence[float] | None = None,
  template: str | None = None,
  tools: list[dict] | None = None,
  variables: Mapping[str, Any] | None = None,
) -> tuple[list[int], list[float]]:
  """Messages to ids, and the loss weight of each: 0 for what is context.

  An assistant's turn is learned from where the generation prompt ends up to and
  with the mark that ends the turn, with all that the template writes between:

    <|im_start|>user⏎hi<|im_end|>⏎<|im_start|>assistant⏎ho<|im_end|>⏎
                                                        ^^^^^^^^^^^^

  Where the mark of the next role ends a turn, as in GLM's templates, the last
  turn of a conversation gets that mark too.

  Args:
    tok: a `Tokenizer` with a chat template.
    messages: see `chat.render`.
    learn_from: messages before this one are context only.
    learn: 'all' the assistant's turns from there on, or the 'last' one.
    weights: one per message, 0 or more; None: 1 for each. Those of the
      assistant's turns count.
    template, tools: see `chat.render`.
    variables: further variables of the template.

  Returns:
    ids, and one weight for each.

  Raises:
    UserError: as `chat.render`; the template leaves out or changes what a
      message says; or nothing marks the end of a learned turn. The message is
      named by its number.
  """
  messages = canonical_messages(messages)
  options = dict(template=template, tools=tools, **(variables or {}))
  chosen = learned_turns(messages, learn_from, learn, weights)
  text, marked = chat.render_with_generation(tok, messages, **options)
  page = turns.open_page(tok, messages, text, options)
  mark = ''
  if marked is None:
    spans, mark = _find(page, chosen)
  else:
    spans = _marked(page, marked, chosen)
  for i in range(len(messages)):
    if i not in chosen:
      turns.check_context(page, i)
  turns.check_tools(page, tools)
  ids, offsets = tok.encode_with_offsets(text + mark, bos=False)
  learned = [1.0 if weights is None else float(weights[i]) for i in spans]
  inside = overlapped(offsets, list(spans.values()))
  return ids, [0.0 if at is None else learned[at] for at in inside]


def learned_turns(
  messages: list[dict],
  learn_from: int,
  learn: str,
  weights: Sequence[float] | None,
) -> list[int]:
  """The numbers of the messages that are learned, in order.

  Args are those of `encode_with_mask`.
  """
  found = [
    i
    for i in range(learn_from, len(messages))
    if messages[i]['role'] == 'assistant'
  ]
  found = found[-1:] if learn == 'last' else found
  return [i for i in found if weights is None or weights[i]]


def overlapped(
  offsets: list[tuple[int, int]], spans: list[tuple[int, int]]
) -> list[int | None]:
  """For each half-open range of `offsets`: which of `spans` it overlaps.

  The last one where there are several, None where there is none.

  Args:
    offsets: ranges of tokens; an empty one overlaps nothing.
    spans: ranges in order that do not overlap each other.
  """
  starts = [start for start, _ in spans]
  found = []
  for start, end in offsets:
    # The last span that begins before the token ends.
    at = bisect.bisect_left(starts, end) - 1
    inside = start < end and at >= 0 and start < spans[at][1]
    found.append(at if inside else None)
  return found


def _find(
  page: turns.Page, chosen: list[int]
) -> tuple[dict[int, tuple[int, int]], str]:
  """The range of each learned turn, by the number of its message.

  And the mark that is to be put after the text, so that its last turn ends.
  """
  spans, after, mark = {}, 0, ''
  for i in chosen:
    start, after, mark = turns.find_turn(page, i, after)
    spans[i] = (start, after + len(mark))
  return spans, mark


def _marked(
  page: turns.Page, marked: list[tuple[int, int]], chosen: list[int]
) -> dict[int, tuple[int, int]]:
  """The same from the ranges between the tags of the template."""
  speakers = learned_turns(page.messages, 0, 'all', None)
  if len(marked) != len(speakers):
    raise UserError(
      f'the chat template marks {len(marked)} parts of {len(speakers)}'
      ' assistant messages by generation tags, so that it is not known which'
      ' part belongs to which message; use a template that marks each once'
    )
  spans = dict(zip(speakers, marked))
  for i in chosen:
    turns.check_turn(page, i, spans[i])
  return {i: turns.with_end_mark(page, spans[i]) for i in chosen}
