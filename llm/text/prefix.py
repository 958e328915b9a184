"""The space that some tokenizers put before a text, set as a config says.

The classes of transformers that build a tokenizer anew (Llama's, GPT-2's) have
settings of their own for it, which win over the tokenizer's file. With other
classes the file alone counts.
"""

import json
from typing import Any, NamedTuple

from llm.errors import UserError

_SPACE = '\u2581'
_LLAMA = ('LlamaTokenizer', 'CodeLlamaTokenizer')
_GPT2 = ('GPT2Tokenizer', 'GPTNeoXTokenizer', 'CodeGenTokenizer')
_QWEN2 = 'Qwen2Tokenizer'
# Kinds of models whose tokenizer transformers 5 takes as the file has it, also
# where tokenizer_config.json names one of the classes above (`AutoTokenizer`).
_BY_FILE = frozenset(
  'glm glm4 granite ministral ministral3 mistral mixtral olmo2 olmo3 phi3'
  ' stablelm'.split()
)


class Prefix(NamedTuple):
  """Where a leading space is put.

  Attributes:
    space: before the text; None: as the tokenizer's file says.
    later: before the parts behind special tokens: 'none', 'all', or 'unspaced',
      those that do not begin with a space.
    is_llama: the class is Llama's, which knows SentencePiece's mark only.
  """

  space: bool | None = None
  later: str = 'none'
  is_llama: bool = False


def wanted(
  config: dict[str, Any], model_type: str | None, is_json: bool, source
) -> Prefix:
  """Where transformers 5 puts a leading space.

  Args:
    config: tokenizer_config.json.
    model_type: of config.json.
    is_json: the tokenizer is a tokenizer.json, else a SentencePiece model.
    source: of the tokenizer, for messages.

  Raises:
    UserError: the class does something else with it that is not supported.
  """
  given = config.get('add_prefix_space')
  name = str(config.get('tokenizer_class') or '').removesuffix('Fast')
  if model_type in _BY_FILE and name:
    name = 'TokenizersBackend'
  if name in _LLAMA:
    later = 'unspaced' if config.get('legacy') else 'none'
    return Prefix(is_json if given is None and is_json else given, later, True)
  if not is_json:
    return Prefix(None, 'all' if config.get('legacy', bool(name)) else 'none')
  if given and _QWEN2 in (name, model_type == 'qwen2' and _QWEN2):
    raise UserError(
      f'{source}: add_prefix_space=true with tokenizer_class={_QWEN2!r} is not'
      ' supported: transformers puts a space before each part of a text there;'
      ' set it to false in tokenizer_config.json'
    )
  return Prefix(given if name in _GPT2 else None)


def set_prefix(data: bytes, prefix: Prefix, source) -> bytes:
  """A tokenizer.json that puts a leading space where `prefix` says.

  Args:
    data: of the file: byte-level BPE, or BPE with SentencePiece's mark in its
      vocabulary. Others are returned as they are.
    prefix: from `wanted`.
    source: of the tokenizer, for messages.

  Raises:
    UserError: the file splits texts before the space would be put.
  """
  if prefix.space is None:
    return data
  try:
    value = json.loads(data)
    steps = _steps(value.get('pre_tokenizer'), 'pretokenizers')
    cleaning = _steps(value.get('normalizer'), 'normalizers')
    is_bpe = value['model']['type'] == 'BPE'
  except (ValueError, AttributeError, KeyError, TypeError):
    return data  # the tokenizers library says what is wrong with it
  levels = [step for step in steps if step.get('type') == 'ByteLevel']
  if levels and not prefix.is_llama:
    if levels[0].get('add_prefix_space') == prefix.space:
      return data
    if len(steps) > 1:
      raise UserError(
        f'{source}: add_prefix_space={str(prefix.space).lower()} is not'
        ' supported here, where a text is split before it becomes bytes; leave'
        ' it out of tokenizer_config.json'
      )
    levels[0]['add_prefix_space'] = prefix.space
  elif is_bpe and prefix.is_llama and not levels and _marks_spaces(cleaning):
    _set_llama(value, prefix)
  return json.dumps(value, ensure_ascii=False).encode()


def _set_llama(value: dict, prefix: Prefix) -> None:
  """Changes a tokenizer.json to what `LlamaTokenizer` makes of it."""
  scheme = 'always' if prefix.later == 'unspaced' else 'first'
  value['normalizer'] = None
  value['pre_tokenizer'] = {
    'type': 'Metaspace',
    'replacement': _SPACE,
    'prepend_scheme': scheme if prefix.space else 'never',
    'split': False,
  }
  mark = {'type': 'Replace', 'pattern': {'String': _SPACE}, 'content': ' '}
  strip = {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}
  steps = [mark, {'type': 'ByteFallback'}, {'type': 'Fuse'}]
  steps += [strip] * prefix.space
  value['decoder'] = {'type': 'Sequence', 'decoders': steps}


def _marks_spaces(steps: list[dict]) -> bool:
  """Whether a normalizer does nothing else than to mark spaces."""
  return {step.get('type') for step in steps} <= {'Prepend', 'Replace'}


def _steps(state: dict | None, name: str) -> list[dict]:
  if state is None:
    return []
  return state[name] if state.get('type') == 'Sequence' else [state]
