"""Whether adapters and trained copies fit the parameters beside them."""

from typing import Any

import jax

from llm.errors import UserError
from llm.models.lora_config import LoraConfig, module_label
from llm.models.lora_places import EMBED, FUSED, HEAD, ROWS, TABLES
from llm.models.lora_tree import items, leaves
from llm.models.projections import sizes
from llm.models.weights import is_packed, sliced


def base_leaf(base: Any, path: tuple[str, ...]) -> Any:
  """A parameter by its path; KeyError where there is none."""
  for key in path:
    base = base[key]
  return base


def check_float(weight: Any, name: str) -> None:
  """Refuses to merge into a packed weight."""
  if is_packed(weight):
    raise UserError(
      f'lora: the base weight {name} is packed, and adapters cannot be merged '
      'into it: keep them beside it, or merge them into float weights'
    )


def check_fit(base: Any, lora: Any, config: LoraConfig) -> None:
  """Refuses adapters that would be ignored, or do not fit the weights."""
  for path, adapter in items(lora):
    name = '/'.join(path)
    try:
      rows, columns = _base_shape(base, path)
    except (KeyError, ValueError):
      raise UserError(
        f'lora: {name} has no weight in the base: use the model that the '
        'adapters were made for, with layers stacked in both or in neither'
      ) from None
    found = adapter['lora_b'].shape[-2], adapter['lora_a'].shape[-1]
    if found != (rows, columns):
      raise UserError(
        f'lora: {name} is for a weight {list(found)}, and the base has '
        f'{[rows, columns]}: use the model that the adapters were made for'
      )
    if ('magnitude' in adapter) != config.dora:
      has = 'a' if 'magnitude' in adapter else 'no'
      raise UserError(
        f'lora.dora={config.dora}, and {name} has {has} magnitude: use the '
        'config that the adapters were made with'
      )
  ids = dict(config.tokens)
  for path, leaf in leaves(lora):
    name, where = '/'.join(path), path
    if path[-1] == ROWS:
      where = (*path[:-1], TABLES[path[:-1]])
    try:
      expected = base_leaf(base, where).shape
    except KeyError:
      raise UserError(
        f'lora: the base has no {name}: use the model that it was trained for, '
        'with layers stacked in both or in neither'
      ) from None
    if path[-1] == ROWS:
      expected = (len(ids.get(module_label(path[:-1]), ())), expected[-1])
    if tuple(leaf.shape) != tuple(expected):
      raise UserError(
        f'lora: {name} is {list(leaf.shape)}, and the base and lora.tokens ask '
        f'for {list(expected)}: use the model and the settings that it was '
        'trained with'
      )


def _base_shape(base: Any, path: tuple[str, ...]) -> tuple[int, int]:
  """(out, in) of the base's weight at an adapter's path."""
  if path == HEAD:
    return base['lm_head']['kernel'].shape
  if path == EMBED:
    return base['embedder']['embedding'].shape[::-1]
  *block, module, name = path
  linear = next(own for (_, own), names in FUSED.items() if name in names)
  kernel = base_leaf(base, (*block, module, linear, 'kernel'))
  if 'layers' in block:
    kernel = jax.eval_shape(lambda k: sliced(k, 0), kernel)
  return sizes(linear, kernel)[name]
