"""Every setting of PEFT that is read: its outputs, and files in both ways.

Each case trains nothing: all that PEFT would train is moved at random, saved by
PEFT, read here, written here, and read by PEFT again.
"""

import jax
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch

from llm.checkpoints.hf.peft import save_peft
from llm.checkpoints.source import (
  add_adapters,
  fit_adapters,
  open_checkpoint,
  read_adapters,
)
from llm.models import lora as lora_lib
from llm.models.lora_fit import base_leaf
from llm.models.transformer import Transformer
from tests.parity.families import CASES, load_torch, save_model

peft = pytest.importorskip('peft')
_TOKENS = np.random.default_rng(0).integers(0, 96, (2, 9))
_QV = ['q_proj', 'v_proj']
_TIED, _UNTIED = 'gemma3', 'llama'
_SETTINGS = {
  'alpha by name': {'alpha_pattern': {'v_proj': 3, 'q_proj': 11}},
  'alpha by regex': {
    'target_modules': ['q_proj', 'down_proj'],
    'alpha_pattern': {r'layers\.[01]\.mlp\.down_proj': 1, '.*proj': 9.5},
    'rank_pattern': {r'^model\.layers\.2\.self_attn\.q_proj': 7},
  },
  'alpha, rslora, dora': {
    'use_dora': True,
    'use_rslora': True,
    'alpha_pattern': {'self_attn.v_proj': 20},
    'rank_pattern': {'v_proj': 2},
  },
  'some layers': {
    'layers_to_transform': [0, 2],
    'layers_pattern': 'layers',
    'rank_pattern': {'q_proj': 3},
  },
  'one layer': {'layers_to_transform': 1},
  'all but some': {
    'target_modules': 'all-linear',
    'exclude_modules': ['o_proj', 'layers.1.mlp.up_proj'],
  },
  'all but a regex': {
    'target_modules': r'.*\.(self_attn|mlp)\..*_proj',
    'exclude_modules': r'.*layers\.0\..*',
  },
  'norms': {'modules_to_save': ['norm']},
  'some norms': {'modules_to_save': ['input_layernorm', 'model.norm']},
  'fan_in_fan_out': {'fan_in_fan_out': True},
  'no init': {'init_lora_weights': False},
  'orthogonal': {'init_lora_weights': 'orthogonal'},
}
_TABLES = {
  'embedding': {'target_modules': ['q_proj', 'embed_tokens']},
  'embedding, rslora': {
    'target_modules': r'.*(embed_tokens|k_proj)',
    'use_rslora': True,
    'alpha_pattern': {'embed_tokens': 3},
    'rank_pattern': {'embed_tokens': 2},
  },
  'head': {'target_modules': ['lm_head', 'q_proj']},
  'both': {'target_modules': ['lm_head', 'embed_tokens', 'v_proj']},
  'copy of embedding': {'modules_to_save': ['embed_tokens']},
  'copy of head': {'modules_to_save': ['lm_head']},
  'copies': {'modules_to_save': ['embed_tokens', 'lm_head']},
  'a copy of one, an adapter on the other': {
    'target_modules': ['q_proj', 'lm_head'],
    'modules_to_save': ['embed_tokens'],
  },
  'dora on tables': {
    'target_modules': ['lm_head', 'embed_tokens', 'v_proj'],
    'use_dora': True,
  },
  'rows': {'trainable_token_indices': [3, 1, 40]},
  'rows of the head': {'trainable_token_indices': {'lm_head': [5, 2]}},
  'rows of both': {
    'trainable_token_indices': {'embed_tokens': [5, 2], 'lm_head': [7]}
  },
  'the same rows of both': {
    'trainable_token_indices': {'embed_tokens': [5, 2], 'lm_head': [5, 2]}
  },
}
_ENSURED = {
  'embedding': {'target_modules': ['q_proj', 'embed_tokens']},
  'head': {'target_modules': ['q_proj', 'lm_head']},
  'both': {'target_modules': ['lm_head', 'embed_tokens', 'v_proj']},
  'copy': {'modules_to_save': ['embed_tokens']},
  'copies': {'modules_to_save': ['embed_tokens', 'lm_head']},
  'rows': {'trainable_token_indices': [3, 1, 40]},
}


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
  """Base folders by family."""
  made = {}
  for case in CASES:
    if case.name in (_TIED, _UNTIED):
      made[case.name] = str(tmp_path_factory.mktemp(case.name))
      save_model(case, made[case.name])
  return made


def _theirs(base, options):
  """A PEFT model, everything that it trains moved far away."""
  torch.manual_seed(1)
  options = {'r': 4, 'lora_alpha': 6, 'target_modules': _QV} | options
  config = peft.LoraConfig(**options, task_type='CAUSAL_LM')
  model = peft.get_peft_model(load_torch(base), config)
  moved = set()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if not weight.requires_grad or weight.data_ptr() in moved:
        continue
      moved.add(weight.data_ptr())
      noise = torch.randn_like(weight)
      if 'magnitude' in name:
        weight.mul_(1 + 0.2 * noise)
      else:
        weight.add_(0.2 * noise)
  return model


def _their_logits(model):
  with torch.no_grad():
    return model(torch.tensor(_TOKENS)).logits.numpy()


def _logits(config, variables):
  model = Transformer(config)
  return np.asarray(
    jax.jit(model.apply)(variables, _TOKENS.astype(np.int32))[0]
  )


def _ours(base, folder):
  """(source, settings, adapters, parameters) as a run has them."""
  source = fit_adapters(open_checkpoint(base), folder)
  settings, lora = read_adapters(folder, source.config)
  return source, settings, lora, source.load(np.float32)


