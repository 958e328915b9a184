"""The token that ends an assistant's turn in a chat template."""

import functools

from llm.errors import UserError
from llm.text import chat_mask

_PROBE = [
  {'role': 'user', 'content': 'a'},
  {'role': 'assistant', 'content': 'b'},
]


@functools.lru_cache(maxsize=32)
def turn_end(tok) -> int | None:
  """The special token that the template writes after what the assistant says.

  None where there is no template, or nothing special ends a turn.

  Args:
    tok: a `Tokenizer`.
  """
  if not tok.chat_templates:
    return None
  try:
    ids, weights = chat_mask.encode_with_mask(tok, _PROBE)
  except UserError:  # a template may refuse any conversation
    return None
  last = max(i for i, weight in enumerate(weights) if weight)
  return ids[last] if ids[last] in tok.special_ids else None
