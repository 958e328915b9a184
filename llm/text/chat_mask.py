"""The loss mask of a conversation: the tokens that the assistant writes."""

import bisect
import os
import re

from llm.errors import UserError
from llm.text import chat

_MARK = re.compile('\ue000(\\d+)\ue001')
_PARTS = {'role', 'content', 'name'}


def encode_with_mask(
  tok,
  messages: list[dict],
  *,
  learn_from: int = 0,
  template: str | None = None,
  tools: list[dict] | None = None,
  **variables,
) -> tuple[list[int], list[bool]]:
  """Messages to ids, and a mask of those that the assistant writes.

  The conversation is rendered and tokenized once, as a whole. A token is the
  assistant's where it covers at least one character that the assistant writes.
  In a template with the tags `generation` and `endgeneration` these are the
  characters between them (as transformers' `return_assistant_tokens_mask`). In
  others they are the content of each assistant message and the mark at its end:

    <|im_start|>user⏎hi<|im_end|>⏎<|im_start|>assistant⏎ho<|im_end|>⏎
                                                        ^^^^^^^^^^^^
  The mark is the first special token after the content, or, where the template
  ends a message by plain text, that text without the space at its end. White
  space between the generation prompt and the content counts too, since the
  model has to write it.

  Args:
    tok: a `Tokenizer` with a chat template.
    messages: see `chat.render`.
    learn_from: messages before this one are context only.
    template, tools, **variables: see `chat.render`.

  Returns:
    ids, and one bool for each.

  Raises:
    UserError: as `chat.render`, and where the template drops or changes the
      content of an assistant message, so that it could not be learned.
  """
  options = dict(template=template, tools=tools, **variables)
  text, spans = chat.render_with_generation(tok, messages, **options)
  ids, offsets = tok.encode_with_offsets(text, bos=False)
  speakers = [i for i, m in enumerate(messages) if m['role'] == 'assistant']
  if spans is not None:
    _check_spans(text, spans, messages, speakers)
    if learn_from:
      spans = _later_spans(spans, speakers, learn_from)
  else:
    special = tok.special_ids | set(tok.eos_ids)
    stops = [end for id, (_, end) in zip(ids, offsets) if id in special]
    spans = _find_spans(tok, messages, speakers, text, stops, options)
    spans = [s for s, i in zip(spans, speakers) if i >= learn_from]
  return ids, overlaps(offsets, spans)


def overlaps(
  offsets: list[tuple[int, int]], spans: list[tuple[int, int]]
) -> list[bool]:
  """For each half-open range of `offsets`: does it overlap one of `spans`?

  Args:
    offsets: ranges of tokens; an empty one overlaps nothing.
    spans: ranges in order that do not overlap each other.
  """
  starts = [start for start, _ in spans]
  mask = []
  for start, end in offsets:
    # The last span that begins before the token ends.
    at = bisect.bisect_left(starts, end) - 1
    mask.append(start < end and at >= 0 and start < spans[at][1])
  return mask


def _find_spans(tok, messages, speakers, text, stops, options):
  """The range of each assistant message, with its end mark."""
  for i in speakers:
    keys = [key for key, part in messages[i].items() if part is not None]
    if not _PARTS.issuperset(keys) or not isinstance(
      messages[i].get('content'), str
    ):
      raise UserError(
        f'messages[{i}]: the chat template has no generation tags, and without'
        ' them an assistant message needs a string as its content and nothing'
        f' else (it has {", ".join(map(repr, keys))})'
      )
  if not speakers:
    return []
  pieces = _skeleton(tok, messages, speakers, options)
  try:
    contents = _contents(text, pieces, messages, speakers)
  except UserError:
    last = _spaced_anew(tok, messages, text, pieces[-1], options)
    if last is None:
      raise
    before = chat.render(tok, messages[:-1], False, **options)
    if not text.startswith(before):
      raise
    rest = messages[:-1], speakers[:-1], before, stops, options
    spans = _find_spans(tok, *rest)
    return [*spans, (last[0], last[1] + _end_mark(pieces[-1], last[1], stops))]
  closing = _closing(tok, messages, speakers, pieces, options)
  spans = []
  for n, (i, (start, end)) in enumerate(zip(speakers, contents)):
    zone = os.path.commonprefix([pieces[n + 1], closing])
    start = _answer_start(tok, messages[:i], text, start, options)
    spans.append((start, end + _end_mark(zone, end, stops)))
  return spans