def _check(base, options, tmp_path):
  theirs, ours = str(tmp_path / 'theirs'), str(tmp_path / 'ours')
  _theirs(base, options).save_pretrained(theirs)
  # As PEFT reads it: saving sorts patterns, and the first that fits counts.
  model = peft.PeftModel.from_pretrained(load_torch(base), theirs)
  expected = _their_logits(model)
  source, settings, lora, params = _ours(base, theirs)
  got = _logits(source.config, lora_lib.variables(params, lora, settings))
  np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4)
  plain = _their_logits(load_torch(base))
  assert np.abs(plain - expected).max() > 0.3  # the adapters do something
  added = add_adapters(open_checkpoint(base), theirs)
  merged = _logits(added.config, {'params': added.load(np.float32)})
  np.testing.assert_allclose(merged, expected, rtol=0, atol=2e-4)

  save_peft(ours, settings, source.config, lora, base_model=base)
  again = _ours(base, ours)
  assert again[0].config == source.config
  assert again[1] == settings
  jax.tree.map(np.testing.assert_array_equal, again[2], lora)
  back = peft.PeftModel.from_pretrained(load_torch(base), ours)
  np.testing.assert_allclose(_their_logits(back), expected, rtol=0, atol=1e-5)
  return source, settings, lora


@pytest.mark.parametrize('name', _SETTINGS)
def test_settings(bases, tmp_path, name):
  _check(bases[_UNTIED], _SETTINGS[name], tmp_path)


@pytest.mark.parametrize('family', [_UNTIED, _TIED])
@pytest.mark.parametrize('name', _TABLES)
def test_tables(bases, tmp_path, name, family):
  source, _, _ = _check(bases[family], _TABLES[name], tmp_path)
  alike = name in ('rows', 'the same rows of both') and family == _TIED
  assert source.config.tie_embeddings == alike


@pytest.mark.parametrize('name', _ENSURED)
def test_tables_that_stay_tied(bases, tmp_path, name):
  options = {**_ENSURED[name], 'ensure_weight_tying': True}
  source, _, lora = _check(bases[_TIED], options, tmp_path)
  assert source.config.tie_embeddings and 'lm_head' not in lora


@pytest.mark.parametrize('family', [_UNTIED, _TIED])
@pytest.mark.parametrize('copies', [False, True])
def test_another_vocabulary(bases, tmp_path, family, copies):
  """Tokens were added: the tables come with the adapters, whole."""
  base, theirs, ours = (
    bases[family],
    *map(str, (tmp_path / 'a', tmp_path / 'b')),
  )
  resized = load_torch(base)
  torch.manual_seed(2)
  resized.resize_token_embeddings(104)
  options = {'modules_to_save': ['embed_tokens', 'lm_head']} if copies else {}
  if copies and family == _TIED:
    options['ensure_weight_tying'] = True
  model = peft.get_peft_model(
    resized,
    peft.LoraConfig(
      target_modules=_QV,
      init_lora_weights=False,
      task_type='CAUSAL_LM',
      **options,
    ),
  )
  model.save_pretrained(theirs, save_embedding_layers=not copies)
  expected = _their_logits(model)
  source, settings, lora, params = _ours(base, theirs)
  assert source.config.vocab_size == 104
  assert source.config.tie_embeddings == (family == _TIED)
  got = _logits(source.config, lora_lib.variables(params, lora, settings))
  np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4)

  brought = {path: base_leaf(params, path) for path in source.replaced}
  save_peft(ours, settings, source.config, lora, base=brought)
  again = _ours(base, ours)
  assert again[0].config == source.config and again[1] == settings
  jax.tree.map(np.testing.assert_array_equal, again[2:], (lora, params))
  bare = load_torch(base)
  bare.resize_token_embeddings(104)
  back = peft.PeftModel.from_pretrained(bare, ours)
  np.testing.assert_allclose(_their_logits(back), expected, rtol=0, atol=1e-5)


def test_a_base_with_other_norms(bases, tmp_path):
  """What PEFT loads into the base beside the adapters counts here too."""
  base, folder = bases[_UNTIED], str(tmp_path)
  model = _theirs(base, {})
  model.save_pretrained(folder)
  file = tmp_path / 'adapter_model.safetensors'
  tensors = load_file(file)
  name = 'base_model.model.model.norm.weight'
  tensors[name] = torch.rand(32) + 0.5
  save_file(tensors, file)
  loaded = peft.PeftModel.from_pretrained(load_torch(base), folder)
  expected = _their_logits(loaded)
  assert np.abs(expected - _their_logits(model)).max() > 0.1
  source, settings, lora, params = _ours(base, folder)
  got = _logits(source.config, lora_lib.variables(params, lora, settings))
  np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize('kind', ['pissa', 'olora'])
def test_converted_by_peft(bases, tmp_path, kind):
  """PEFT's own remedy gives adapters of the plain base."""
  base, first = bases[_UNTIED], tmp_path / 'first'
  config = peft.LoraConfig(
    r=4,
    lora_alpha=6,
    target_modules=_QV,
    init_lora_weights=kind,
    task_type='CAUSAL_LM',
  )
  model = peft.get_peft_model(load_torch(base), config)
  model.peft_config['default'].init_lora_weights = True
  model.save_pretrained(str(first))
  model.peft_config['default'].init_lora_weights = kind
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if 'lora_B' in name:
        weight.add_(0.2 * torch.randn_like(weight))
  expected = _their_logits(model)
  model.save_pretrained(
    str(tmp_path / 'converted'),
    path_initial_model_for_weight_conversion=str(first),
  )
  source, settings, lora, params = _ours(base, str(tmp_path / 'converted'))
  assert settings.rank == 8
  got = _logits(source.config, lora_lib.variables(params, lora, settings))
  np.testing.assert_allclose(got, expected, rtol=0, atol=5e-4)
