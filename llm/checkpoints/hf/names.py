"""Where each parameter lives in a Hugging Face checkpoint.

The parameter tree fuses what decoding computes in one product (q, k and v;
gate and up; all experts), so a leaf is assembled from pieces, each a run of
rows of one checkpoint tensor. One table serves reading and writing.
"""

from collections.abc import Collection
import dataclasses
import math

from llm.models.config import ModelConfig

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Piece:
  """`view` elements of a tensor, put at `start` of a leaf of equal rank.

  The elements are contiguous in the tensor, from element `offset` on, and in
  C order in both places.
  """

  name: str
  shape: tuple[int, ...]  # of the whole tensor in the checkpoint
  view: tuple[int, ...]
  start: tuple[int, ...]
  offset: int = 0


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One parameter: its path, its shape, and the pieces that fill it."""

  path: Path
  shape: tuple[int, ...]
  pieces: tuple[Piece, ...]


def leaves(
  config: ModelConfig,
  *,
  prefix: str = 'model.',
  head_prefix: str = '',
  reward_head: bool = False,
  present: Collection[str] | None = None,
) -> list[Leaf]:
  """All parameters of a model, in the order of its checkpoint.

  Args:
    config: the model.
    prefix: what stands before the names of the decoder's tensors.
    head_prefix: what stands before `lm_head`.
    reward_head: a model that scores texts: `reward_head` in place of `lm_head`.
    present: the names that a checkpoint has; decides between layouts (experts
      one by one or stacked). None: the layout of the hub.
  """
  present = frozenset(present or ())
  out = [
    _whole(
      ('embedder', 'embedding'),
      (config.vocab_size, config.embed_dim),
      f'{prefix}embed_tokens.weight',
    )
  ]
  for i in range(config.num_layers):
    root, theirs = (f'layers_{i}',), f'{prefix}layers.{i}.'
    out += _norms(config, root, theirs)
    out += _attention(config, root + ('attn',), theirs + 'self_attn.')
    if config.is_moe(i):
      out += _experts(config, root + ('moe',), theirs, present)
    else:
      out += _mlp(config, root + ('mlp',), theirs + 'mlp.')
  out.append(
    _whole(('final_norm', 'scale'), (config.embed_dim,), f'{prefix}norm.weight')
  )
  if reward_head:
    shape = (1, config.embed_dim)
    out.append(_whole(('reward_head', 'kernel'), shape, 'score.weight'))
  elif not config.tie_embeddings:
    out.append(
      _whole(
        ('lm_head', 'kernel'),
        (config.vocab_size, config.embed_dim),
        f'{head_prefix}lm_head.weight',
      )
    )
  return out


def tensors(table: list[Leaf]) -> dict[str, list[tuple[Leaf, Piece]]]:
  """The table by checkpoint tensor: which parts of which leaves it holds."""
  out = {}
  for leaf in table:
    for piece in leaf.pieces:
      out.setdefault(piece.name, []).append((leaf, piece))
  return out


def _whole(path: Path, shape: tuple[int, ...], name: str, stored=None) -> Leaf:
  """A leaf that is one whole tensor, stored in its own shape or `stored`."""
  piece = Piece(name, stored or shape, shape, (0,) * len(shape))
  return Leaf(path, shape, (piece,))


def _norms(config: ModelConfig, root: Path, theirs: str) -> list[Leaf]:
  names = {}
  if config.pre_norm:
    names['pre_attention_norm'] = 'input_layernorm'
    names['pre_mlp_norm'] = (
      'pre_feedforward_layernorm'
      if config.post_norm
      else 'post_attention_layernorm'
    )
  if config.post_norm:
    names['post_attention_norm'] = 'post_attention_layernorm'
    names['post_mlp_norm'] = 'post_feedforward_layernorm'
  return [
    _whole(
      root + (ours, 'scale'), (config.embed_dim,), f'{theirs}{name}.weight'
    )
    for ours, name in names.items()
  ]


def _attention(config: ModelConfig, root: Path, theirs: str) -> list[Leaf]:
  d, n, h = config.embed_dim, config.num_heads, config.head_dim
  out = [_qkv(config, root + ('qkv', 'kernel'), theirs, 'weight', (d,))]
  if config.qkv_bias:
    out.append(_qkv(config, root + ('qkv', 'bias'), theirs, 'bias', ()))
  out.append(
    _whole(
      root + ('o', 'kernel'), (d, n, h), f'{theirs}o_proj.weight', (d, n * h)
    )
  )
  if config.attn_out_bias:
    out.append(_whole(root + ('o', 'bias'), (d,), f'{theirs}o_proj.bias'))
  if config.qk_norm:
    full = config.qk_norm == 'full'
    for name, heads in (('q_norm', n), ('k_norm', config.num_kv_heads)):
      width = heads * h if full else h
      out.append(
        _whole(root + (name, 'scale'), (width,), f'{theirs}{name}.weight')
      )
  return out


def _qkv(
  config: ModelConfig,
  path: Path,
  theirs: str,
  kind: str,
  tail: tuple[int, ...],
) -> Leaf:
  """[K, G + 2, H, ...]: the query heads of a group, then its key and value."""
  k, g, h = config.num_kv_heads, config.queries_per_kv, config.head_dim
  parts = (('q', g, 0), ('k', 1, g), ('v', 1, g + 1))  # name, heads, slot
  zeros = (0,) * (1 + len(tail))
  rows, pieces = 0, []
  for name, heads, slot in parts:
    view = (k, heads, h, *tail)
    if config.model_type == 'phi3':
      name, shape = 'qkv', (k * (g + 2) * h, *tail)
      offset = rows * math.prod(tail)
    else:
      shape, offset = (k * heads * h, *tail), 0
    pieces.append(
      Piece(
        f'{theirs}{name}_proj.{kind}', shape, view, (0, slot, *zeros), offset
      )
    )
    rows += k * heads * h
  return Leaf(path, (k, g + 2, h, *tail), tuple(pieces))


def _mlp(config: ModelConfig, root: Path, theirs: str) -> list[Leaf]:
  d, f = config.embed_dim, config.hidden_dim
  kinds = [('kernel', 'weight', (d,))]
  if config.mlp_bias:
    kinds.append(('bias', 'bias', ()))
  out = []
  for ours, kind, tail in kinds:
    path = root + ('gate_up', ours)
    shape = (2, f, *tail)
    if config.model_type == 'phi3':
      name = f'{theirs}gate_up_proj.{kind}'
      out.append(_whole(path, shape, name, (2 * f, *tail)))
      continue
    zeros = (0,) * (1 + len(tail))
    pieces = tuple(
      Piece(f'{theirs}{name}_proj.{kind}', (f, *tail), (1, f, *tail), start)
      for name, start in (('gate', (0, *zeros)), ('up', (1, *zeros)))
    )
    out.append(Leaf(path, shape, pieces))
  out.append(
    _whole(root + ('down', 'kernel'), (d, f), f'{theirs}down_proj.weight')
  )
  if config.mlp_bias:
    out.append(_whole(root + ('down', 'bias'), (d,), f'{theirs}down_proj.bias'))
  return out


def _experts(
  config: ModelConfig, root: Path, theirs: str, present: frozenset[str]
) -> list[Leaf]:
  """Experts one by one (hub) or stacked (`transformers` 5 in memory)."""
  d, e, f = config.embed_dim, config.num_experts, config.expert_dim
  stacked = f'{theirs}mlp.experts.gate_up_proj'
  gate_up, down = root + ('gate_up', 'kernel'), root + ('down', 'kernel')
  if stacked in present:
    return [
      _whole(root + ('router', 'kernel'), (e, d), f'{theirs}mlp.gate.weight'),
      _whole(gate_up, (e, 2, f, d), stacked, (e, 2 * f, d)),
      _whole(down, (e, d, f), f'{theirs}mlp.experts.down_proj'),
    ]
  if config.model_type == 'mixtral':
    block, names = theirs + 'block_sparse_moe.', ('w1', 'w3', 'w2')
  else:
    block, names = theirs + 'mlp.', ('gate_proj', 'up_proj', 'down_proj')
  inputs, outputs = [], []
  for i in range(e):
    gate, up, out = (f'{block}experts.{i}.{name}.weight' for name in names)
    for j, name in enumerate((gate, up)):
      inputs.append(Piece(name, (f, d), (1, 1, f, d), (i, j, 0, 0)))
    outputs.append(Piece(out, (d, f), (1, d, f), (i, 0, 0)))
  return [
    _whole(root + ('router', 'kernel'), (e, d), f'{block}gate.weight'),
    Leaf(gate_up, (e, 2, f, d), tuple(inputs)),
    Leaf(down, (e, d, f), tuple(outputs)),
  ]
