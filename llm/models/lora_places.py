"""The places of a model that adapters can have, and which of them are named."""

import difflib
from typing import Any

from llm.errors import UserError
from llm.models.config import ModelConfig
from llm.models.lora_config import (
  ALL_LINEAR,
  LoraConfig,
  is_named,
  module_label,
)

Path = tuple[str, ...]
# The linear map that computes each projection, in the order of its rows.
FUSED = {
  ('attn', 'qkv'): ('q', 'k', 'v'),
  ('attn', 'o'): ('o',),
  ('mlp', 'gate_up'): ('gate', 'up'),
  ('mlp', 'down'): ('down',),
}
HEAD, EMBED = ('lm_head',), ('embedder',)
# The leaf of a table in the tree of parameters.
TABLES = {EMBED: 'embedding', HEAD: 'kernel'}
# What an adapter consists of, and the rows of a table that are trained; every
# other leaf is a whole copy of the parameter in its place.
PARTS = ('lora_a', 'lora_b', 'magnitude')
ROWS = 'rows'
_IN_EXPERTS = ('gate_proj', 'up_proj', 'down_proj')


def paths(config: ModelConfig) -> list[Path]:
  """Every path at which this model can have an adapter, layer by layer."""
  out = []
  for i in range(config.num_layers):
    for (module, _), names in FUSED.items():
      if module == 'attn' or not config.is_moe(i):
        out += [(f'layers_{i}', module, name) for name in names]
  return [*out, EMBED] if config.tie_embeddings else [*out, HEAD, EMBED]


def whole_paths(config: ModelConfig) -> list[Path]:
  """Every leaf of the parameters that can have a whole trained copy."""
  norms = []
  for side in ('pre', 'post'):
    if getattr(config, f'{side}_norm'):
      norms += [(f'{side}_attention_norm',), (f'{side}_mlp_norm',)]
  if config.qk_norm:
    norms += [('attn', 'q_norm'), ('attn', 'k_norm')]
  layers = [(f'layers_{i}',) for i in range(config.num_layers)]
  out = [(*EMBED, TABLES[EMBED])]
  out += [(*layer, *norm, 'scale') for layer in layers for norm in norms]
  out.append(('final_norm', 'scale'))
  return out if config.tie_embeddings else [*out, (*HEAD, TABLES[HEAD])]


def shape(config: ModelConfig, path: Path) -> tuple[int, int]:
  """(out, in) of the projection at a path; a table of tokens is D by V."""
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
    'embedder': (d, config.vocab_size),
  }[path[-1]]


def whole_shape(config: ModelConfig, path: Path) -> tuple[int, ...]:
  """The shape of a leaf of `whole_paths`."""
  if path[:-1] in TABLES:
    return (config.vocab_size, config.embed_dim)
  if path[-2] not in ('q_norm', 'k_norm'):
    return (config.embed_dim,)
  heads = config.num_heads if path[-2] == 'q_norm' else config.num_kv_heads
  return (config.head_dim * (heads if config.qk_norm == 'full' else 1),)


def match_targets(config: LoraConfig, model_config: ModelConfig) -> list[Path]:
  """The paths that are adapted, in the order of `paths`.

  Raises:
    UserError: a setting that names nothing in this model, or a place that is
      both adapted and trained as a whole copy.
  """
  known = paths(model_config)
  wanted, left = set(), set(known)
  for layer in config.layers:
    if layer >= model_config.num_layers:
      raise UserError(
        f'lora.layers: {layer}: the model has the layers 0 to '
        f'{model_config.num_layers - 1}'
      )
  if config.layers:
    names = {f'layers_{i}' for i in config.layers}
    left = {path for path in known if len(path) == 1 or path[0] in names}
  for name in config.exclude:
    found = _find('exclude', name, known, model_config)
    left.difference_update(found)
  for target in config.targets:
    found = set(_find('targets', target, known, model_config)) & left
    if not found:
      raise UserError(
        f'lora.targets: all that {target!r} names is left out by lora.layers '
        'or lora.exclude: leave it out of lora.targets'
      )
    wanted.update(found)
  for name in ('rank_pattern', 'alpha_pattern'):
    for pattern, _ in getattr(config, name):
      _find(name, pattern, sorted(wanted), model_config)
  _check_once(config, model_config, wanted)
  return [path for path in known if path in wanted]


