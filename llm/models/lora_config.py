"""The settings of adapters (see `llm.models.lora`)."""

import dataclasses
import math
import re
import sys
from typing import Any

from llm.errors import UserError

ALL_LINEAR = 'all-linear'
# (pattern, value), in the order in which they are tried.
Pattern = tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """What is adapted, and how.

  `targets` are names of modules (q_proj, k_proj, v_proj, o_proj, gate_proj,
  up_proj, down_proj, lm_head, embed_tokens), 'all-linear' (all but the last
  two), or regular expressions for whole paths of the adapter tree, such as
  'layers_[0-3]/attn/.*'. `exclude` takes places out again that are named in the
  same way, `layers` all but these layers. The first pattern of `rank_pattern`
  that names a place gives its rank instead of `rank`, and `alpha_pattern` its
  alpha. With tied embeddings, embed_tokens is the table in both its uses.

  `modules_to_save` are trained as whole copies: embed_tokens, lm_head, norm
  (every norm), or regular expressions for paths. `tokens` are rows of a table
  that are trained as they are: (('embed_tokens', (5, 9)),). `dropout` is
  applied to the input of a projection's low-rank product, in training only.
  """

  rank: int = 16
  alpha: float = 32.0
  targets: tuple[str, ...] = (ALL_LINEAR,)
  dora: bool = False
  rslora: bool = False
  dropout: float = 0.0
  exclude: tuple[str, ...] = ()
  layers: tuple[int, ...] = ()
  rank_pattern: Pattern = ()
  alpha_pattern: Pattern = ()
  modules_to_save: tuple[str, ...] = ()
  tokens: Pattern = ()

  def __post_init__(self):
    _check_rank('lora.rank', self.rank)
    _check_alpha('lora.alpha', self.alpha)
    if not 0.0 <= self.dropout < 1.0:
      raise UserError(f'lora.dropout={self.dropout}: use a rate in [0, 1)')
    for name in ('targets', 'exclude', 'modules_to_save'):
      object.__setattr__(self, name, _names(name, getattr(self, name)))
    if not self.targets:
      raise UserError(
        f"lora.targets=(): nothing to train, use ('{ALL_LINEAR}',)"
      )
    for name, check in (
      ('rank_pattern', _check_rank),
      ('alpha_pattern', _check_alpha),
      ('tokens', _check_ids),
    ):
      value = tuple(_pairs(name, getattr(self, name), check))
      object.__setattr__(self, name, value)
    layers = self.layers
    if not isinstance(layers, (tuple, list)) or not all(map(_is_id, layers)):
      raise UserError(
        f'lora.layers={layers!r}: use a tuple of layer numbers, such as (0, 1)'
      )
    object.__setattr__(self, 'layers', tuple(layers))

  def scale(self, alpha: float, rank: int) -> float:
    """s, the factor on B A of an adapter with this alpha and rank."""
    return alpha / (math.sqrt(rank) if self.rslora else rank)

  def rank_of(self, path: tuple[str, ...]) -> int:
    """The rank of the adapter at a path of the tree."""
    return _first(self.rank_pattern, path, self.rank)

  def alpha_of(self, path: tuple[str, ...]) -> float:
    """The alpha of the adapter at a path of the tree."""
    return _first(self.alpha_pattern, path, self.alpha)


def module_label(path: tuple[str, ...]) -> str:
  """How a setting names the module at a path: the name in checkpoints."""
  if path[-1].endswith('norm'):
    return 'norm'
  if len(path) == 1:
    return {'embedder': 'embed_tokens'}.get(path[0], path[0])
  return f'{path[-1]}_proj'


def is_named(pattern: str, path: tuple[str, ...]) -> bool:
  """Whether a setting's name or regular expression names a path."""
  if pattern == module_label(path):
    return True
  return re.fullmatch(pattern, '/'.join(path)) is not None


def _first(pattern: Pattern, path: tuple[str, ...], default: Any) -> Any:
  found = (value for name, value in pattern if is_named(name, path))
  return next(found, default)


def _names(name: str, value: Any) -> tuple[str, ...]:
  if isinstance(value, str):
    raise UserError(f"lora.{name}={value!r}: use a tuple, ('{value}',)")
  if not all(isinstance(one, str) for one in value):
    raise UserError(f'lora.{name}={value!r}: use a tuple of names')
  for one in value:
    _check_regex(name, one)
  return tuple(value)


def _pairs(name: str, value: Any, check: Any):
  """The (pattern, value) pairs of a setting, each checked."""
  for pair in value.items() if isinstance(value, dict) else value:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
      raise UserError(
        f'lora.{name}={value!r}: use pairs, such as (("q_proj", …),)'
      )
    pattern, one = pair
    if not isinstance(pattern, str):
      raise UserError(f'lora.{name}: {pattern!r} is not a name: use text')
    _check_regex(name, pattern)
    one = check(f'lora.{name}: {pattern}', one)
    yield pattern, one


def _check_regex(name: str, pattern: str) -> None:
  try:
    re.compile(pattern)
  except (re.error, OverflowError, RecursionError) as error:
    raise UserError(
      f'lora.{name}: {pattern!r} is not a regular expression ({error})'
    ) from None


def _check_rank(name: str, rank: Any) -> int:
  if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
    raise UserError(f'{name}={rank!r}: use a whole number above 0')
  return rank


def _check_alpha(name: str, alpha: Any) -> float:
  number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
  if not number or not 0.0 < alpha <= sys.float_info.max:
    raise UserError(f'{name}={alpha}: use a number above 0')
  return float(alpha)


def _check_ids(name: str, ids: Any) -> tuple[int, ...]:
  right = isinstance(ids, (tuple, list)) and ids and all(map(_is_id, ids))
  if not right or len(set(ids)) < len(ids):
    raise UserError(f'{name}={ids!r}: use a tuple of token ids, each once')
  return tuple(ids)


def _is_id(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0
