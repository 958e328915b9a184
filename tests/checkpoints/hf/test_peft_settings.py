"""Folders of adapters as PEFT and others write them: what each setting does."""

import json

import jax
import numpy as np
import pytest

from llm.checkpoints.hf.peft import CONFIG, WEIGHTS, read_peft, save_peft
from llm.checkpoints.hf.peft_folder import open_peft
from llm.checkpoints.tensor_files import read_header, write_file
from llm.errors import UserError
from llm.models import lora as lora_lib
from llm.models.lora_config import LoraConfig
from llm.models.lora_tree import leaves
from tests.models import tiny

_SHAPE = tiny.config()
_TIED = tiny.config(tie_embeddings=True)
_ROOT = 'base_model.model.'
_Q = 'model.layers.{}.self_attn.q_proj'
_EMBED = 'model.embed_tokens'
# What PEFT 0.18 writes besides the settings of a run.
_FULL = {
  'alora_invocation_tokens': None,
  'alpha_pattern': {},
  'arrow_config': None,
  'auto_mapping': None,
  'base_model_name_or_path': 'some/model-bnb-4bit',
  'bias': 'none',
  'corda_config': None,
  'ensure_weight_tying': False,
  'eva_config': None,
  'exclude_modules': None,
  'fan_in_fan_out': False,
  'inference_mode': True,
  'init_lora_weights': True,
  'layer_replication': None,
  'layers_pattern': None,
  'layers_to_transform': None,
  'loftq_config': {},
  'lora_bias': False,
  'lora_dropout': 0,
  'megatron_config': None,
  'megatron_core': 'megatron.core',
  'modules_to_save': None,
  'peft_version': '0.18.1',
  'qalora_group_size': 16,
  'rank_pattern': {},
  'revision': None,
  'target_parameters': None,
  'task_type': 'CAUSAL_LM',
  'trainable_token_indices': None,
  'use_dora': False,
  'use_qalora': False,
  'use_rslora': False,
}
# As it was before version 0.5.
_OLD = {
  'auto_mapping': None,
  'base_model_name_or_path': 'decapoda/llama-7b-hf',
  'bias': 'none',
  'enable_lora': None,
  'fan_in_fan_out': False,
  'inference_mode': True,
  'lora_dropout': 0.05,
  'merge_weights': False,
  'modules_to_save': None,
  'task_type': 'CAUSAL_LM',
}


def _draw(*shape):
  rng = np.random.default_rng(sum(shape))
  return rng.normal(size=shape).astype(np.float32)


def _pair(module, rank=2, rows=32, columns=32):
  if module.endswith('embed_tokens'):
    return {
      f'{module}.lora_embedding_A': _draw(rank, 50),
      f'{module}.lora_embedding_B': _draw(32, rank),
    }
  if module.endswith('lm_head'):
    rows = 50
  return {
    f'{module}.lora_A.weight': _draw(rank, columns),
    f'{module}.lora_B.weight': _draw(rows, rank),
  }


def _queries(**ranks):
  out = {}
  for layer in (0, 1):
    out |= _pair(_Q.format(layer), ranks.get(f'layer_{layer}', 2))
  return out


def _write(folder, tensors, root=_ROOT, **settings):
  """A folder as others write it, by hand."""
  folder.mkdir(exist_ok=True)
  raw = {
    'peft_type': 'LORA',
    'r': 2,
    'lora_alpha': 4,
    'target_modules': ['q_proj'],
    **settings,
  }
  (folder / CONFIG).write_text(json.dumps(raw))
  tensors = {f'{root}{name}': x for name, x in tensors.items()}
  write_file(
    str(folder / WEIGHTS),
    {name: (x.shape, x.dtype) for name, x in tensors.items()},
    lambda name: [tensors[name]],
  )
  return str(folder)


