"""The files beside a tokenizer: special tokens, added tokens, templates."""

import json
from pathlib import Path
from typing import NamedTuple

from llm.errors import UserError

# The order in which transformers appends those that a vocabulary lacks.
_NAMED = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')
_LISTS = ('additional_special_tokens', 'extra_special_tokens')
# The kinds of values in tokenizer_config.json: in words, and as a test.
_KINDS = {
  **dict.fromkeys(
    [f'{name}_token' for name in _NAMED],
    ('a token', lambda v: not v or _content(v)),
  ),
  **dict.fromkeys(
    (
      'add_bos_token',
      'add_eos_token',
      'add_prefix_space',
      'legacy',
      'split_special_tokens',
    ),
    ('true or false', lambda v: v is None or isinstance(v, bool)),
  ),
  **dict.fromkeys(
    _LISTS, ('a list of tokens', lambda v: not v or isinstance(v, (list, dict)))
  ),
}
# Fields that change the ids in some classes of transformers and are not read.
_REFUSED = {
  'do_lower_case': 'a normalizer of tokenizer.json can lower texts',
  'fix_mistral_regex': 'put the right expression into tokenizer.json',
  'sp_model_kwargs': 'ids that are sampled differ from call to call',
}
# Of an added token, besides its content.
FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')


class Beside(NamedTuple):
  """The content of the files beside a tokenizer.

  Attributes:
    config: tokenizer_config.json without its chat template.
    tokens: {'bos_token': content, …} of every named special token.
    extra: contents of the other special tokens.
    flags: {content: {'lstrip': True, …}} of special tokens written as objects.
    added: {id: {'content', 'special', 'lstrip', …}}.
    model_type: in config.json.
    bos_id: BOS in the model's own config files, None if they name none.
    eos_ids: EOS ids in the model's own config files.
    templates: chat templates by name.
  """

  config: dict = {}
  tokens: dict[str, str] = {}
  extra: tuple[str, ...] = ()
  flags: dict[str, dict[str, bool]] = {}
  added: dict[int, dict] = {}
  model_type: str | None = None
  bos_id: int | None = None
  eos_ids: tuple[int, ...] = ()
  templates: dict[str, str] = {}


def read(path: Path) -> bytes:
  """The file's bytes, or a `UserError` that names it."""
  try:
    return path.read_bytes()
  except OSError as error:
    raise UserError(
      f'{path}: cannot be read ({error.strerror}); check the path and its'
      ' permissions'
    ) from None


def read_json(path: Path) -> dict:
  """A JSON object; {} where there is no such file."""
  if not path.is_file():
    return {}
  try:
    value = json.loads(read(path))
  except (ValueError, RecursionError) as error:
    raise UserError(
      f'{path}: is not JSON ({error}); fix it or fetch it again'
    ) from None
  if not isinstance(value, dict):
    raise UserError(f'{path}: is not a JSON object; fetch the file again')
  return value


def beside(folder: Path) -> Beside:
  """Reads these files of a folder; those that are missing count as empty.

  Raises:
    UserError: a file is corrupt; it is named.
  """
  config = read_json(folder / 'tokenizer_config.json')
  listed = config.pop('chat_template', None)
  tokens, extra, flags = {}, {}, {}
  for file, source in (
    ('tokenizer_config.json', config),
    ('special_tokens_map.json', read_json(folder / 'special_tokens_map.json')),
  ):
    _check_kinds(folder / file, source)
    for name, value in source.items():
      if name.endswith('_token') and (content := _content(value)):
        tokens.setdefault(name, content)
        flags.setdefault(content, _given_flags(value))
    for name in _LISTS:
      values = source.get(name) or ()
      if isinstance(values, dict):
        values = values.values()
      for value in values:
        if content := _content(value):
          extra.setdefault(content)
          flags.setdefault(content, _given_flags(value))
  order = [f'{name}_token' for name in _NAMED]
  tokens = {
    name: tokens[name]
    for name in dict.fromkeys([*order, *tokens])
    if name in tokens
  }
  bos_id, eos_ids = _config_ids(folder)
  special = {*tokens.values(), *extra}
  return Beside(
    config=config,
    tokens=tokens,
    extra=tuple(extra),
    flags=flags,
    added=_added_tokens(folder, config, special),
    model_type=read_json(folder / 'config.json').get('model_type'),
    bos_id=bos_id,
    eos_ids=eos_ids,
    templates=_templates(folder, listed),
  )


