"""What LoRA adapts: its settings, and the places of a model they name."""

import dataclasses
import difflib
import math
import re

from llm.errors import UserError
from llm.models.config import ModelConfig

ALL_LINEAR = 'all-linear'
# The linear map that computes each projection, in the order of its rows.
FUSED = {
  ('attn', 'qkv'): ('q', 'k', 'v'),
  ('attn', 'o'): ('o',),
  ('mlp', 'gate_up'): ('gate', 'up'),
  ('mlp', 'down'): ('down',),
}
HEAD = ('lm_head',)
_IN_EXPERTS = ('gate_proj', 'up_proj', 'down_proj')


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """What is adapted, and how.

  `targets` are names of projections (q_proj, k_proj, v_proj, o_proj, gate_proj,
  up_proj, down_proj, lm_head), 'all-linear' (all of them but lm_head), or
  regular expressions for whole paths of the adapter tree, such as
  'layers_[0-3]/attn/.*'. `exclude` takes such names away again, and `layers`
  keeps some layers only (none named: all). `rank_pattern` and `alpha_pattern`
  are (name, value) pairs of the same names, for projections whose rank or alpha
  is another; the first that fits counts, as in PEFT. `dropout` is applied to
  the input of the low-rank product, in training only.
  """

  rank: int = 16
  alpha: float = 32.0
  targets: tuple[str, ...] = (ALL_LINEAR,)
  dora: bool = False
  rslora: bool = False
  dropout: float = 0.0
  exclude: tuple[str, ...] = ()
  layers: tuple[int, ...] = ()
  rank_pattern: tuple[tuple[str, int], ...] = ()
  alpha_pattern: tuple[tuple[str, float], ...] = ()

  def __post_init__(self):
    if isinstance(self.rank, bool) or not isinstance(self.rank, int):
      raise UserError(f'lora.rank={self.rank!r}: use a whole number above 0')
    if self.rank < 1:
      raise UserError(f'lora.rank={self.rank}: use a whole number above 0')
    if not 0.0 < self.alpha < math.inf:
      raise UserError(f'lora.alpha={self.alpha}: use a number above 0')
    if not 0.0 <= self.dropout < 1.0:
      raise UserError(f'lora.dropout={self.dropout}: use a rate in [0, 1)')
    if isinstance(self.targets, str):
      raise UserError(
        f"lora.targets={self.targets!r}: use a tuple, ('{self.targets}',)"
      )
    object.__setattr__(self, 'targets', tuple(self.targets))
    if not self.targets:
      raise UserError(
        f"lora.targets=(): nothing to train, use ('{ALL_LINEAR}',)"
      )

    for name in ('exclude', 'layers', 'rank_pattern', 'alpha_pattern'):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    for name, rank in self.rank_pattern:
      if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise UserError(
          f'lora.rank_pattern: {name!r} has {rank!r}: use a whole number'
          ' above 0'
        )
    for name, alpha in self.alpha_pattern:
      if isinstance(alpha, bool) or not 0.0 < float(alpha) < math.inf:
        raise UserError(
          f'lora.alpha_pattern: {name!r} has {alpha!r}: use a number above 0'
        )

  def rank_of(self, path: tuple[str, ...]) -> int:
    """The rank of the adapter at a path."""
    return _first(self.rank_pattern, path, self.rank)

  def alpha_of(self, path: tuple[str, ...]) -> float:
    """The alpha of the adapter at a path."""
    return _first(self.alpha_pattern, path, self.alpha)

  def scale(self, path: tuple[str, ...], rank: int) -> float:
    """s, the factor on B A of the adapter at a path, which has this rank."""
    return self.alpha_of(path) / (math.sqrt(rank) if self.rslora else rank)


def paths(config: ModelConfig) -> list[tuple[str, ...]]:
  """Every path at which this model can have an adapter, layer by layer."""
  out = []
  for i in range(config.num_layers):
    for (module, _), names in FUSED.items():
      if module == 'attn' or not config.is_moe(i):
        out += [(f'layers_{i}', module, name) for name in names]
  return out if config.tie_embeddings else [*out, HEAD]