def _same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  'settings',
  [
    _OLD,
    _FULL,
    {'r': 2, 'lora_alpha': 4.0, 'alpha_pattern': None, 'rank_pattern': None},
    # A model of Unsloth, and what ms-swift and DeepSpeed's users add.
    {'auto_mapping': {'base_model_class': 'Llama', 'unsloth_fixed': True}},
    {'lora_dtype': None, 'lorap_lr_ratio': 16.0, 'lorap_emb_lr': 1e-06},
    {'modules_to_save': [], 'layers_to_transform': [], 'merge_weights': True},
    # Converted from MLX: every layer is listed.
    {**_FULL, 'layers_pattern': 'layers', 'layers_to_transform': [0, 1]},
    {'fan_in_fan_out': True, 'init_lora_weights': 'gaussian'},
    {'init_lora_weights': 'Orthogonal', 'velora_config': {'num_groups': 64}},
    {'bias': 'all'},  # of a model that has none
    {'bias': 'lora_only', 'loftq_config': {'loftq_bits': 4}},
    {'target_modules': r'model\.layers\.\d+\.self_attn\.q_proj'},
    {'target_modules': [_Q.format(0), _Q.format(1)]},
    {'target_modules': ['q_proj', 'in_proj_qkv', 'linear_fc1', 'attn.proj']},
    {'modules_to_save': ['classifier', 'score']},
    {'target_modules': ['self_attn'], 'exclude_modules': ['k', 'self_attn']},
  ],
)
def test_settings_that_say_the_same(tmp_path, settings):
  path = _write(tmp_path, _queries(), **settings)
  if settings.get('target_modules') == ['self_attn']:  # names no projection
    with pytest.raises(UserError, match='target_modules of .* leaves it out'):
      read_peft(path, _SHAPE)
    return
  config, lora = read_peft(path, _SHAPE)
  rate = settings.get('lora_dropout', 0.0)
  assert config == LoraConfig(2, 4.0, ('q_proj',), dropout=rate)
  names = [f'{_Q.format(1)}.lora_{part}.weight' for part in 'AB']
  adapter = lora['layers_1']['attn']['q']
  np.testing.assert_array_equal(adapter['lora_a'], _queries()[names[0]])
  np.testing.assert_array_equal(adapter['lora_b'], _queries()[names[1]])


def test_biases_of_a_model_that_has_some(tmp_path):
  path = _write(tmp_path, _queries(), bias='lora_only')
  with pytest.raises(UserError, match="bias='lora_only': trained biases"):
    read_peft(path, tiny.config(qkv_bias=True))


@pytest.mark.parametrize(
  'alphas, ranks, expected',
  [
    ({'q_proj': 6}, {}, (3.0, 3.0)),
    ({r'layers\.1\.self_attn\.q_proj': 1}, {}, (2.0, 0.5)),
    ({'1.self_attn.q_proj': 6, 'q_proj': 8}, {}, (4.0, 3.0)),
    ({'q_proj': 8, '1.self_attn.q_proj': 6}, {}, (4.0, 4.0)),
    ({'.*q': 100, 'proj': 100}, {}, (2.0, 2.0)),  # not to the name's end
    ({'^model.layers.0.self_attn.q_proj': 5}, {}, (2.5, 2.0)),
    ({'.*.0.*': 7}, {'.*1.*q_proj': 4}, (3.5, 1.0)),
    ({'self_attn.q_proj': 2.5}, {'0.self_attn.q_proj': 5}, (0.5, 1.25)),
  ],
)
def test_alphas_by_pattern(tmp_path, alphas, ranks, expected):
  """Scales alpha / rank of the layers 0 and 1; the first key that fits."""
  sizes = {'layer_0': 2, 'layer_1': 2}
  for key, rank in ranks.items():
    sizes['layer_1' if '1' in key else 'layer_0'] = rank
  settings = {'alpha_pattern': alphas, 'rank_pattern': ranks}
  path = _write(tmp_path, _queries(**sizes), **settings)
  config, lora = read_peft(path, _SHAPE)
  places = [(f'layers_{i}', 'attn', 'q') for i in (0, 1)]
  scales = [
    config.scale(config.alpha_of(place), config.rank_of(place))
    for place in places
  ]
  np.testing.assert_allclose(scales, expected)
  again = str(tmp_path / 'again')
  save_peft(again, config, _SHAPE, lora)
  assert read_peft(again, _SHAPE)[0] == config
  assert config.targets == ('q_proj',)


def _rename(tensors, *pairs):
  out = {}
  for name, x in tensors.items():
    for old, new in pairs:
      name = name.replace(old, new)
    out[name] = x
  return out


