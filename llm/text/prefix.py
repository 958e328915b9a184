"""The space that some tokenizers put before a text, set as a config says.

`add_prefix_space` of tokenizer_config.json wins over tokenizer.json in the
classes of transformers that build the tokenizer anew (Llama's and GPT-2's);
others go by tokenizer.json alone.
"""

import json
from typing import Any

from llm.errors import UserError

_SPACE = '\u2581'
_LLAMA = ('LlamaTokenizer', 'CodeLlamaTokenizer')
_GPT2 = ('GPT2Tokenizer',)
_REFUSED = ('Qwen2Tokenizer',)


def wanted(config: dict[str, Any], is_json: bool, source) -> bool | None:
  """Whether a text gets a leading space; None: as the tokenizer's file says.

  Args:
    config: tokenizer_config.json.
    is_json: the tokenizer is a tokenizer.json, else a SentencePiece model.
    source: of the tokenizer, for messages.

  Raises:
    UserError: the class does something else with it that is not supported.
  """
  given = config.get('add_prefix_space')
  if given is None or not is_json:
    return given
  name = str(config.get('tokenizer_class', '')).removesuffix('Fast')
  if name in _REFUSED and given:
    raise UserError(
      f'{source}: add_prefix_space=true with tokenizer_class={name!r} is not'
      ' supported: transformers puts a space before each part of a text there;'
      ' set it to false in tokenizer_config.json'
    )
  return given if name in (*_LLAMA, *_GPT2) else None


def set_prefix_space(tokenizer, given: bool) -> None:
  """Changes a tokenizer of the tokenizers library, if it does otherwise.

  Args:
    tokenizer: a `tokenizers.Tokenizer`, byte-level BPE or with SentencePiece's
      mark in its vocabulary.
    given: put a space before a text, or do not.
  """
  from tokenizers import decoders, normalizers, pre_tokenizers

  state = _state(tokenizer.pre_tokenizer)
  if state.get('type') == 'ByteLevel':
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
      add_prefix_space=given, use_regex=state.get('use_regex', True)
    )
    return
  if state.get('type') == 'Sequence':
    return  # byte-level behind a split of its own: no space to set
  if tokenizer.normalizer is not None:
    steps = [
      step
      for step in _steps(_state(tokenizer.normalizer), 'normalizers')
      if step['type'] not in ('Prepend', 'Replace')
    ]
    if steps:
      return  # a normalizer with more to do than marking spaces
    tokenizer.normalizer = normalizers.Sequence([])
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
    replacement=_SPACE,
    prepend_scheme='first' if given else 'never',
    split=False,
  )
  steps = [decoders.Replace(_SPACE, ' ')]
  steps += [decoders.ByteFallback(), decoders.Fuse()]
  steps += [decoders.Strip(' ', 1, 0)] * given
  tokenizer.decoder = decoders.Sequence(steps)


def _state(part) -> dict:
  return {} if part is None else json.loads(part.__getstate__())


def _steps(state: dict, name: str) -> list[dict]:
  return state[name] if state.get('type') == 'Sequence' else [state]
