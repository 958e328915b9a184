"""Adapters in PEFT's format: what is written, read and refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.checkpoints.hf.peft import CONFIG, WEIGHTS, read_peft, save_peft
from llm.checkpoints.tensor_files import read_header, write_file
from llm.errors import UserError
from llm.models import lora as lora_lib
from llm.models.lora_config import LoraConfig
from llm.models.lora_places import match_targets
from tests.models import tiny

_SHAPE = tiny.config()
_PREFIX = 'base_model.model.model.layers'
_ONE = np.ones(1, np.float32)


def _adapters(config, shape=_SHAPE, seed=0):
  rng = np.random.default_rng(seed)
  lora = {}
  for path in match_targets(config, shape):
    rows, columns = lora_lib.shape(shape, path)
    adapter = {
      'lora_a': rng.normal(size=(config.rank, columns)).astype(np.float32),
      'lora_b': rng.normal(size=(rows, config.rank)).astype(np.float32),
    }
    if config.dora:
      adapter['magnitude'] = rng.uniform(1, 2, rows).astype(np.float32)
    lora_lib.insert(lora, path, adapter)
  return lora


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _write(folder, tensors, **settings):
  """A folder as PEFT would write it, by hand."""
  folder.mkdir(exist_ok=True)
  raw = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 4, **settings}
  (folder / CONFIG).write_text(json.dumps(raw))
  write_file(
    str(folder / WEIGHTS),
    {name: (x.shape, x.dtype) for name, x in tensors.items()},
    lambda name: [tensors[name]],
  )
  return str(folder)


def _q_tensors(rank=2, layers=(0, 1)):
  rng = np.random.default_rng(0)
  out = {}
  for i in layers:
    for part, shape in (('lora_A', (rank, 32)), ('lora_B', (32, rank))):
      name = f'{_PREFIX}.{i}.self_attn.q_proj.{part}.weight'
      out[name] = rng.normal(size=shape).astype(np.float32)
  return out


@pytest.mark.parametrize(
  'config',
  [
    LoraConfig(rank=3, alpha=7.0, dora=True, targets=('all-linear', 'lm_head')),
    LoraConfig(rank=2, alpha=0.5, rslora=True, dropout=0.1),
    LoraConfig(rank=1, targets=('layers_1/attn/q', 'up_proj')),
  ],
)
def test_what_is_saved_is_read_back(tmp_path, config):
  lora = _adapters(config)
  save_peft(str(tmp_path), config, _SHAPE, lora, base_model='base')
  found, again = read_peft(str(tmp_path), _SHAPE)
  _equal(again, lora)
  assert match_targets(found, _SHAPE) == match_targets(config, _SHAPE)
  for field in ('rank', 'alpha', 'dora', 'rslora', 'dropout'):
    assert getattr(found, field) == getattr(config, field)
  assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


def test_names_and_settings_of_the_files(tmp_path):
  targets = ('layers_1/attn/v', 'down_proj')
  config = LoraConfig(rank=2, alpha=4.0, dora=True, targets=targets)
  lora = _adapters(config)
  save_peft(str(tmp_path), config, _SHAPE, lora, base_model='some/base')
  infos, problems = read_header(str(tmp_path / WEIGHTS))
  assert not problems
  v, down = f'{_PREFIX}.1.self_attn.v_proj', f'{_PREFIX}.0.mlp.down_proj'
  assert len(infos) == 9
  assert infos[f'{v}.lora_A.weight'].shape == (2, 32)
  assert infos[f'{v}.lora_B.weight'].shape == (16, 2)
  assert infos[f'{v}.lora_magnitude_vector'].shape == (16,)
  assert infos[f'{down}.lora_A.weight'].shape == (2, 48)
  raw = json.loads((tmp_path / CONFIG).read_text())
  assert raw['target_modules'] == [
    'down_proj',
    'model.layers.1.self_attn.v_proj',
  ]
  assert raw['base_model_name_or_path'] == 'some/base'
  assert (raw['r'], raw['lora_alpha']) == (2, 4)
  assert raw['use_dora'] and not raw['use_rslora']


def test_stacked_layers_give_the_same_file(tmp_path):
  config = LoraConfig(rank=2)
  lora = _adapters(config)
  save_peft(str(tmp_path / 'a'), config, _SHAPE, lora)
  stacked = lora_lib.stack(lora, _SHAPE)
  save_peft(str(tmp_path / 'b'), config, _SHAPE, stacked)
  for name in (CONFIG, WEIGHTS):
    one, two = (tmp_path / x / name for x in 'ab')
    assert one.read_bytes() == two.read_bytes()


def test_bfloat16_adapters_are_kept(tmp_path):
  config = LoraConfig(rank=2, targets=('q_proj',))
  lora = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), _adapters(config))
  save_peft(str(tmp_path), config, _SHAPE, lora)
  infos, _ = read_header(str(tmp_path / WEIGHTS))
  assert {info.dtype for info in infos.values()} == {'BF16'}
  _equal(read_peft(str(tmp_path), _SHAPE)[1], lora)
  wrong = jax.tree.map(lambda x: x.astype(np.int32), _adapters(config))
  with pytest.raises(UserError, match='dtype int32 cannot be saved'):
    save_peft(str(tmp_path), config, _SHAPE, wrong)


def test_ranks_by_pattern(tmp_path):
  tensors = _q_tensors(2, [0]) | _q_tensors(5, [1])
  settings = {'target_modules': ['q_proj'], 'lora_dropout': 0.05}
  pattern = {r'layers\.1\.self_attn\.q_proj': 5}
  path = _write(tmp_path, tensors, rank_pattern=pattern, **settings)
  config, lora = read_peft(path, _SHAPE)
  assert config == LoraConfig(
    2,
    4.0,
    ('q_proj',),
    dropout=0.05,
    rank_pattern=(('layers_1/attn/q', 5),),
  )
  assert lora['layers_1']['attn']['q']['lora_b'].shape == (32, 5)
  save_peft(str(tmp_path / 'again'), config, _SHAPE, lora)
  _equal(read_peft(str(tmp_path / 'again'), _SHAPE)[1], lora)
  _write(tmp_path, tensors, **settings)
  with pytest.raises(
    UserError, match=r'layers.1.*lora_A.weight: \[5, 32\].*\[2, 32\]'
  ):
    read_peft(path, _SHAPE)


@pytest.mark.parametrize(
  'targets',
  [
    {'target_modules': 'all-linear', 'exclude_modules': ['mlp', 'k_proj']},
    {'target_modules': r'.*\.q_proj'},
    {'target_modules': ['self_attn.q_proj'], 'layers_to_transform': [0, 1]},
    {'target_modules': None},
  ],
)
def test_targets_as_peft_writes_them(tmp_path, targets):
  tensors = _q_tensors()
  if targets['target_modules'] == 'all-linear':
    targets = {
      **targets,
      'exclude_modules': r'.*(mlp|[kvo]_proj).*',
    }
  config, lora = read_peft(_write(tmp_path, tensors, **targets), _SHAPE)
  assert config.targets == ('q_proj',)
  assert len(list(lora_lib.items(lora))) == 2


def test_adapters_of_a_model_that_also_sees(tmp_path):
  for prefix in ('model.language_model.layers', 'language_model.model.layers'):
    tensors = {
      name.replace('model.layers', prefix): x
      for name, x in _q_tensors().items()
    }
    path = _write(tmp_path, tensors, target_modules=['q_proj'])
    lora = read_peft(path, _SHAPE)[1]
    assert sorted(lora) == ['layers_0', 'layers_1']


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'peft_type': 'LOHA'}, "peft_type='LOHA'.*only 'LORA'"),
    ({'bias': 'some'}, "bias='some' is not what PEFT writes"),
    ({'lora_bias': True}, 'lora_bias=True is not supported: it adds biases'),
    ({'layer_replication': [[0, 2]]}, 'layer_replication=.*a deeper model'),
    ({'alora_invocation_tokens': [1]}, 'alora_invocation_tokens=.*plain LoRA'),
    ({'target_parameters': ['experts.up']}, 'target_parameters=.*experts'),
    ({'use_qalora': True}, 'use_qalora=True.*GPTQ'),
    ({'arrow_config': {'top_k': 3}}, 'arrow_config=.*run it with PEFT'),
    ({'kasa_config': {'beta': 1e-4}}, 'kasa_config=.*the weights of the base'),
    ({'use_bdlora': {'nblocks': 2}}, 'use_bdlora=.*block-diagonal'),
    ({'megatron_config': {'tp': 1}}, 'megatron_config=.*Megatron'),
    ({'monteclora_config': {'n': 1}}, 'monteclora_config=.*merge it'),
    ({'enable_lora': [True, False]}, 'enable_lora=.*several projections'),
    ({'something_new': 3}, 'something_new=3 is not supported'),
    ({'init_lora_weights': 'pissa'}, "init_lora_weights='pissa'.*base"),
    ({'init_lora_weights': 'pissa_niter_16'}, "'pissa_niter_16' changes"),
    ({'init_lora_weights': 'OLoRA'}, "init_lora_weights='OLoRA' changes"),
    ({'init_lora_weights': 'loftq'}, "init_lora_weights='loftq' changes"),
    ({'init_lora_weights': 'lora_ga'}, "init_lora_weights='lora_ga' changes"),
    ({'alpha_pattern': {'q_proj': '4'}}, "q_proj='4': use a number above 0"),
    ({'alpha_pattern': {'q_proj': 0}}, 'q_proj=0: use a number above 0'),
    ({'alpha_pattern': ['q_proj']}, r"alpha_pattern=\['q_proj'\] is not what"),
    ({'alpha_pattern': {'q(': 4}}, r"'q\(' is not a regular expression"),
    ({'rank_pattern': {'q_proj': 2.0}}, 'q_proj=2.0: save'),
    ({'modules_to_save': ['embed(']}, r"'embed\(' is not a regular expr"),
    ({'modules_to_save': 'norm'}, "modules_to_save='norm' is not what PEFT"),
    ({'modules_to_save': [3]}, r'modules_to_save=\[3\] is not what PEFT'),
    ({'modules_to_save': ['norm']}, 'layers.0.input_layernorm.weight: missing'),
    (
      {'trainable_token_indices': [1]},
      'trainable_tokens_delta: missing',
    ),
    ({'trainable_token_indices': [1, 1]}, 'trainable_token_indices=.*not what'),
    ({'trainable_token_indices': [-1]}, 'trainable_token_indices=.*not what'),
    ({'layers_to_transform': ['0']}, 'layers_to_transform=.*is not what PEFT'),
    (
      {'target_modules': '.*q_proj', 'layers_to_transform': [0, 1]},
      'layers_to_transform=.*list of target_modules',
    ),
    (
      {'layers_to_transform': [0, 1], 'layers_pattern': 'h'},
      'layers.0.self_attn.q_proj: .*leaves it out',
    ),
    ({'lora_dropout': 1.5}, 'lora_dropout=1.5: use a rate'),
    ({'lora_alpha': 10**400}, 'lora_alpha=1000.*: use a number above 0'),
    ({'alpha_pattern': {'(?i)q': 1}}, r"'\(\?i\)q' is not a regular"),
    ({'target_modules': 'a{99999999999999999999}'}, 'is not a regular expr'),
    (
      {'trainable_token_indices': {'wte': [1]}},
      "trainable_token_indices: 'wte' is no table of the model",
    ),
    ({'r': 0}, 'r=0: save'),
    ({'lora_alpha': 0}, 'lora_alpha=0: use a number above 0'),
    ({'r': 'four'}, "r='four' is not what PEFT writes"),
    ({'use_dora': 1}, 'use_dora=1'),
    ({'use_dora': True}, 'lora_magnitude_vector: missing'),
    ({'target_modules': '*q'}, r"'\*q' is not a regular expression"),
    ({'target_modules': ['v_proj']}, 'q_proj: .*target_modules.*leaves it out'),
    (
      {'target_modules': ['q_proj', 'up_proj']},
      r'model.layers.0.mlp.up_proj: .*has no adapter of it',
    ),
    (
      {'target_modules': ['q_proj'], 'layers_to_transform': 0},
      r'model.layers.1.self_attn.q_proj: .*leaves it out',
    ),
  ],
)
def test_settings_that_change_the_result_are_refused(
  tmp_path, settings, message
):
  settings = {'target_modules': ['q_proj'], **settings}
  path = _write(tmp_path, _q_tensors(), **settings)
  with pytest.raises(UserError, match=message):
    read_peft(path, _SHAPE)


def _without(tensors, part):
  return {k: x for k, x in tensors.items() if part not in k}


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda t: _without(t, 'lora_B'), 'q_proj.lora_B.weight: missing'),
    (
      lambda t: {k: x[:, :1] for k, x in t.items()},
      r'q_proj.lora_A.weight: \[2, 1\] in .*ask for \[2, 32\]',
    ),
    (
      lambda t: {k.replace('layers.1', 'layers.7'): x for k, x in t.items()},
      'layers.7.self_attn.q_proj.lora_A.weight: the model has no projection',
    ),
    (
      lambda t: {
        k.replace('self_attn.q', 'mlp.experts.0.up'): x for k, x in t.items()
      },
      'experts.0.up_proj.*: the model has no projection',
    ),
    (
      lambda t: {
        **t,
        'base_model.model.model.embed_tokens.lora_embedding_A': np.ones(
          (2, 50), np.float32
        ),
      },
      'embed_tokens: .*target_modules of adapter_config.json leaves it out',
    ),
    (
      lambda t: {
        **t,
        'base_model.model.lm_head.weight': np.ones((50, 31), np.float32),
      },
      r'lm_head.weight: \[50, 31\].*ask for \[50, 32\]',
    ),
    (
      lambda t: {
        **t,
        f'{_PREFIX}.0.self_attn.q_proj.lora_magnitude_vector': np.ones(
          32, np.float32
        ),
      },
      'lora_magnitude_vector: .*use_dora=false',
    ),
    (
      lambda t: {**t, f'{_PREFIX}.0.self_attn.q_proj.base_layer.bias': _ONE},
      'q_proj.base_layer.bias: a trained bias cannot be read: merge it',
    ),
    (
      lambda t: {**t, f'{_PREFIX}.0.self_attn.q_proj.lora_B.bias': _ONE},
      'lora_B.bias: a trained bias',
    ),
    (
      lambda t: {**t, f'{_PREFIX}.0.mlp.up_proj.weight': _ONE},
      'up_proj.weight: a whole copy of a projection cannot be read',
    ),
    (
      lambda t: {**t, 'base_model.model.score.weight': _ONE},
      'score.weight: belongs to a model that scores texts',
    ),
    (
      lambda t: {
        **t,
        'base_model.model.lm_head.modules_to_save.default.weight': _ONE,
      },
      'modules_to_save of adapter_config.json does not name it',
    ),
    (
      lambda t: {
        k.replace('A.w', f'A.{"xy"["layers.1" in k]}.w'): x
        for k, x in t.items()
      },
      r'holds several adapters \(x, y\): save one',
    ),
    (
      lambda t: {
        **t,
        **{k.replace('A.w', 'A.default.w'): x for k, x in t.items()},
      },
      'lora_A.default.weight: is there twice',
    ),
    (lambda t: {**t, 'something': _ONE}, 'something: not an adapter'),
    (
      lambda t: {
        **t,
        'base_model.model.model.embed_tokens.token_adapter'
        '.trainable_tokens_delta': _ONE,
      },
      'trainable_tokens_delta: no setting of adapter_config.json asks for it',
    ),
  ],
)
def test_tensors_without_a_place_are_refused(tmp_path, change, message):
  path = _write(tmp_path, change(_q_tensors()), target_modules=['q_proj'])
  with pytest.raises(UserError, match=message):
    read_peft(path, _SHAPE)


def test_missing_and_broken_files_are_refused(tmp_path):
  with pytest.raises(UserError, match='no such folder'):
    read_peft(str(tmp_path / 'nothing'), _SHAPE)
  with pytest.raises(UserError, match=f'{CONFIG}: no such file'):
    read_peft(str(tmp_path), _SHAPE)
  path = _write(tmp_path, _q_tensors(), target_modules=['q_proj'])
  whole = (tmp_path / WEIGHTS).read_bytes()
  (tmp_path / WEIGHTS).write_bytes(whole[:-9])
  with pytest.raises(UserError, match='truncated'):
    read_peft(path, _SHAPE)
  (tmp_path / WEIGHTS).rename(tmp_path / 'adapter_model.bin')
  with pytest.raises(UserError, match='adapter_model.bin: its pickle is da'):
    read_peft(path, _SHAPE)
  (tmp_path / 'adapter_model.bin').unlink()
  with pytest.raises(UserError, match=f'{WEIGHTS}: no such file'):
    read_peft(path, _SHAPE)


def test_phi3_is_refused(tmp_path):
  shape = tiny.config(model_type='phi3')
  config = LoraConfig(rank=2)
  with pytest.raises(UserError, match='phi3.*qkv_proj'):
    save_peft(str(tmp_path), config, shape, _adapters(config))
  with pytest.raises(UserError, match='phi3.*qkv_proj'):
    read_peft(str(tmp_path), shape)
