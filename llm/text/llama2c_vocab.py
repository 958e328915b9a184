"""The vocabulary file of llama2.c as a SentencePiece model.

The file (github.com/karpathy/llama2.c, tokenizer.py) is a little-endian int32,
the longest token's length, and then for each id a float32 score, an int32
length and the token's bytes. Its greedy merges by score are SentencePiece's
BPE, so the file is converted to a model proto and no second BPE is needed.
"""

import struct

from llm.errors import UserError

SPACE = '\u2581'
_SPECIAL = ('<unk>', '<s>', '</s>')


def read_vocabulary(
  data: bytes, source, vocab_size: int | None = None
) -> list[tuple[str, float]]:
  """Reads (token, score) by id.

  Args:
    data: the file's bytes.
    source: the file's name, for messages.
    vocab_size: how many tokens the model has; None reads all of them.

  Raises:
    UserError: the file is truncated, holds fewer tokens than `vocab_size`, or
      is not such a file.
  """
  entries, at = [], 4
  while at < len(data) and len(entries) != vocab_size:
    if at + 8 > len(data):
      raise _truncated(source, len(entries))
    score, length = struct.unpack_from('<fi', data, at)
    at += 8
    if length < 0 or at + length > len(data):
      raise _truncated(source, len(entries))
    try:
      token = data[at : at + length].decode()
    except UnicodeDecodeError:
      raise UserError(
        f'{source}: token {len(entries)} is not UTF-8, so this is not a'
        ' llama2.c vocabulary file; give the tokenizer.bin of the model'
      ) from None
    entries.append((token, score))
    at += length
  if vocab_size is not None and len(entries) < vocab_size:
    raise UserError(
      f'{source}: holds {len(entries)} tokens, but the model has vocab_size'
      f' {vocab_size}; give the vocabulary file that the model was trained with'
    )
  return entries


def to_sentencepiece(
  data: bytes, source, vocab_size: int | None = None
) -> bytes:
  """Turns a llama2.c vocabulary file into a serialized SentencePiece model.

  Raises:
    UserError: as `read_vocabulary`, or where ids 3 to 258 are not the bytes
      or no token is the single space, which llama2.c's encoder relies on.
  """
  from sentencepiece import sentencepiece_model_pb2 as pb

  entries = read_vocabulary(data, source, vocab_size)
  tokens = [token.replace(' ', SPACE) for token, _ in entries]
  if tokens[3:259] != [f'<0x{byte:02X}>' for byte in range(256)]:
    raise UserError(
      f'{source}: ids 3 to 258 are not the tokens <0x00> to <0xFF>, so this is'
      ' not a llama2.c vocabulary file; give the tokenizer.bin of the model'
    )
  if SPACE not in tokens:
    raise UserError(
      f'{source}: no token is the single space, which every text begins with;'
      ' export the vocabulary file again with tokenizer.py of llama2.c'
    )
  model = pb.ModelProto()
  kinds = pb.ModelProto.SentencePiece
  for index, (token, (_, score)) in enumerate(zip(tokens, entries)):
    kind = kinds.BYTE if 3 <= index < 259 else kinds.NORMAL
    if index < 3:
      token = _SPECIAL[index]
      kind = kinds.CONTROL if index else kinds.UNKNOWN
    model.pieces.add(piece=token, score=score, type=kind)
  model.trainer_spec.model_type = pb.TrainerSpec.BPE
  model.trainer_spec.vocab_size = len(entries)
  model.trainer_spec.byte_fallback = True
  # llama2.c neither normalizes nor trims; it puts one space before the text.
  model.normalizer_spec.name = 'identity'
  model.normalizer_spec.add_dummy_prefix = True
  model.normalizer_spec.remove_extra_whitespaces = False
  model.normalizer_spec.escape_whitespaces = True
  return model.SerializeToString()


def _truncated(source, count: int) -> UserError:
  return UserError(
    f'{source}: ends in the middle of token {count}; the file is truncated or'
    ' not a llama2.c vocabulary file, fetch it again'
  )
