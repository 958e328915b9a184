"""Bytes written as characters: byte-level BPE, and the tokenizer 'bytes'."""

import json

BYTES_TOKENS = {
  'bos_token': '<|bos|>',
  'eos_token': '<|eos|>',
  'pad_token': '<|pad|>',
}


def byte_characters() -> dict[int, str]:
  """The printable character that byte-level BPE writes for each byte.

  Printable Latin-1 characters stand for themselves, the other 68 bytes take
  the characters from U+0100 on (GPT-2's vocabulary, openai/gpt-2).
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  table = {byte: chr(byte) for byte in printable}
  others = (byte for byte in range(256) if byte not in table)
  return table | {byte: chr(256 + n) for n, byte in enumerate(others)}


def bytes_json() -> bytes:
  """A tokenizer.json whose ids 0 to 255 are the bytes of UTF-8.

  256, 257 and 258 are <|bos|>, <|eos|> and <|pad|>; a text begins with <|bos|>.
  """
  names = list(BYTES_TOKENS.values())
  flags = ('single_word', 'lstrip', 'rstrip', 'normalized')
  vocab = {char: byte for byte, char in byte_characters().items()}
  tokenizer = {
    'version': '1.0',
    'added_tokens': [
      {'id': 256 + n, 'content': name, 'special': True}
      | dict.fromkeys(flags, False)
      for n, name in enumerate(names)
    ],
    'normalizer': None,
    'pre_tokenizer': {
      'type': 'ByteLevel',
      'add_prefix_space': False,
      'trim_offsets': False,
      'use_regex': False,
    },
    'post_processor': {
      'type': 'TemplateProcessing',
      'single': [
        {'SpecialToken': {'id': names[0], 'type_id': 0}},
        {'Sequence': {'id': 'A', 'type_id': 0}},
      ],
      'pair': [
        {'Sequence': {'id': 'A', 'type_id': 0}},
        {'Sequence': {'id': 'B', 'type_id': 0}},
      ],
      'special_tokens': {
        names[0]: {'id': names[0], 'ids': [256], 'tokens': [names[0]]}
      },
    },
    'decoder': {
      'type': 'ByteLevel',
      'add_prefix_space': False,
      'trim_offsets': False,
      'use_regex': False,
    },
    'model': {'type': 'BPE', 'vocab': vocab, 'merges': []},
  }
  return json.dumps(tokenizer, ensure_ascii=False).encode()
