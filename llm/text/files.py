"""The files beside a tokenizer: special tokens, added tokens, templates."""

import json
from pathlib import Path
from typing import NamedTuple

from llm.errors import UserError

# The order in which transformers appends those that a vocabulary lacks.
_NAMED = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')
_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')


class Beside(NamedTuple):
  """What the files beside a tokenizer say.

  Attributes:
    config: tokenizer_config.json without its chat template.
    tokens: {'bos_token': content, …} of every named special token.
    extra: contents of the further special tokens.
    added: {id: {'content', 'special', 'lstrip', …}}.
    bos_id: BOS by the model's own config files, None if they name none.
    eos_ids: EOS ids by the model's own config files.
    templates: chat template by name.
  """

  config: dict = {}
  tokens: dict[str, str] = {}
  extra: tuple[str, ...] = ()
  added: dict[int, dict] = {}
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
  except ValueError as error:
    raise UserError(
      f'{path}: is not JSON ({error}); mend it or fetch it again'
    ) from None
  if not isinstance(value, dict):
    raise UserError(f'{path}: is not a JSON object; fetch the file again')
  return value


def beside(folder: Path) -> Beside:
  """Reads what lies in the folder; files that are missing say nothing.

  Raises:
    UserError: a file is corrupt; it is named.
  """
  config = read_json(folder / 'tokenizer_config.json')
  listed = config.pop('chat_template', None)
  tokens, extra = {}, {}
  for source in (config, read_json(folder / 'special_tokens_map.json')):
    for name, value in source.items():
      if name.endswith('_token') and (content := _content(value)):
        tokens.setdefault(name, content)
    for name in ('additional_special_tokens', 'extra_special_tokens'):
      values = source.get(name) or ()
      if isinstance(values, dict):
        values = values.values()
      extra |= {content: None for v in values if (content := _content(v))}
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
    added=_added_tokens(folder, config, special),
    bos_id=bos_id,
    eos_ids=eos_ids,
    templates=_templates(folder, listed),
  )


def write_templates(folder: Path, templates: dict[str, str], config: dict):
  """Writes templates where older and newer readers look for them.

  Args:
    folder: gets chat_template.jinja and additional_chat_templates/.
    templates: by name.
    config: the tokenizer_config.json to be; its 'chat_template' is set.
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
  """Templates by name; a file of its own overrules tokenizer_config.json."""
  templates = {}
  if isinstance(listed, str):
    templates['default'] = listed
  elif listed is not None:
    try:
      templates = {entry['name']: entry['template'] for entry in listed}
    except (TypeError, KeyError):
      raise UserError(
        f'{folder / "tokenizer_config.json"}: chat_template is neither a string'
        ' nor a list of {"name", "template"}; mend it'
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
      int(id): {'content': str(entry['content'])}
      | {flag: bool(entry.get(flag, False)) for flag in _FLAGS}
      for id, entry in entries.items()
    }
  except (AttributeError, KeyError, TypeError, ValueError):
    raise UserError(
      f'{path}: the added tokens are not written as transformers writes them'
      ' ({"id": {"content": …}} or {"token": id}); fetch the file again'
    ) from None


def _config_ids(folder: Path) -> tuple[int | None, tuple[int, ...]]:
  """BOS and EOS ids by generation_config.json, else config.json."""
  config = read_json(folder / 'config.json')
  sources = [
    read_json(folder / 'generation_config.json'),
    config,
    config.get('text_config') or {},
  ]
  bos, eos = (
    next((s[name] for s in sources if s.get(name) is not None), None)
    for name in ('bos_token_id', 'eos_token_id')
  )
  if eos is None:
    return bos, ()
  return bos, tuple(eos) if isinstance(eos, list) else (eos,)


def _content(value) -> str | None:
  """A special token's text, written as a string or as an object."""
  if isinstance(value, dict):
    value = value.get('content')
  return value if isinstance(value, str) else None
