"""The names of tensors in PEFT's files, as versions 0.3 to 0.21 spell them.

  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight    [r, in]
                                                  .lora_B.weight    [out, r]
                                                  .lora_magnitude_vector  [out]
  base_model.model.model.embed_tokens.lora_embedding_A              [r, V]
                                     .lora_embedding_B              [D, r]
                                     .weight        a whole trained copy
                                     .base_layer.weight   what lies under it
                                     .token_adapter.trainable_tokens_delta

A state that was saved as it lies in memory has the adapter's name besides
(`lora_A.default.weight`, `modules_to_save.default.weight`), and the names of
what wrapped the model.
"""

from collections.abc import Iterable
import dataclasses
import re

from llm.checkpoints.hf.names import leaves
from llm.errors import UserError
from llm.models.config import ModelConfig
from llm.models.lora_places import (
  EMBED,
  HEAD,
  ROWS,
  TABLES,
  Path,
  paths,
  whole_paths,
)

# Kinds of tensors besides the parts of an adapter and the rows of a table.
COPY, BASE, ORIGINAL, WHOLE = 'copy', 'base', 'original', 'whole'
BIAS, LORA_BIAS = 'bias', 'lora bias'
# Parts of an adapter: the name there, and the one here.
_PARTS = {
  'lora_A': 'lora_a',
  'lora_B': 'lora_b',
  'lora_embedding_A': 'lora_a',
  'lora_embedding_B': 'lora_b',
  'lora_magnitude_vector': 'magnitude',
}
_WRAPPERS = {
  '_orig_mod',
  '_fsdp_wrapped_module',
  '_checkpoint_wrapped_module',
  '_forward_module',
}
_ROOT = 'base_model.model.'
# What stands before `layers.0` in the models that PEFT was given; the last is a
# model without a head.
_PREFIXES = ('model.language_model.', 'language_model.model.', 'model.', '')
_ADAPTER = re.compile(
  rf'(?P<module>.+)\.(?P<part>{"|".join(_PARTS)})(?P<tail>(\.[^.]+)*)'
)
_OTHERS = (
  (COPY, r'(?P<module>.+)\.modules_to_save(?P<tail>(\.[^.]+)?)\.weight'),
  (ROWS, r'(?P<module>.+)\.token_adapter\.trainable_tokens_delta'
   r'(?P<tail>(\.[^.]+)?)'),
  (ORIGINAL, r'(?P<module>.+)\.original_module(?P<tail>)\.weight'),
  (BASE, r'(?P<module>.+?)(\.token_adapter)?\.base_layer(?P<tail>)\.weight'),
  (BIAS, r'(?P<module>.+?)(\.base_layer)?(?P<tail>)\.bias'),
  (WHOLE, r'(?P<module>.+)(?P<tail>)\.weight'),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Key:
  """One tensor: of which module, and what it is there.

  `module` is its name in a model of text alone, `written` as the file has it.
  """

  module: str
  written: str
  kind: str
  adapter: str | None


def parse(name: str) -> Key | None:
  """What a tensor's name says; None where it is of no known form."""
  parts = [part for part in name.split('.') if part not in _WRAPPERS]
  plain = '.'.join(parts)
  while plain.startswith(_ROOT):
    plain = plain.removeprefix(_ROOT)
  match = _ADAPTER.fullmatch(plain)
  if match is not None:
    kind, tail = _PARTS[match['part']], match['tail'].split('.')[1:]
    if tail and tail[-1] in ('weight', 'bias'):
      kind = LORA_BIAS if tail.pop() == 'bias' else kind
    if len(tail) > 1:
      return None
    return _key(match['module'], kind, tail[0] if tail else None)
  for kind, pattern in _OTHERS:
    match = re.fullmatch(pattern, plain)
    if match is not None:
      return _key(match['module'], kind, match['tail'].lstrip('.') or None)
  return None


def check_one_adapter(path: str, keys: Iterable[Key]) -> None:
  """Refuses a file that holds several adapters.

  Raises:
    UserError: naming them.
  """
  names = sorted({key.adapter for key in keys if key.adapter is not None})
  if len(names) > 1:
    raise UserError(
      f'{path}: holds several adapters ({", ".join(names)}): save one of them '
      'with PEFT (selected_adapters)'
    )


def prefix_of(keys: Iterable[Key]) -> str:
  """What the file's names have before `layers.`: 'model.' or longer."""
  for key in keys:
    if key.module.startswith('model.layers.'):
      return key.written.removesuffix(key.module.removeprefix('model.'))
  return 'model.'


def written_name(module: str, prefix: str) -> str:
  """A module's name in the model that the file was made for."""
  if module.startswith('model.'):
    return prefix + module.removeprefix('model.')
  return 'language_model.lm_head' if prefix == _PREFIXES[1] else module


def modules(config: ModelConfig) -> dict[str, Path]:
  """The modules that can have an adapter, by the name in `transformers`."""
  return {module_name(place): place for place in paths(config)}


def whole_modules(config: ModelConfig) -> dict[str, Path]:
  """The parameters that can have whole copies, by the module's name."""
  names = {leaf.path: leaf.pieces[0].name for leaf in leaves(config)}
  return {
    names[path].removesuffix('.weight'): path for path in whole_paths(config)
  }


def module_name(place: Path) -> str:
  """The name of a projection's or a table's module in `transformers`."""
  if place in TABLES:
    return {EMBED: 'model.embed_tokens', HEAD: 'lm_head'}[place]
  layer, module, name = place
  module = {'attn': 'self_attn', 'mlp': 'mlp'}[module]
  number = layer.removeprefix('layers_')
  return f'model.layers.{number}.{module}.{name}_proj'


def tensor_name(place: Path, part: str) -> str:
  """How PEFT names a part of an adapter."""
  names = {'lora_a': 'lora_A.weight', 'lora_b': 'lora_B.weight'}
  if place == EMBED:
    names = {'lora_a': 'lora_embedding_A', 'lora_b': 'lora_embedding_B'}
  names['magnitude'] = 'lora_magnitude_vector'
  return f'{_ROOT}{module_name(place)}.{names[part]}'


def rooted(module: str, tail: str) -> str:
  """The name of a tensor that belongs to a module."""
  return f'{_ROOT}{module}.{tail}'


def _key(written: str, kind: str, adapter: str | None) -> Key:
  return Key(_plain(written), written, kind, adapter)


def _plain(module: str) -> str:
  """A module's name as it is in a model of text alone."""
  if module in ('language_model.lm_head', 'lm_head'):
    return 'lm_head'
  for prefix in _PREFIXES:
    rest = module.removeprefix(prefix)
    if module.startswith(prefix) and rest.startswith(
      ('layers.', 'embed_tokens', 'norm')
    ):
      return f'model.{rest}'
  return module