def shape(config: ModelConfig, path: tuple[str, ...]) -> tuple[int, int]:
  """(out, in) of the projection at a path."""
  d, f, h = config.embed_dim, config.hidden_dim, config.head_dim
  return {
    'q': (config.num_heads * h, d),
    'k': (config.num_kv_heads * h, d),
    'v': (config.num_kv_heads * h, d),
    'o': (d, config.num_heads * h),
    'gate': (f, d),
    'up': (f, d),
    'down': (d, f),
    'lm_head': (config.vocab_size, d),
  }[path[-1]]


def match_targets(
  config: LoraConfig, model_config: ModelConfig
) -> list[tuple[str, ...]]:
  """The paths that `config.targets` names, in the order of `paths`.

  Raises:
    UserError: a target that names nothing in this model.
  """
  known = paths(model_config)
  wanted = set()
  for target in config.targets:
    if target == ALL_LINEAR or target in _IN_EXPERTS:
      _check_dense(target, model_config)
    found = [path for path in known if names(target, path)]
    if not found:
      every = {path: projection_name(path) for path in known}
      raise UserError(_no_target(target, model_config, every))
    wanted.update(found)
  for layer in config.layers:
    if not 0 <= layer < model_config.num_layers:
      raise UserError(
        f'lora.layers: {layer!r} is no layer of this model, which has 0 to '
        f'{model_config.num_layers - 1}'
      )
  chosen = {f'layers_{layer}' for layer in config.layers}
  wanted = {path for path in wanted if not chosen or path[0] in chosen}
  patterns = {
    'exclude': config.exclude,
    'rank_pattern': [name for name, _ in config.rank_pattern],
    'alpha_pattern': [name for name, _ in config.alpha_pattern],
  }
  for field, given in patterns.items():
    for name in given:
      if not any(names(name, path) for path in wanted):
        raise UserError(
          f'lora.{field}: {name!r} names none of the projections that are'
          ' adapted; correct it or leave it out'
        )
  out = [
    path
    for path in known
    if path in wanted and not any(names(name, path) for name in config.exclude)
  ]
  if not out:
    raise UserError('lora.exclude: nothing is left to train; leave some out')
  return out


def names(pattern: str, path: tuple[str, ...]) -> bool:
  """Whether a target names the projection at a path.

  Raises:
    UserError: it is no regular expression.
  """
  if pattern == ALL_LINEAR:
    return path != HEAD
  if pattern == projection_name(path):
    return True
  try:
    return re.fullmatch(pattern, '/'.join(path)) is not None
  except re.error as error:
    raise UserError(
      f'lora.targets: {pattern!r} is not a regular expression ({error})'
    ) from None


def _first(patterns, path: tuple[str, ...], default):
  """The value of the first pattern that names the projection at a path."""
  return next((v for name, v in patterns if names(name, path)), default)


def projection_name(path: tuple[str, ...]) -> str:
  """The name of a projection in Hugging Face's checkpoints."""
  return path[0] if path == HEAD else f'{path[-1]}_proj'


def _check_dense(target: str, config: ModelConfig) -> None:
  if config.num_experts and any(config.moe_layers):
    raise UserError(
      f'lora.targets: {target!r} takes in experts, which cannot be adapted: '
      "name the attention's projections, ('q_proj', 'k_proj', 'v_proj', "
      "'o_proj')"
    )


def _no_target(target: str, config: ModelConfig, names: dict) -> str:
  if target == 'lm_head':  # not among the paths, so the table is tied
    return (
      "lora.targets: 'lm_head' is the token table in this model, which cannot "
      'be adapted: leave it out'
    )
  if target == 'embed_tokens':
    return (
      "lora.targets: 'embed_tokens' cannot be adapted: leave it out, or train "
      'all parameters'
    )
  choices = [ALL_LINEAR, *dict.fromkeys(names.values())]
  choices += ['/'.join(path) for path in names]
  near = difflib.get_close_matches(target, choices, n=3, cutoff=0.4)
  near = near or [ALL_LINEAR, 'q_proj', 'layers_0/attn/q']
  return (
    f'lora.targets: {target!r} names nothing in this model of '
    f'{config.num_layers} layers; did you mean one of {", ".join(near)}?'
  )