def match_whole(config: LoraConfig, model_config: ModelConfig) -> list[Path]:
  """The leaves that `modules_to_save` names, in the order of `whole_paths`.

  Raises:
    UserError: a name that names nothing in this model.
  """
  known = whole_paths(model_config)
  found = set()
  for name in config.modules_to_save:
    new = {path for path in known if is_named(name, path[:-1])}
    if not new:
      known = [path[:-1] for path in known]
      raise UserError(_no_place('modules_to_save', name, model_config, known))
    found |= new
  return [path for path in known if path in found]


def match_tokens(
  config: LoraConfig, model_config: ModelConfig
) -> dict[Path, tuple[int, ...]]:
  """The trained rows of each table.

  Raises:
    UserError: no such table, or no such row.
  """
  out = {}
  tables = [path for path in TABLES if path in paths(model_config)]
  for name, ids in config.tokens:
    found = [path for path in tables if module_label(path) == name]
    if not found:
      raise UserError(_no_place('tokens', name, model_config, tables))
    if max(ids) >= model_config.vocab_size:
      raise UserError(
        f'lora.tokens: {name} has no row {max(ids)}: use ids below '
        f'{model_config.vocab_size}'
      )
    out[found[0]] = ids
  return out


def resolve(
  config: LoraConfig, model_config: ModelConfig
) -> dict[Path, tuple[int, float]]:
  """(rank, alpha) of each adapter, in the order of `paths`.

  Raises:
    UserError: as `match_targets`.
  """
  return {
    path: (config.rank_of(path), config.alpha_of(path))
    for path in match_targets(config, model_config)
  }


def _check_once(config: LoraConfig, model_config: ModelConfig, wanted: Any):
  """Refuses a table that is trained in two ways."""
  ways = [
    ('modules_to_save', {p[:-1] for p in match_whole(config, model_config)})
  ]
  ways += [('tokens', set(match_tokens(config, model_config)))]
  ways += [('targets', set(wanted))]
  for i, (one, places) in enumerate(ways):
    for other, others in ways[i + 1 :]:
      for path in sorted(places & others):
        raise UserError(
          f'lora.{one}: {module_label(path)} is in lora.{other} as well: leave '
          'it out of one of them'
        )
  if config.dora and model_config.tie_embeddings and EMBED in wanted:
    raise UserError(
      'lora.dora=True: the token table of this model is its output table too, '
      'and one magnitude does not fit both: leave embed_tokens out of '
      'lora.targets, or name it in lora.modules_to_save'
    )


def _find(
  field: str, name: str, known: list[Path], config: ModelConfig
) -> list[Path]:
  """The known paths that a name or regular expression names."""
  if name in (ALL_LINEAR, *_IN_EXPERTS):
    _check_dense(field, name, config)
  if name == ALL_LINEAR:
    found = [path for path in known if path not in TABLES]
  else:
    found = [path for path in known if is_named(name, path)]
  if not found:
    raise UserError(_no_place(field, name, config, known))
  return found


def _check_dense(field: str, name: str, config: ModelConfig) -> None:
  if config.num_experts and any(config.moe_layers):
    raise UserError(
      f'lora.{field}: {name!r} takes in experts, which cannot be adapted: '
      "name the attention's projections, ('q_proj', 'k_proj', 'v_proj', "
      "'o_proj')"
    )


def _no_place(
  field: str, name: str, config: ModelConfig, known: list[Path]
) -> str:
  if name == 'lm_head' and config.tie_embeddings:
    return (
      f"lora.{field}: 'lm_head' is the token table in this model: name it "
      "'embed_tokens', or leave it out"
    )
  choices = [ALL_LINEAR] if field in ('targets', 'exclude') else []
  choices += dict.fromkeys(module_label(path) for path in known)
  choices += ['/'.join(path) for path in known]
  near = difflib.get_close_matches(name, choices, n=3, cutoff=0.4)
  near = near or choices[:3]
  scope = 'of the adapters' if field.endswith('pattern') else 'in this model'
  return (
    f'lora.{field}: {name!r} names nothing {scope}, of {config.num_layers} '
    f'layers; did you mean one of {", ".join(near)}?'
  )
