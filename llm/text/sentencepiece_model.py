"""A SentencePiece `.model`, with the methods that `backends` lists."""

import re

from llm.errors import UserError
from llm.text import convert
from llm.text.prefix import Prefix

_SPACE = '\u2581'


class SentencePieceModel:
  """A SentencePiece `.model`, with the added tokens of a HF folder.

  Special and added tokens that occur in a text become their ids; the parts
  between go through SentencePiece. Which of them get SentencePiece's leading
  space is a matter of `prefix`.

  Args:
    data: the file's bytes, a serialized ModelProto.
    source: its name, for messages.
    named: {content: flags} of special tokens; unknown ones are appended.
    added: {id: {'content', 'special', 'lstrip', …}}.
    prefix: where a leading space is put.
    match_special: False takes '<s>' in a text as plain characters.
  """

  def __init__(
    self,
    data,
    source,
    named=None,
    added=None,
    prefix=Prefix(),
    match_special=True,
  ):
    from sentencepiece import SentencePieceProcessor
    from sentencepiece import sentencepiece_model_pb2 as pb

    self._data = data
    self._rest = (source, named, prefix, match_special)
    self._later_parts = prefix.later
    model = pb.ModelProto()
    try:
      model.ParseFromString(data)
      self._first = SentencePieceProcessor(model_proto=data)
    except Exception as error:  # The two libraries have their own exceptions.
      raise UserError(
        f'{source}: not a SentencePiece model ({error}); fetch it again'
      ) from None
    if model.trainer_spec.treat_whitespace_as_suffix:
      raise UserError(
        f'{source}: treat_whitespace_as_suffix is not supported; train the'
        ' model without it'
      )
    spec = model.normalizer_spec
    if prefix.space not in (None, spec.add_dummy_prefix):
      spec.add_dummy_prefix = prefix.space
      self._first = SentencePieceProcessor(
        model_proto=model.SerializeToString()
      )
    self.lead = 'one' if spec.add_dummy_prefix else 'keep'
    if spec.remove_extra_whitespaces:
      self.lead = 'each'
    self._later = self._first
    if spec.add_dummy_prefix:
      spec.add_dummy_prefix = False
      self._later = SentencePieceProcessor(
        model_proto=model.SerializeToString()
      )
    self.replace_each = True
    sp, self._base = self._first, self._first.get_piece_size()
    ids = (sp.bos_id(), sp.eos_id(), sp.pad_id(), sp.unk_id())
    names = ('bos_token', 'eos_token', 'pad_token', 'unk_token')
    self.tokens = {n: sp.id_to_piece(i) for n, i in zip(names, ids) if i >= 0}
    # A .model does not say; a model that has a BOS was trained with it.
    self.prefix = [sp.bos_id()] * (sp.bos_id() >= 0)
    self.suffix = []
    self._add(source, named or {}, added or {})
    self._pattern = self._compile(match_special)

  def with_tokens(self, tokens: list[str]) -> 'SentencePieceModel':
    """The same with further tokens, whose ids follow on."""
    source, named, *options = self._rest
    added = self.added_tokens() | {
      self.size + n: {'content': token, 'special': False}
      for n, token in enumerate(tokens)
    }
    return SentencePieceModel(self._data, source, named, added, *options)

  def added_tokens(self) -> dict[int, dict]:
    """The tokens behind the model's own vocabulary, {id: {'content', …}}."""
    flags = ('lstrip', 'rstrip', 'single_word')
    return {
      id: {'content': content, 'special': id in self.special}
      | dict(zip(flags, values))
      for id, (content, *values) in self._added.items()
      if id >= self._base
    }

  def _add(self, source, named, added):
    """Collects the tokens that are matched in a text before SentencePiece."""
    sp = self._first
    self._added = {  # id -> (content, lstrip, rstrip, single_word)
      id: (sp.id_to_piece(id), False, False, False)
      for id in range(self._base)
      if sp.is_control(id) or sp.is_unknown(id)
    }
    self.special = set(self._added)
    self.size = self._base
    for id, entry in sorted(added.items()):
      if id > self.size:
        raise UserError(
          f'{source}: added token {entry["content"]!r} has id {id}, but the'
          f' vocabulary ends at {self.size - 1}; added ids must follow on'
        )
      flags = (entry.get(k, False) for k in ('lstrip', 'rstrip', 'single_word'))
      self._added[id] = (entry['content'], *flags)
      self.size = max(self.size, id + 1)
      if entry.get('special'):
        self.special.add(id)
    self._ids = {content: id for id, (content, *_) in self._added.items()}
    for content, flags in named.items():
      id = self.id(content)
      if id is None:
        id, self.size = self.size, self.size + 1
      given = (flags.get(k, False) for k in ('lstrip', 'rstrip', 'single_word'))
      self._added.setdefault(id, (content, *given))
      self._ids[content] = id
      self.special.add(id)

  def _compile(self, match_special: bool) -> re.Pattern | None:
    parts = []
    matched = [
      entry
      for id, entry in self._added.items()
      if match_special or id not in self.special
    ]
    for content, lstrip, rstrip, word in sorted(
      matched, key=lambda entry: -len(entry[0])
    ):
      body = f'({re.escape(content)})'
      if word:
        body = rf'(?<!\w){body}(?!\w)'
      parts.append(r'\s*' * lstrip + body + r'\s*' * rstrip)
    return re.compile('|'.join(parts)) if parts else None

  def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    ids, offsets, at = [], [], 0
    matches = self._pattern.finditer(text) if self._pattern else ()
    for match in matches:
      self._plain(text, at, match.start(), ids, offsets)
      content = match[match.lastindex]
      ids.append(self._ids[content])
      offsets.append(match.span())
      at = match.end()
    self._plain(text, at, len(text), ids, offsets)
    return ids, offsets

  def _plain(self, text, begin, end, ids, offsets):
    """Appends the tokens of text[begin:end], which has no special token."""
    from sentencepiece import sentencepiece_pb2 as pb

    part = text[begin:end]
    if not part:
      return
    later = self._later_parts
    prefixed = not begin or later == 'all'
    prefixed |= later == 'unspaced' and part[0] != ' '
    sp = self._first if prefixed else self._later
    pieces = pb.SentencePieceText.FromString(
      sp.encode(part, out_type='serialized_proto')
    ).pieces
    characters = _character_of_byte(part)
    for at, piece in enumerate(pieces):
      stop = piece.end
      if sp.is_byte(piece.id):
        # Only the last byte token of a character carries its extent.
        ends = (pieces[k].end for k in range(at, len(pieces)))
        stop = next((end for end in ends if end > piece.begin), stop)
      ids.append(piece.id)
      offsets.append(
        (begin + characters[piece.begin], begin + characters[stop])
      )

  def token(self, id: int) -> str | None:
    if id in self._added:
      return self._added[id][0]
    return self._first.id_to_piece(id) if 0 <= id < self._base else None

  def id(self, token: str) -> int | None:
    if token in self._ids:
      return self._ids[token]
    id = self._first.piece_to_id(token)
    return id if self._first.id_to_piece(id) == token else None

  def raw(self, id: int) -> tuple[bytes, bool] | None:
    token = self.token(id)
    if token is None or id in self._added:
      return token and (token.encode(), False)
    if self._first.is_byte(id):
      return bytes.fromhex(token[3:5]), True
    return token.replace(_SPACE, ' ').encode(), False

  def files(self, config, prefix, suffix) -> tuple[dict[str, bytes], dict]:
    written = {'tokenizer.model': self._data}
    # transformers adds nothing around a text unless these fields are set.
    extra = {'add_bos_token': bool(prefix), 'add_eos_token': bool(suffix)}
    if 'tokenizer_class' in config:
      return written, extra
    if convert.is_plain(self._data):
      extra['tokenizer_class'] = 'LlamaTokenizer'
      extra['add_prefix_space'] = convert.adds_prefix(self._data)
      return written, extra
    extra['tokenizer_class'] = 'PreTrainedTokenizerFast'
    flags = ('lstrip', 'rstrip', 'single_word')
    added = {
      id: {'content': content, 'special': id in self.special}
      | {'normalized': False}
      | dict(zip(flags, values))
      for id, (content, *values) in self._added.items()
    }
    written['tokenizer.json'] = convert.to_tokenizer_json(
      self._data, added, prefix, suffix
    )
    return written, extra


def _character_of_byte(text: str) -> list[int]:
  """Character index of each byte of the UTF-8 text, and of its end."""
  table = []
  for at, char in enumerate(text):
    table.extend([at] * len(char.encode()))
  return table + [len(text)]