@pytest.mark.parametrize(
  'root, pairs',
  [
    (_ROOT, [('lora_A.', 'lora_A.default.'), ('lora_B.', 'lora_B.default.')]),
    (_ROOT, [('lora_A.', 'lora_A.my_run.'), ('lora_B.', 'lora_B.my_run.')]),
    (f'{_ROOT}{_ROOT}', []),
    ('', []),
    (_ROOT, [('model.layers', 'layers')]),  # a model without a head
    (_ROOT, [('model.', 'model.language_model.')]),
    (_ROOT, [('model.', 'language_model.model.')]),
    (f'_orig_mod.{_ROOT}', [('self_attn', '_orig_mod.self_attn')]),
    (
      f'_fsdp_wrapped_module.{_ROOT}',
      [('.self', '._checkpoint_wrapped_module.self')],
    ),
  ],
)
def test_spellings(tmp_path, root, pairs):
  plain = read_peft(_write(tmp_path / 'a', _queries()), _SHAPE)
  tensors = _rename(_queries(), *pairs)
  other = read_peft(_write(tmp_path / 'b', tensors, root), _SHAPE)
  assert other[0] == plain[0]
  _same(other[1], plain[1])


@pytest.mark.parametrize('tail', ['', '.weight', '.default', '.default.weight'])
def test_spellings_of_magnitudes(tmp_path, tail):
  tensors = _queries()
  for layer in (0, 1):
    name = f'{_Q.format(layer)}.lora_magnitude_vector{tail}'
    tensors[name] = _draw(32)
  config, lora = read_peft(_write(tmp_path, tensors, use_dora=True), _SHAPE)
  assert config.dora
  _same(lora['layers_0']['attn']['q']['magnitude'], _draw(32))


def test_settings_in_the_names_of_a_model_that_also_sees(tmp_path):
  """Unsloth's expression, and patterns, are of the whole model's names."""
  expression = (
    r'(?:.*?(?:language|text).*?(?:self_attn|attention|mlp).*?(?:q_proj).*?)'
    r'|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj)))'
  )
  pattern = {r'model\.language_model\.layers\.1\..*': 8}
  tensors = _rename(_queries(), ('model.', 'model.language_model.'))
  settings = {'target_modules': expression, 'alpha_pattern': pattern}
  config, _ = read_peft(_write(tmp_path, tensors, **settings), _SHAPE)
  assert config.alpha_pattern == (('layers_1/attn/q', 8.0),)
  plain = _write(tmp_path, _queries(), **settings)
  assert read_peft(plain, _SHAPE)[0].alpha_pattern == ()


_COPY = f'{_EMBED}.weight', _draw(50, 32)
_NORMS = {
  f'model.{name}.weight': _draw(32)
  for name in (
    'norm',
    *(
      f'layers.{i}.{norm}'
      for i in (0, 1)
      for norm in ('input_layernorm', 'post_attention_layernorm')
    ),
  )
}


@pytest.mark.parametrize(
  'names, tensors, found',
  [
    (['embed_tokens'], dict([_COPY]), ('embed_tokens',)),
    (['model.embed_tokens'], dict([_COPY]), ('embed_tokens',)),
    (
      ['embed_tokens', 'score'],
      {f'{_EMBED}.modules_to_save.default.weight': _COPY[1]},
      ('embed_tokens',),
    ),
    (
      ['embed_tokens'],
      {
        f'{_EMBED}.modules_to_save.weight': _COPY[1],
        f'{_EMBED}.original_module.weight': _draw(50, 32) + 1,
      },
      ('embed_tokens',),
    ),
    (['norm'], _NORMS, ('norm',)),
    (['model.norm'], {'model.norm.weight': _draw(32)}, ('final_norm',)),
    (
      ['1.input_layernorm', 'lm_head'],
      {
        'model.layers.1.input_layernorm.weight': _draw(32),
        'lm_head.weight': _draw(50, 32),
      },
      ('layers_1/pre_attention_norm', 'lm_head'),
    ),
  ],
)
def test_whole_copies(tmp_path, names, tensors, found):
  path = _write(tmp_path, _queries() | tensors, modules_to_save=names)
  config, lora = read_peft(path, _SHAPE)
  assert config.modules_to_save == found
  copies = dict(leaves(lora))
  assert len(copies) == len([k for k in tensors if 'original' not in k])
  if 'embed_tokens' in found:
    _same(copies['embedder', 'embedding'], _COPY[1])
  again = str(tmp_path / 'again')
  save_peft(again, config, _SHAPE, lora)
  settings, tree = read_peft(again, _SHAPE)
  assert settings == config
  _same(tree, lora)


