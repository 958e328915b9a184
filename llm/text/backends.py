"""A tokenizer.json, read by the tokenizers library.

`TokenizerJson` and `sentencepiece_model.SentencePieceModel` have the same
methods:
  encode(text) -> (ids, offsets)   nothing is added before or after
  token(id) -> str | None          id(token) -> int | None
  raw(id) -> (bytes, is_byte) | None
  special: set of ids that count as special tokens
  size: one more than the largest id
  tokens: {'bos_token': '<s>', …} as far as the file itself names them
  prefix, suffix: ids that the tokenizer itself puts around a text
  lead, replace_each: how its tokens join to text, see `detokenize`
  files(config, prefix, suffix)    the files that `Tokenizer.save` writes, as
    {name: bytes}, and the entries of tokenizer_config.json that go with them
"""

import json
import re

from llm.errors import UserError
from llm.text.byte_level import byte_characters
from llm.text.files import FLAGS
from llm.text.prefix import Prefix, set_prefix

_SPACE = '\u2581'
_BYTE_TOKEN = re.compile(r'<0x([0-9A-Fa-f]{2})>')
_CHARACTER_BYTES = {char: byte for byte, char in byte_characters().items()}


class TokenizerJson:
  """A `tokenizer.json` of the tokenizers library.

  Args:
    data: the file's bytes.
    source: its name, for messages.
    named: {content: flags} of special tokens; those that the file lacks are
      appended, those that it has become special and keep their flags.
    added: {id: {'content', 'special', 'lstrip', …}} of tokenizer_config.json.
    prefix: where a leading space is put.
    match_special: False takes special tokens in a text as plain characters.
  """

  def __init__(
    self,
    data: bytes,
    source,
    named=None,
    added=None,
    prefix=Prefix(),
    match_special=True,
  ):
    import tokenizers
    from tokenizers import processors

    self._data = data
    self._rest = (source, named, added, prefix, match_special)
    self.tokens = {}
    data = set_prefix(data, prefix, source)
    try:
      self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # The library raises bare Exception.
      raise UserError(
        f'{source}: not a tokenizer.json that the tokenizers library'
        f' {tokenizers.__version__} reads ({error}); fetch the file again'
      ) from None
    self._add(source, named or {}, added or {})
    self._tokenizer.encode_special_tokens = not match_special
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self.prefix, self.suffix = self._around()
    # A processor that adds nothing: prefix and suffix are known now, and
    # without the file's own the offsets of a token keep its leading space.
    self._tokenizer.post_processor = processors.TemplateProcessing(single='$A')
    entries = self._tokenizer.get_added_tokens_decoder()
    self.special = {id for id, entry in entries.items() if entry.special}
    self._added = set(entries)
    self.size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
    self._plan(source)

  def _add(self, source, named, added):
    """Adds the tokens of other files, or changes their flags."""
    from tokenizers import AddedToken

    known = {
      entry.content: _flags(entry)
      for entry in self._tokenizer.get_added_tokens_decoder().values()
    }
    for index, entry in sorted(added.items()):
      content = entry['content']
      flags = {flag: entry[flag] for flag in FLAGS if flag in entry}
      if known.get(content, {}).items() >= flags.items():
        continue
      # An added_tokens.json has no flags to set.
      if content in known and flags.keys() == {'special'}:
        continue
      self._tokenizer.add_tokens([AddedToken(**entry)])
      _check_added(source, content, index, self.id(content))
      known[content] = flags
    for content, flags in named.items():
      flags = {'normalized': False} | flags | known.get(content, {})
      flags |= {'special': True}
      self._tokenizer.add_special_tokens([AddedToken(content, **flags)])

  def with_tokens(self, tokens: list[str]) -> 'TokenizerJson':
    """The same with further tokens, whose ids follow on."""
    value = json.loads(self._data)
    known = {entry['id'] for entry in value.get('added_tokens') or ()}
    entries = self._tokenizer.get_added_tokens_decoder()
    added = [
      # Tokens that another file has added stand before the new ones.
      {'id': id, 'content': entry.content} | _flags(entry)
      for id, entry in entries.items()
      if id not in known
    ]
    added += [
      {'id': self.size + n, 'content': token} | dict.fromkeys(FLAGS, False)
      for n, token in enumerate(tokens)
    ]
    value['added_tokens'] = [*(value.get('added_tokens') or ()), *added]
    data = json.dumps(value, ensure_ascii=False).encode()
    more = TokenizerJson(data, *self._rest)
    for token in tokens:
      if (taken := self.token(more.id(token))) is not None:
        raise UserError(
          f'tokenizer.add_tokens: {token!r} would get id {more.id(token)}, that'
          f' of {taken!r}, since the ids of {self._rest[0]} have gaps; add the'
          ' tokens to that file'
        )
    return more

  def _around(self) -> tuple[list[int], list[int]]:
    """The ids that the file's post-processor puts before and after a text."""
    for probe in ['a', *self._tokenizer.get_vocab(with_added_tokens=False)]:
      inner = self._tokenizer.encode(probe, add_special_tokens=False).ids
      if inner:
        break
    whole = self._tokenizer.encode(probe, add_special_tokens=True).ids
    for at in range(len(whole) - len(inner) + 1):
      if whole[at : at + len(inner)] == inner:
        return whole[:at], whole[at + len(inner) :]
    return [], []

  def _plan(self, source):
    """Reads from the file's decoder how tokens join to text."""
    decoder = self._tokenizer.decoder
    steps = [] if decoder is None else [json.loads(decoder.__getstate__())]
    if steps and steps[0]['type'] == 'Sequence':
      steps = steps[0]['decoders']
    names = [step['type'] for step in steps]
    self._byte_level = names == ['ByteLevel']
    self._byte_tokens = 'ByteFallback' in names
    self._replace = [(_SPACE, ' ')] if names == ['Metaspace'] else []
    self.replace_each = not self._byte_level
    self.lead = 'keep' if steps else 'join'
    if self._byte_level or not steps:
      return
    if names == ['Metaspace']:
      if steps[0].get('prepend_scheme') != 'never':
        self.lead = 'token'
      return
    for at, step in enumerate(steps):
      kind = step['type']
      if kind == 'Replace' and 'String' in step['pattern']:
        self._replace.append((step['pattern']['String'], step['content']))
      elif kind == 'Strip' and 'Fuse' in names[:at] and _strips_one(step):
        self.lead = 'one'
      elif kind not in ('ByteFallback', 'Fuse'):
        raise UserError(
          f'{source}: the decoder step {step} is not supported; supported are'
          ' ByteLevel, Metaspace, and a Sequence of Replace, ByteFallback,'
          ' Fuse and Strip of one leading space'
        )

  def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    encoding = self._tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets

  def token(self, id: int) -> str | None:
    return self._tokenizer.id_to_token(id) if id >= 0 else None

  def id(self, token: str) -> int | None:
    return self._tokenizer.token_to_id(token)

  def raw(self, id: int) -> tuple[bytes, bool] | None:
    token = self.token(id)
    if token is None:
      return None
    if self._byte_level:
      # An added token is written as it is, also where its letters (such as č)
      # stand for bytes elsewhere in the vocabulary.
      if id in self._added:
        return token.encode(), True
      return bytes(_CHARACTER_BYTES[char] for char in token), True
    for pattern, content in self._replace:
      token = token.replace(pattern, content)
    if self._byte_tokens and (match := _BYTE_TOKEN.fullmatch(token)):
      return bytes.fromhex(match[1]), True
    return token.encode(), False

  def files(self, config, prefix, suffix) -> tuple[dict[str, bytes], dict]:
    kind = config.get('tokenizer_class', 'PreTrainedTokenizerFast')
    data, ids = self._data, [id for _, id in suffix]
    if self.suffix and ids and ids != self.suffix:  # it has another EOS now
      data = _with_around(data, prefix, suffix)
    return {'tokenizer.json': data}, {'tokenizer_class': kind}


def _flags(token) -> dict[str, bool]:
  """The flags of a token of the tokenizers library."""
  return {flag: getattr(token, flag) for flag in FLAGS}


def _strips_one(step: dict) -> bool:
  return (step['content'], step['start'], step['stop']) == (' ', 1, 0)


def _with_around(data: bytes, prefix: list, suffix: list) -> bytes:
  """A tokenizer.json that puts these (token, id) before and after a text."""
  from tokenizers import processors

  before, after = ([token for token, _ in part] for part in (prefix, suffix))
  processor = processors.TemplateProcessing(
    single=[*before, '$A', *after], special_tokens=[*prefix, *suffix]
  )
  value = json.loads(data)
  value['post_processor'] = json.loads(processor.__getstate__())
  return json.dumps(value, ensure_ascii=False).encode()


def _check_added(source, content: str, wanted: int, got: int):
  if wanted != got:
    raise UserError(
      f'{source}: added token {content!r} has id {wanted} in'
      f' tokenizer_config.json but becomes {got}; let the two files agree'
    )