def write_templates(folder: Path, templates: dict[str, str], config: dict):
  """Writes templates to where older and newer readers look for them.

  Args:
    folder: gets chat_template.jinja and additional_chat_templates/.
    templates: by name.
    config: of the tokenizer_config.json to write; 'chat_template' is set in it.
  """
  if not templates:
    (folder / 'chat_template.jinja').unlink(missing_ok=True)
    return
  config['chat_template'] = [
    {'name': name, 'template': text} for name, text in templates.items()
  ]
  if list(templates) == ['default']:
    config['chat_template'] = templates['default']
  for name, text in templates.items():
    path = folder / 'chat_template.jinja'
    if name != 'default':
      path = folder / 'additional_chat_templates' / f'{name}.jinja'
      path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())


def _templates(folder: Path, listed) -> dict[str, str]:
  """Templates by name; a template's own file beats tokenizer_config.json."""
  templates = {}
  if isinstance(listed, str):
    templates['default'] = listed
  elif listed is not None:
    try:
      templates = {
        str(entry['name']): _string(entry['template']) for entry in listed
      }
    except (TypeError, KeyError):
      raise UserError(
        f'{folder / "tokenizer_config.json"}: chat_template is neither a string'
        ' nor a list of {"name", "template"}; fix it'
      ) from None
  older = read_json(folder / 'chat_template.json').get('chat_template')
  if isinstance(older, str):
    templates['default'] = older
  paths = [folder / 'chat_template.jinja']
  paths += sorted((folder / 'additional_chat_templates').glob('*.jinja'))
  for path in paths:
    if path.is_file():
      name = 'default' if path.parent == folder else path.stem
      templates[name] = _decoded(path)
  return templates


def _decoded(path: Path) -> str:
  try:
    return read(path).decode()
  except UnicodeDecodeError:
    raise UserError(f'{path}: is not UTF-8; save it as UTF-8') from None


def _added_tokens(folder: Path, config: dict, special: set) -> dict[int, dict]:
  """Added tokens by id, from tokenizer_config.json or added_tokens.json."""
  path = folder / 'tokenizer_config.json'
  entries = config.get('added_tokens_decoder')
  if entries is None:
    path = folder / 'added_tokens.json'
    entries = {
      id: {'content': token, 'special': token in special}
      for token, id in read_json(path).items()
    }
  try:
    return {
      int(id): {'content': str(entry['content'])} | _given_flags(entry)
      for id, entry in entries.items()
    }
  except (AttributeError, KeyError, TypeError, ValueError):
    raise UserError(
      f'{path}: the added tokens are not written as transformers writes them'
      ' ({"id": {"content": …}} or {"token": id}); fetch the file again'
    ) from None


def _config_ids(folder: Path) -> tuple[int | None, tuple[int, ...]]:
  """BOS and EOS ids from generation_config.json, else config.json."""
  config = read_json(folder / 'config.json')
  text = config.get('text_config')
  sources = [
    ('generation_config.json', read_json(folder / 'generation_config.json')),
    ('config.json', config),
    ('config.json', text if isinstance(text, dict) else {}),
  ]
  found = []
  for name, many in (('bos_token_id', False), ('eos_token_id', True)):
    given = [(f, s[name]) for f, s in sources if s.get(name) is not None]
    if not given:
      found.append(())
      continue
    file, value = given[0]
    ids = value if many and isinstance(value, list) else [value]
    if not all(type(id) is int and id >= 0 for id in ids):
      raise UserError(
        f'{folder / file}: {name}={value!r} is not an id of the vocabulary;'
        ' fix it or fetch the file again'
      )
    found.append(tuple(ids))
  bos, eos = found
  return bos[0] if bos else None, eos


def _check_kinds(path: Path, source: dict):
  """Refuses values that would be ignored or taken for something else."""
  for name, (what, holds) in _KINDS.items():
    if not holds(source.get(name)):
      raise UserError(
        f'{path}: {name}={source[name]!r} is not {what}; fix it or fetch the'
        ' file again'
      )
  for name, why in _REFUSED.items():
    value = source.get(name)
    if any(value.values()) if isinstance(value, dict) else value:
      raise UserError(
        f'{path}: {name}={value!r} is not supported: {why}; remove it'
      )


def _string(value) -> str:
  if not isinstance(value, str):
    raise TypeError(value)
  return value


def _given_flags(value) -> dict[str, bool]:
  """The flags of a token that is written as an object."""
  given = value if isinstance(value, dict) else {}
  return {flag: bool(given[flag]) for flag in FLAGS if flag in given}


def _content(value) -> str | None:
  """A special token's text, written as a string or as an object."""
  if isinstance(value, dict):
    value = value.get('content')
  return value if isinstance(value, str) else None