def test_what_is_written(tmp_path):
  """The settings of `adapter_config.json`, by hand."""
  config = LoraConfig(
    rank=2,
    alpha=4.0,
    targets=('q_proj', 'embed_tokens'),
    layers=(1,),
    alpha_pattern=(('q_proj', 0.5),),
    rank_pattern=(('embed_tokens', 3),),
    modules_to_save=('final_norm',),
    tokens=(('lm_head', (4, 1)),),
  )
  params = tiny.init(_SHAPE)
  lora = lora_lib.init_lora(config, _SHAPE, params, jax.random.key(0))
  save_peft(str(tmp_path), config, _SHAPE, lora)
  raw = json.loads((tmp_path / CONFIG).read_text())
  assert raw['target_modules'] == [_Q.format(1), 'embed_tokens']
  assert raw['alpha_pattern'] == {r'model\.layers\.1\.self_attn\.q_proj': 0.5}
  assert raw['rank_pattern'] == {r'model\.embed_tokens': 3}
  assert raw['modules_to_save'] == ['model.norm']
  assert raw['trainable_token_indices'] == {'lm_head': [4, 1]}
  assert not raw['ensure_weight_tying']
  infos, _ = read_header(str(tmp_path / WEIGHTS))
  shapes = {k.removeprefix(_ROOT): x.shape for k, x in infos.items()}
  assert shapes == {
    f'{_Q.format(1)}.lora_A.weight': (2, 32),
    f'{_Q.format(1)}.lora_B.weight': (32, 2),
    f'{_EMBED}.lora_embedding_A': (3, 50),
    f'{_EMBED}.lora_embedding_B': (32, 3),
    'model.norm.weight': (32,),
    'lm_head.token_adapter.trainable_tokens_delta': (2, 32),
  }
  found, again = read_peft(str(tmp_path), _SHAPE)
  _same(again, lora)
  assert found.tokens == config.tokens


def test_dense_layers_beside_experts_are_written_in_full(tmp_path):
  """'down_proj' would take in the experts too."""
  shape = tiny.config('experts', moe_layers=(False, True))
  config = LoraConfig(rank=2, targets=('layers_0/mlp/down',))
  params = tiny.init(shape)
  lora = lora_lib.init_lora(config, shape, params, jax.random.key(0))
  save_peft(str(tmp_path), config, shape, lora)
  raw = json.loads((tmp_path / CONFIG).read_text())
  assert raw['target_modules'] == ['model.layers.0.mlp.down_proj']


_HEAD_ROWS = {
  'lm_head.token_adapter.trainable_tokens_delta': _draw(2, 32),
  f'{_EMBED}.token_adapter.trainable_tokens_delta': _draw(2, 32),
}


@pytest.mark.parametrize(
  'tensors, settings, tied',
  [
    ({}, {}, True),
    (_pair(_EMBED), {'target_modules': ['q_proj', 'embed_tokens']}, False),
    (_pair('lm_head'), {'target_modules': ['q_proj', 'lm_head']}, False),
    (dict([_COPY]), {'modules_to_save': ['embed_tokens']}, False),
    (
      {'lm_head.weight': _draw(50, 32), **dict([_COPY])},
      {'modules_to_save': ['lm_head', 'embed_tokens']},
      False,
    ),
    (
      {'lm_head.weight': _draw(50, 32), **dict([_COPY])},
      {'modules_to_save': ['lm_head'], 'ensure_weight_tying': True},
      True,
    ),
    (
      {f'{_EMBED}.token_adapter.trainable_tokens_delta': _draw(2, 32)},
      {'trainable_token_indices': [5, 3]},
      True,
    ),
    (
      _HEAD_ROWS,
      {'trainable_token_indices': {'embed_tokens': [1, 2], 'lm_head': [3, 4]}},
      False,
    ),
    # Saved with the tables of the base, which are those of one parameter.
    ({'lm_head.weight': _draw(50, 32), **dict([_COPY])}, {}, True),
  ],
)
def test_one_table_or_two(tmp_path, tensors, settings, tied):
  path = _write(tmp_path, _queries() | tensors, **settings)
  assert open_peft(path, _SHAPE).config == _SHAPE
  folder = open_peft(path, _TIED)
  assert folder.config.tie_embeddings == tied
  settings, lora = read_peft(path, _TIED)
  again = str(tmp_path / 'again')
  save_peft(again, settings, folder.config, lora)
  assert open_peft(again, _TIED).config == folder.config
  _same(read_peft(again, _TIED)[1], lora)


