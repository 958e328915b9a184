"""Text to token ids and back, for every kind of tokenizer file.

`load_tokenizer` reads a Hugging Face folder (`tokenizer.json` or a
SentencePiece `tokenizer.model`, with `tokenizer_config.json`), one such file,
the vocabulary file of llama2.c, or the word 'bytes'.
"""

import dataclasses
import json
from pathlib import Path
import struct

from llm.errors import UserError
from llm.text import (
  byte_level,
  detokenize,
  files,
  llama2c_vocab,
  prefix,
)
from llm.text.backends import TokenizerJson
from llm.text.sentencepiece_model import SentencePieceModel

BYTES = 'bytes'


@dataclasses.dataclass(eq=False)
class Tokenizer:
  """A tokenizer; made by `load_tokenizer`, never changed afterwards.

  Attributes:
    source: the file it came from, for messages.
    vocab_size: one more than its largest id, added tokens included.
    bos_id, pad_id: special ids, None where there is no such token.
    eos_ids: ids that end a text, from the tokenizer's own files.
    special_ids: ids that `decode` leaves out.
    special_tokens: {'bos_token': '<s>', …} as chat templates see them.
    chat_templates: template by name.
    lead, replace_each: how tokens join to text, see `detokenize`.
  """

  source: str
  vocab_size: int
  bos_id: int | None
  eos_ids: tuple[int, ...]
  pad_id: int | None
  special_ids: frozenset[int] = dataclasses.field(repr=False)
  special_tokens: dict[str, str]
  chat_templates: dict[str, str] = dataclasses.field(repr=False)
  lead: str
  replace_each: bool
  _backend: object = dataclasses.field(repr=False)
  _prefix: tuple[int, ...]
  _suffix: tuple[int, ...]
  _limit: int | None
  _config: dict = dataclasses.field(repr=False)
  _pieces: dict = dataclasses.field(default_factory=dict, repr=False)

  @property
  def chat_template(self) -> str | None:
    """The default chat template."""
    return self.chat_templates.get('default')

  def encode(self, text: str, bos: bool = True) -> list[int]:
    """Text to ids.

    Special tokens written in the text become their ids.

    Args:
      text: any text.
      bos: add what the tokenizer by itself puts around a text (BOS, and EOS if
        `add_eos_token` is set), as transformers' `add_special_tokens`; a BOS
        that the text begins with, and an EOS that it ends with, is not doubled.

    Raises:
      UserError: the text is not valid Unicode, or a token's id is beyond the
        model's vocabulary.
    """
    return self.encode_with_offsets(text, bos)[0]

  def encode_with_offsets(
    self, text: str, bos: bool = True
  ) -> tuple[list[int], list[tuple[int, int]]]:
    """Text to ids, and for each the half-open range of characters it covers.

    A token's leading space is inside its range. Tokens that share a character
    have the same range. What `bos` adds has an empty range, at the start or end
    of the text.

    Args and errors are those of `encode`.
    """
    around = (self._prefix, self._suffix) if bos else ((), ())
    return self._encode(text, *around)

  def encode_prompt(self, text: str) -> list[int]:
    """The ids of a text that is to be continued.

    That is `encode` without what the tokenizer puts after a text: an EOS there
    would end what is only begun. One that is written in the text stays.

    Args and errors are those of `encode`.
    """
    return self._encode(text, self._prefix, ())[0]

  def _encode(self, text, before, after):
    """Ids and ranges of a text between ids that are not doubled."""
    _check_text(text)
    ids, offsets = self._backend.encode(text)
    if ids[: len(before)] != list(before):
      ids, offsets = [*before, *ids], [(0, 0)] * len(before) + offsets
    if after and ids[-len(after) :] != list(after):
      ids = [*ids, *after]
      offsets = offsets + [(len(text), len(text))] * len(after)
    if self._limit is not None and ids and max(ids) >= self._limit:
      raise UserError(
        f'{self.source}: token {self.token(max(ids))!r} has id {max(ids)}, but'
        f" the model's vocab_size is {self._limit}; use the model's own"
        ' tokenizer or leave that token out of the text'
      )
    return ids, offsets

  def with_eos(self, id: int) -> 'Tokenizer':
    """The same tokenizer with another token as its EOS.

    Chat templates that write the EOS go on to write what they wrote.
    """
    token = self.token(id)
    others = [other for other in self.eos_ids if other != id]
    written = self.special_tokens.get('eos_token')
    return dataclasses.replace(
      self,
      eos_ids=(id, *others),
      chat_templates={
        name: _fix_eos(template, written)
        for name, template in self.chat_templates.items()
      },
      special_tokens=self.special_tokens | {'eos_token': token},
      _suffix=tuple(id if s in self.eos_ids else s for s in self._suffix),
      _config=self._config | {'eos_token': token},
    )

  def with_tokens(self, tokens) -> 'Tokenizer':
    """The same tokenizer with further tokens, whose ids follow on.

    They are matched in a text as they are and shown in decoded texts, for they
    are no special tokens. Those that the vocabulary has already stay what they
    are.

    Args:
      tokens: such as ('<think>', '</think>').

    Raises:
      UserError: one is no text, or blank, or this kind of file has no place for
        tokens of one's own.
    """
    for token in tokens:
      if not isinstance(token, str) or not token.strip():
        raise UserError(
          f'tokenizer.add_tokens: {token!r} is no token; give texts, such as'
          " ('<think>', '</think>')"
        )
    new = [t for t in dict.fromkeys(tokens) if self.token_id(t) is None]
    if not new:
      return self
    if self.source.endswith('.bin'):
      raise UserError(
        f'tokenizer.add_tokens: {self.source} has no place for more tokens; use'
        ' a tokenizer.json or a .model'
      )
    backend, config = self._backend.with_tokens(new), self._config
    if isinstance(backend, SentencePieceModel):
      config = config | {'added_tokens_decoder': backend.added_tokens()}
    return dataclasses.replace(
      self,
      vocab_size=backend.size,
      special_ids=frozenset(backend.special),
      _backend=backend,
      _config=config,
      _limit=self._limit and max(self._limit, backend.size),
      _pieces={},
    )

  def decode(self, ids, skip_special: bool = True) -> str:
    """Ids to text; invalid bytes become U+FFFD as `detokenize.push` says."""
    state, text = detokenize.push(self, detokenize.start(skip_special), ids)
    return text + detokenize.flush(self, state)[1]

  def token_bytes(self, id: int) -> bytes:
    """The bytes that a token adds to a text; b'' for an id without a token."""
    piece = self.piece(id)
    return piece.data if piece else b''

  def token(self, id: int) -> str | None:
    """The token as the vocabulary writes it; None for an id without one."""
    return self._backend.token(id)

  def token_id(self, token: str) -> int | None:
    """The id of a token as the vocabulary writes it; None if there is none."""
    return self._backend.id(token)

  def piece(self, id: int) -> detokenize.Piece | None:
    """What the token adds to a text, for `detokenize`."""
    if id not in self._pieces:
      raw = self._backend.raw(id)
      special = id in self.special_ids
      self._pieces[id] = raw and detokenize.Piece(*raw, special)
    return self._pieces[id]

  def save(self, folder) -> None:
    """Writes files that `load_tokenizer` and transformers' AutoTokenizer load.

    Args:
      folder: an existing or new folder; files of these names are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    around = [
      [(self.token(id), id) for id in ids]
      for ids in (self._prefix, self._suffix)
    ]
    config = dict(self._config)
    written, extra = self._backend.files(config, *around)
    config |= extra | {
      name: config.get(name, token)
      for name, token in self.special_tokens.items()
    }
    for name, data in written.items():
      (folder / name).write_bytes(data)
    files.write_templates(folder, self.chat_templates, config)
    text = json.dumps(config, indent=2, ensure_ascii=False) + '\n'
    (folder / 'tokenizer_config.json').write_text(text, encoding='utf-8')


def load_tokenizer(path, vocab_size: int | None = None) -> Tokenizer:
  """Loads a tokenizer.

  Args:
    path: a Hugging Face folder, a `tokenizer.json`, a SentencePiece `.model`,
      a vocabulary file of llama2.c (`.bin`), or 'bytes' (ids 0 to 255 are the
      bytes of UTF-8, then BOS, EOS, PAD). Files beside a `tokenizer.json` or
      `.model` are read as in a folder.
    vocab_size: the model's; for a llama2.c file the number of tokens to read,
      otherwise ids that do not fit it are refused when a text yields them.

  Raises:
    UserError: the file is missing, corrupt, or does not fit `vocab_size`.
  """
  if str(path) == BYTES:
    around = files.Beside(tokens=byte_level.BYTES_TOKENS)
    backend = TokenizerJson(byte_level.bytes_json(), BYTES)
    if vocab_size is not None and vocab_size < backend.size:
      raise UserError(
        f"tokenizer 'bytes': has {backend.size} ids (256 bytes, BOS, EOS, PAD),"
        f" but the model's vocab_size is {vocab_size}; give the model's own"
        ' tokenizer'
      )
    return _assemble(BYTES, backend, around, vocab_size)
  path = _locate(Path(path))
  data = files.read(path)
  if path.suffix == '.bin':
    backend = SentencePieceModel(
      llama2c_vocab.to_sentencepiece(data, path, vocab_size),
      path,
      match_special=False,  # as llama2.c, to which '<s>' is plain text
    )
    return _assemble(path, backend, files.Beside(), vocab_size)
  around = files.beside(path.parent)
  named = [*around.tokens.values(), *around.extra]
  named = {content: around.flags.get(content, {}) for content in named}
  is_json = path.suffix == '.json'
  kind = TokenizerJson if is_json else SentencePieceModel
  backend = kind(
    data,
    path,
    named,
    around.added,
    prefix.wanted(around.config, around.model_type, is_json, path),
    match_special=not around.config.get('split_special_tokens'),
  )
  return _assemble(path, backend, around, vocab_size)


def find_tokenizer(model_path) -> Path | None:
  """Where the tokenizer of a model lies; None if there is none.

  Args:
    model_path: a Hugging Face folder, or a llama2.c `.bin`, beside which
      `tok{vocab_size}.bin`, `tokenizer.bin`, `tokenizer.model` and
      `tokenizer.json` are looked for in this order.
  """
  path = Path(model_path)
  folder, names = path, ['tokenizer.json', 'tokenizer.model']
  if not path.is_dir():
    folder = path.parent
    size = _llama2c_vocab_size(path)
    names = ['tokenizer.bin', 'tokenizer.model', 'tokenizer.json']
    names = [f'tok{size}.bin'] * (size is not None) + names
  return next((folder / n for n in names if (folder / n).is_file()), None)


def check_path(path) -> None:
  """Refuses a path of `load_tokenizer` at which no tokenizer can be.

  Raises:
    UserError: there is nothing, or something of no known kind.
  """
  if str(path) != BYTES:
    _locate(Path(path))


def _llama2c_vocab_size(path: Path) -> int | None:
  """vocab_size from the header of a llama2.c model (legacy or versioned)."""
  try:
    with path.open('rb') as file:
      header = file.read(36)
  except OSError:
    return None
  if len(header) < 36:
    return None
  at = 8 if header[:4] in (b'ak42', b'24ka') else 0
  return abs(struct.unpack_from('<i', header, at + 20)[0])


def _locate(path: Path) -> Path:
  """The tokenizer file at `path`, a file or a folder."""
  if not path.exists():
    raise UserError(
      f"tokenizer: {path} does not exist; give a folder or file, or 'bytes'"
    )
  if path.is_dir():
    found = find_tokenizer(path)
    if found is None:
      raise UserError(
        f'tokenizer: {path} holds neither tokenizer.json nor tokenizer.model;'
        " fetch one, save one with transformers' save_pretrained, or give"
        " another tokenizer ('bytes' is one)"
      )
    return found
  if path.suffix not in ('.json', '.model', '.bin'):
    raise UserError(
      f'tokenizer: {path} is of no known kind; give a folder, a'
      " tokenizer.json, a SentencePiece .model, a llama2.c .bin or 'bytes'"
    )
  return path


def _assemble(source, backend, around, vocab_size) -> Tokenizer:
  """A `Tokenizer` from its file and the files beside it."""
  tokens = backend.tokens | around.tokens
  bos, eos_ids = around.bos_id, around.eos_ids
  if 'bos_token' in tokens:
    bos = backend.id(tokens['bos_token'])
  if 'eos_token' in tokens:
    eos_ids = (backend.id(tokens['eos_token']),)
  if bos is None and len(backend.prefix) == 1:
    bos = backend.prefix[0]
  eos = eos_ids[0] if eos_ids else None
  _check_fits(source, {'bos_token': bos, 'eos_token': eos}, tokens, vocab_size)
  for name, id in (('bos_token', bos), ('eos_token', eos)):
    if name not in tokens and id is not None and backend.token(id):
      tokens[name] = backend.token(id)
  config = dict(around.config)
  if around.added:
    # The content of an added_tokens.json, which is older, goes here too.
    config['added_tokens_decoder'] = around.added
  return Tokenizer(
    source=str(source),
    vocab_size=backend.size,
    bos_id=bos,
    eos_ids=tuple(eos_ids),
    pad_id=backend.id(tokens['pad_token']) if 'pad_token' in tokens else None,
    special_ids=frozenset(backend.special),
    special_tokens=tokens,
    chat_templates=dict(around.templates),
    lead=backend.lead,
    replace_each=backend.replace_each,
    _backend=backend,
    _prefix=_around(backend.prefix, bos, config.get('add_bos_token')),
    _suffix=_around(backend.suffix, eos, config.get('add_eos_token')),
    _limit=vocab_size,
    _config=config,
  )


def _check_fits(source, ids: dict, tokens: dict, vocab_size: int | None):
  """Refuses a BOS or EOS token that is beyond the model's vocabulary.

  Such as one that no file has an id for, which was appended.
  """
  for name, id in ids.items():
    known = name in tokens and None not in (id, vocab_size)
    if known and id >= vocab_size:
      raise UserError(
        f"{source}: {name}={tokens[name]!r} has id {id}, but the model's"
        f' vocab_size is {vocab_size}; name a token of the vocabulary in'
        " tokenizer_config.json, or use the model's own tokenizer"
      )


def _around(ids: list[int], id: int | None, add: bool | None) -> tuple:
  """The ids before (after) a text, given add_bos_token (add_eos_token).

  Args:
    ids: what the tokenizer file itself puts there.
    id: BOS (EOS).
    add: the field in tokenizer_config.json, None where it is missing.
  """
  if add is None or id is None or bool(add) == (id in ids):
    return tuple(ids)
  return (id,) if add else tuple(i for i in ids if i != id)


def _fix_eos(template: str, token: str | None) -> str:
  """A chat template whose variable `eos_token` is set to a token."""
  if token is None or 'eos_token' not in template:
    return template
  # The plus keeps a line break at the beginning of the template.
  quoted = json.dumps(token, ensure_ascii=False)
  return f'{{% set eos_token = {quoted} +%}}{template}'


def _check_text(text: str):
  if not isinstance(text, str):
    raise UserError(f'text: {text!r} is not a string; give text to encode')
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError(
      f'text: character {error.start} is half of a surrogate pair, which no'
      ' UTF-8 text holds; remove it'
    ) from None
