"""Which places the settings of adapters name, and with what rank and alpha."""

import jax
import pytest

from llm.errors import UserError
from llm.models.lora_config import LoraConfig
from llm.models.lora_places import (
  match_targets,
  match_tokens,
  match_whole,
  paths,
  resolve,
  whole_paths,
  whole_shape,
)
from tests.models import tiny

_ATTENTION = ('q_proj', 'k_proj', 'v_proj', 'o_proj')


def _joined(found):
  return ['/'.join(path) for path in found]


def test_scales():
  assert LoraConfig().scale(6.0, 4) == 1.5
  assert LoraConfig(rslora=True).scale(6.0, 4) == 3.0
  assert LoraConfig().scale(6.0, 2) == 3.0


def test_targets():
  config = tiny.config()
  paths = {'/'.join(p) for p in match_targets(LoraConfig(), config)}
  assert len(paths) == 14 and 'lm_head' not in paths
  some = LoraConfig(targets=('layers_1/attn/[qv]', 'lm_head', 'down_proj'))
  assert ['/'.join(p) for p in match_targets(some, config)] == [
    'layers_0/mlp/down',
    'layers_1/attn/q',
    'layers_1/attn/v',
    'layers_1/mlp/down',
    'lm_head',
  ]
  experts = tiny.config('experts')
  found = match_targets(LoraConfig(targets=_ATTENTION), experts)
  assert len(found) == 8
  tied = LoraConfig(targets=('embed_tokens', 'q_proj'), layers=(1,))
  found = match_targets(tied, tiny.config(tie_embeddings=True))
  assert _joined(found) == ['layers_1/attn/q', 'embedder']


def test_layers_and_exceptions():
  config = tiny.config()
  some = LoraConfig(
    targets=('all-linear', 'lm_head'),
    exclude=('.*/mlp/.*', 'k_proj', 'layers_0/attn/o'),
    layers=(0,),
  )
  assert _joined(match_targets(some, config)) == [
    'layers_0/attn/q',
    'layers_0/attn/v',
    'lm_head',
  ]


def test_ranks_and_alphas_by_pattern():
  """The first pattern that names a place counts; 2 layers."""
  config = LoraConfig(
    rank=4,
    alpha=8.0,
    targets=('q_proj', 'v_proj', 'lm_head'),
    rank_pattern=(('layers_1/attn/q', 2), ('q_proj', 3)),
    alpha_pattern=(('.*/v', 1), ('lm_head', 2.5)),
  )
  table = resolve(config, tiny.config())
  assert {'/'.join(path): value for path, value in table.items()} == {
    'layers_0/attn/q': (3, 8.0),
    'layers_0/attn/v': (4, 1.0),
    'layers_1/attn/q': (2, 8.0),
    'layers_1/attn/v': (4, 1.0),
    'lm_head': (4, 2.5),
  }


def test_whole_copies():
  config = tiny.config()
  copies = LoraConfig(modules_to_save=('embed_tokens', 'layers_1/pre_.*_norm'))
  assert _joined(match_whole(copies, config)) == [
    'embedder/embedding',
    'layers_1/pre_attention_norm/scale',
    'layers_1/pre_mlp_norm/scale',
  ]
  shape = tiny.config(qk_norm='head', post_norm=True, tie_embeddings=True)
  found = _joined(match_whole(LoraConfig(modules_to_save=('norm',)), shape))
  assert len(found) == 2 * 6 + 1 and found[-1] == 'final_norm/scale'
  assert {path.split('/')[1] for path in found[:-1]} == {
    'attn',
    'pre_attention_norm',
    'post_attention_norm',
    'pre_mlp_norm',
    'post_mlp_norm',
  }


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('kind', ['dense', 'experts'])
def test_the_places_are_those_of_the_parameters(kind, tied):
  shape = tiny.config(kind, tie_embeddings=tied, qk_norm='full')
  params = tiny.init(shape)
  for path in whole_paths(shape):
    leaf = params
    for key in path:
      leaf = leaf[key]
    assert leaf.shape == whole_shape(shape, path), path
  norms = [p for p in whole_paths(shape) if p[-1] == 'scale']
  assert len(norms) == str(jax.tree.structure(params)).count("'scale'")
  assert (('lm_head',) in paths(shape)) != tied