@pytest.mark.parametrize(
  'tensors, settings, message',
  [
    (
      {'lm_head.weight': _draw(50, 32) + 1, **dict([_COPY])},
      {'modules_to_save': ['lm_head'], 'ensure_weight_tying': True},
      'embed_tokens.weight and .*lm_head.weight are one table.*they differ',
    ),
    (
      {'lm_head.weight': _draw(50, 32) + 1, **dict([_COPY])},
      {},
      'are one table in the model, and they differ',
    ),
    (
      _pair(_EMBED) | _pair('lm_head'),
      {
        'target_modules': ['q_proj', 'lm_head', 'embed_tokens'],
        'ensure_weight_tying': True,
      },
      'lora_embedding_.* and .*lm_head.lora_.*are one table',
    ),
    (
      _pair(_EMBED),
      {
        'target_modules': ['q_proj', 'embed_tokens'],
        'ensure_weight_tying': True,
        'use_dora': True,
      },
      'use_dora and ensure_weight_tying',
    ),
    (
      _pair('lm_head')
      | {f'{_EMBED}.token_adapter.trainable_tokens_delta': _draw(1, 32)},
      {
        'target_modules': ['q_proj', 'lm_head'],
        'trainable_token_indices': [5],
      },
      'trainable_token_indices beside an lm_head of its own',
    ),
    (
      {},
      {'target_modules': ['q_proj', 'lm_head']},
      'lm_head: .*has it in target_modules, and .*has no adapter of it',
    ),
    (
      {f'{_EMBED}.token_adapter.trainable_tokens_delta': _draw(1, 32)},
      {'trainable_token_indices': [50]},
      'embed_tokens has no row 50 in a model of 50 tokens',
    ),
    (
      {f'{_EMBED}.token_adapter.trainable_tokens_delta': _draw(1, 32)}
      | dict([_COPY]),
      {'trainable_token_indices': [5], 'modules_to_save': ['embed_tokens']},
      'modules_to_save as well, which PEFT does not define',
    ),
  ],
)
def test_tables_that_peft_does_not_define_are_refused(
  tmp_path, tensors, settings, message
):
  path = _write(tmp_path, _queries() | tensors, **settings)
  with pytest.raises(UserError, match=message):
    read_peft(path, _TIED)


def test_tables_of_another_size(tmp_path):
  """All tables of the model make another vocabulary; one alone does not fit."""
  embed = {f'{_EMBED}.weight': _draw(57, 32)}
  path = _write(tmp_path / 'tied', _queries() | embed)
  folder = open_peft(path, _TIED)
  assert folder.config.vocab_size == 57 and folder.config.tie_embeddings
  assert list(folder.base) == [('embedder', 'embedding')]
  with pytest.raises(UserError, match=r'\[57, 32\].*ask for \[50, 32\]'):
    open_peft(path, _SHAPE)
  names = ['lm_head', 'embed_tokens']
  tensors = embed | {'lm_head.weight': _draw(57, 32)}
  path = _write(tmp_path / 'two', _queries() | tensors, modules_to_save=names)
  folder = open_peft(path, _SHAPE)
  assert folder.config.vocab_size == 57
  assert folder.settings.modules_to_save == ('embed_tokens', 'lm_head')


def test_no_adapters(tmp_path):
  path = _write(
    tmp_path, dict([_COPY]), modules_to_save=['embed_tokens'], target_modules=[]
  )
  with pytest.raises(UserError, match='holds no adapters'):
    read_peft(path, _SHAPE)