def _skeleton(tok, messages, speakers, options) -> list[str]:
  """The text before, between and after the contents of assistant messages."""
  marked = [dict(message) for message in messages]
  for n, i in enumerate(speakers):
    marked[i]['content'] = f'\ue000{n}\ue001'
  text = chat.render(tok, marked, False, **options)
  pieces = _MARK.split(text)
  found = [int(number) for number in pieces[1::2]]
  for n, i in enumerate(speakers):
    if found.count(n) != 1:
      what = 'repeats' if n in found else 'drops'
      raise _refuse(i, what)
  if found != sorted(found):
    raise _refuse(speakers[0], 'moves')
  return pieces[::2]


def _contents(text, pieces, messages, speakers) -> list[tuple[int, int]]:
  """The range of each content; a template may strip the space around it."""
  at, found = len(pieces[0]), []
  if not text.startswith(pieces[0]):
    raise _refuse(speakers[0], 'changes its text with')
  for n, i in enumerate(speakers):
    content, after = messages[i]['content'], pieces[n + 1]
    forms = (content, content.lstrip(), content.rstrip(), content.strip())
    form = next((f for f in forms if text.startswith(f + after, at)), None)
    if form is None:
      raise _refuse(i, 'changes')
    found.append((at, at + len(form)))
    at += len(form) + len(after)
  if at != len(text):
    raise _refuse(speakers[-1], 'changes')
  return found


def _spaced_anew(tok, messages, text, closing, options):
  """The range of a last message if the template changes only its white space.

  Qwen3's template splits a message at its <think> tags and writes the parts
  again after the generation prompt. None where more than space is changed.
  """
  before, content = messages[:-1], messages[-1]['content']
  if not before or messages[-1]['role'] != 'assistant':
    return None
  try:
    start = len(prompt := chat.render(tok, before, True, **options))
  except UserError:
    return None
  end = len(text) - len(closing)
  same = ''.join(text[start:end].split()) == ''.join(content.split())
  fits = text.startswith(prompt) and text.endswith(closing)
  return (start, end) if fits and same else None


def _closing(tok, messages, speakers, pieces, options) -> str:
  """The text after the last assistant message when it ends a conversation."""
  if speakers[-1] == len(messages) - 1:
    return pieces[-1]
  upto = messages[: speakers[-1] + 1]
  return _skeleton(tok, upto, speakers, options)[-1]


def _end_mark(zone: str, begin: int, stops: list[int]) -> int:
  """Length of the end mark, at the beginning of `zone`.

  Args:
    zone: the text after a content that belongs to its message.
    begin: the position of `zone` in the text.
    stops: the positions at which the special tokens of the text end.
  """
  at = bisect.bisect_right(stops, begin)
  if at < len(stops) and stops[at] <= begin + len(zone):
    return stops[at] - begin
  return len(zone.rstrip()) or len(zone)


def _answer_start(tok, before, text, start, options) -> int:
  """Where the model begins to write a message whose content is at `start`.

  The end of the generation prompt, if only white space is between the two.
  """
  if not before or not text[start - 1 : start].isspace():
    return start
  try:
    prompt = chat.render(tok, before, True, **options)
  except UserError:  # Some templates refuse such a conversation.
    return start
  between = text[len(prompt) : start]
  return len(prompt) if text.startswith(prompt) and between.isspace() else start


def _check_spans(text, spans, messages, speakers) -> None:
  """Refuses a template whose tags leave out content of the assistant."""
  marked = '\0'.join(text[start:end] for start, end in spans)
  at = 0
  for i in speakers:
    content = messages[i].get('content')
    if not isinstance(content, str):
      continue
    found = marked.find(content.strip(), at)
    if found < 0:
      raise _refuse(i, 'drops or changes')
    at = found + len(content.strip())


def _later_spans(spans, speakers, learn_from):
  if len(spans) != len(speakers):
    raise UserError(
      f'the chat template marks {len(spans)} parts of {len(speakers)} assistant'
      ' messages by generation tags, so that those of the prompt cannot be told'
      ' from those of the completion'
    )
  return [s for s, i in zip(spans, speakers) if i >= learn_from]


def _refuse(number: int, what: str) -> UserError:
  return UserError(
    f'messages[{number}]: the chat template {what} what the assistant says, so'
    ' it cannot be learned; change the message or use another template'
  )