def test_rows():
  config = LoraConfig(tokens=(('embed_tokens', [3, 9]), ('lm_head', (0,))))
  assert match_tokens(config, tiny.config()) == {
    ('embedder',): (3, 9),
    ('lm_head',): (0,),
  }


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'rank': 0}, 'lora.rank=0: use a whole number above 0'),
    ({'rank': 2.5}, 'lora.rank=2.5'),
    ({'rank': True}, 'lora.rank=True'),
    ({'alpha': 0.0}, 'lora.alpha=0.0'),
    ({'alpha': float('nan')}, 'lora.alpha=nan'),
    ({'dropout': 1.0}, 'lora.dropout=1.0'),
    ({'targets': 'q_proj'}, r"lora.targets='q_proj': use a tuple"),
    ({'targets': ()}, 'nothing to train'),
    ({'exclude': 'q_proj'}, r"lora.exclude='q_proj': use a tuple"),
    ({'modules_to_save': (1,)}, r'lora.modules_to_save=\(1,\): use a tuple'),
    ({'layers': (1.5,)}, r'lora.layers=\(1.5,\): use a tuple of layer'),
    ({'layers': (-1,)}, 'lora.layers='),
    ({'layers': 3}, 'lora.layers=3'),
    ({'rank_pattern': ('q_proj', 4)}, 'lora.rank_pattern=.*use pairs'),
    ({'rank_pattern': (('q_proj', 0),)}, 'lora.rank_pattern: q_proj=0'),
    ({'rank_pattern': ((3, 4),)}, 'lora.rank_pattern: 3 is not a name'),
    ({'rank_pattern': (('q(', 4),)}, r"'q\(' is not a regular expression"),
    ({'alpha_pattern': (('q_proj', 'x'),)}, 'lora.alpha_pattern: q_proj=x'),
    ({'alpha_pattern': (('q_proj', -1.0),)}, 'q_proj=-1.0: use a number'),
    ({'tokens': (('embed_tokens', ()),)}, 'lora.tokens: embed_tokens='),
    ({'tokens': (('embed_tokens', (3, 3)),)}, 'token ids, each once'),
  ],
)
def test_wrong_settings_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    LoraConfig(**fields)


@pytest.mark.parametrize(
  'target, changes, message',
  [
    ('q_prj', {}, "'q_prj' names nothing.*did you mean one of q_proj"),
    ('layers_2/attn/q', {}, r'of 2 layers.*layers_\d/attn/q'),
    ('layers_(', {}, 'not a regular expression'),
    ('lm_head', {'tie_embeddings': True}, 'is the token table'),
    ('all-linear', {'kind': 'experts'}, "experts.*'q_proj', 'k_proj'"),
    ('up_proj', {'kind': 'experts'}, 'experts'),
    ('layers_0/mlp/up', {'kind': 'experts'}, 'names nothing'),
  ],
)
def test_wrong_targets_are_refused(target, changes, message):
  with pytest.raises(UserError, match=message):
    match_targets(LoraConfig(targets=(target,)), tiny.config(**changes))


@pytest.mark.parametrize(
  'fields, changes, message',
  [
    ({'layers': (0, 2)}, {}, 'lora.layers: 2: the model has the layers 0 to 1'),
    ({'exclude': ('z_proj',)}, {}, "lora.exclude: 'z_proj' names nothing"),
    ({'exclude': ('.*',)}, {}, "all that 'all-linear' names is left out"),
    (
      {'targets': ('layers_0/.*',), 'layers': (1,)},
      {},
      r"all that 'layers_0/\.\*' names is left out",
    ),
    (
      {'targets': ('q_proj',), 'rank_pattern': (('k_proj', 4),)},
      {},
      "lora.rank_pattern: 'k_proj' names nothing of the adapters",
    ),
    (
      {'alpha_pattern': (('lm_head', 4.0),)},
      {},
      "lora.alpha_pattern: 'lm_head' names nothing of the adapters",
    ),
    (
      {'modules_to_save': ('input_layernorm',)},
      {},
      "'input_layernorm' names nothing in this model.*mean one of",
    ),
    (
      {'modules_to_save': ('lm_head',)},
      {'tie_embeddings': True},
      "lora.modules_to_save: 'lm_head' is the token table in this model: name "
      "it 'embed_tokens'",
    ),
    ({'tokens': (('lm_head', (1,)),)}, {'tie_embeddings': True}, 'token table'),
    ({'tokens': (('norm', (1,)),)}, {}, "lora.tokens: 'norm' names nothing"),
    ({'tokens': (('lm_head', (50,)),)}, {}, 'lm_head has no row 50.*below 50'),
    (
      {'targets': ('lm_head',), 'modules_to_save': ('lm_head',)},
      {},
      'lora.modules_to_save: lm_head is in lora.targets as well',
    ),
    (
      {
        'modules_to_save': ('embed_tokens',),
        'tokens': (('embed_tokens', (1,)),),
      },
      {},
      'lora.modules_to_save: embed_tokens is in lora.tokens as well',
    ),
    (
      {'targets': ('embed_tokens',), 'dora': True},
      {'tie_embeddings': True},
      'lora.dora=True: the token table of this model is its output table too',
    ),
  ],
)
def test_settings_that_do_not_fit_the_model_are_refused(
  fields, changes, message
):
  with pytest.raises(UserError, match=message):
    match_targets(LoraConfig(**fields), tiny.config(**changes))
