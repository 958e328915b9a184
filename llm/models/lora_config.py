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
  'layers_[0-3]/attn/.*'. `dropout` is applied to the input of the low-rank
  product, in training only.
  """

  rank: int = 16
  alpha: float = 32.0
  targets: tuple[str, ...] = (ALL_LINEAR,)
  dora: bool = False
  rslora: bool = False
  dropout: float = 0.0

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

  def scale(self, rank: int) -> float:
    """s, the factor on B A of an adapter of this rank."""
    return self.alpha / (math.sqrt(rank) if self.rslora else rank)


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
  names = {path: projection_name(path) for path in known}
  wanted = set()
  for target in config.targets:
    if target == ALL_LINEAR:
      _check_dense(target, model_config)
      found = [path for path in known if path != HEAD]
    elif target in _IN_EXPERTS:
      _check_dense(target, model_config)
      found = [path for path in known if names[path] == target]
    elif target in names.values():
      found = [path for path in known if names[path] == target]
    else:
      found = _search(target, known)
    if not found:
      raise UserError(_no_target(target, model_config, names))
    wanted.update(found)
  return [path for path in known if path in wanted]


def projection_name(path: tuple[str, ...]) -> str:
  """The name of a projection in Hugging Face's checkpoints."""
  return path[0] if path == HEAD else f'{path[-1]}_proj'


def _search(target: str, known: list) -> list[tuple[str, ...]]:
  try:
    pattern = re.compile(target)
  except re.error as error:
    raise UserError(
      f'lora.targets: {target!r} is not a regular expression ({error})'
    ) from None
  return [path for path in known if pattern.fullmatch('/'.join(path))]


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
