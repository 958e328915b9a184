"""A SentencePiece model as a tokenizer.json of the tokenizers library.

transformers takes a bare `.model` for one like Llama's: BPE that leaves the
text as it is. For unigram models and for those that normalize their input,
`Tokenizer.save` writes this file beside the `.model`. The two encode alike,
except for texts that begin with a space.
"""

import json


def is_plain(data: bytes) -> bool:
  """Whether the model is BPE that leaves its input as it is."""
  from sentencepiece import sentencepiece_model_pb2 as pb

  model = pb.ModelProto.FromString(data)
  spec = model.normalizer_spec
  return model.trainer_spec.model_type == pb.TrainerSpec.BPE and not (
    spec.precompiled_charsmap or spec.remove_extra_whitespaces
  )


def adds_prefix(data: bytes) -> bool:
  """Whether the model puts a space before the text."""
  from sentencepiece import sentencepiece_model_pb2 as pb

  return pb.ModelProto.FromString(data).normalizer_spec.add_dummy_prefix


def to_tokenizer_json(
  data: bytes,
  added: dict[int, dict],
  prefix: list[tuple[str, int]],
  suffix: list[tuple[str, int]],
) -> bytes:
  """Converts a serialized SentencePiece model.

  Args:
    data: the ModelProto.
    added: {id: {'content', 'special', …}} of the special and added tokens.
    prefix: (token, id) put before a text.
    suffix: (token, id) put after a text.
  """
  from sentencepiece import sentencepiece_model_pb2 as pb
  import tokenizers
  from tokenizers import decoders, pre_tokenizers, processors

  proto = pb.ModelProto.FromString(data)
  tokenizer = tokenizers.Tokenizer(_model(proto))
  tokenizer.normalizer = _normalizer(proto.normalizer_spec)
  space = proto.normalizer_spec.add_dummy_prefix
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
    prepend_scheme='first' if space else 'never', split=False
  )
  steps = [decoders.Replace('\u2581', ' ')]
  steps += [decoders.ByteFallback(), decoders.Fuse()]
  steps += [decoders.Strip(' ', 1, 0)] * space
  tokenizer.decoder = decoders.Sequence(steps)
  around = [*(t for t, _ in prefix), '$A', *(t for t, _ in suffix)]
  tokenizer.post_processor = processors.TemplateProcessing(
    single=' '.join(around), special_tokens=[*prefix, *suffix]
  )
  for _, entry in sorted(added.items()):
    tokenizer.add_tokens([tokenizers.AddedToken(**entry)])
  # Without indentation, since a large vocabulary has many merges.
  return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False).encode()


def _model(proto):
  """Unigram with its scores, or BPE with the merges its scores imply."""
  from sentencepiece import sentencepiece_model_pb2 as pb
  from tokenizers import models

  spec = proto.trainer_spec
  pieces = [(piece.piece, piece.score) for piece in proto.pieces]
  if spec.model_type == pb.TrainerSpec.UNIGRAM:
    return models.Unigram(
      pieces, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback
    )
  rank = {piece: id for id, (piece, _) in enumerate(pieces)}
  merges = []
  for piece, score in pieces:
    for at in range(1, len(piece)):
      left, right = piece[:at], piece[at:]
      if left in rank and right in rank:
        merges.append((-score, rank[left], rank[right], left, right))
  return models.BPE(
    vocab=rank,
    merges=[merge[3:] for merge in sorted(merges)],
    unk_token=spec.unk_piece,
    fuse_unk=True,
    byte_fallback=spec.byte_fallback,
  )


def _normalizer(spec):
  from tokenizers import Regex, normalizers

  steps = []
  if spec.precompiled_charsmap:
    steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
  if spec.remove_extra_whitespaces:
    steps += [
      normalizers.Strip(),
      normalizers.Replace(Regex(' {2,}'), ' '),
    ]
  return normalizers.Sequence(steps)
