"""LoRA and DoRA against PEFT: outputs, gradients, training, files."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from llm.checkpoints.hf.load import load_params
from llm.checkpoints.hf.peft import read_peft, save_peft
from llm.checkpoints.hf.source import read_config
from llm.errors import UserError
from llm.losses.language import cross_entropy_loss
from llm.models import lora as lora_lib
from llm.models.transformer import Transformer
from tests.parity.families import CASES, load_torch, save_model

peft = pytest.importorskip('peft')
_TOKENS = np.random.default_rng(0).integers(0, 96, (3, 11))
_ALL = ['q_proj', 'k_proj', 'v_proj', 'o_proj']
_ALL += ['gate_proj', 'up_proj', 'down_proj']
_KINDS = {
  'lora': {},
  'dora': {'use_dora': True},
  'rslora_some': {
    'use_rslora': True,
    'target_modules': ['q_proj', 'v_proj', 'up_proj'],
  },
  'ranks': {
    'rank_pattern': {r'layers\.1\.self_attn\.v_proj': 2, 'up_proj': 3},
    'layers_to_transform': [1, 2],
  },
}
_MODELS = {case.name: case for case in CASES}


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
  """Base folders by family, each made once."""
  made = {}

  def get(name):
    if name not in made:
      made[name] = str(tmp_path_factory.mktemp(name))
      if name == 'untrained':
        torch.manual_seed(0)
        options = {**_MODELS['qwen2'].options, 'initializer_range': 0.1}
        untrained = transformers.Qwen2ForCausalLM(
          transformers.Qwen2Config(**options)
        )
        untrained.save_pretrained(made[name])
      else:
        save_model(_MODELS[name], made[name])
    return made[name]

  return get


def _theirs(base, kind, **options):
  """A PEFT model whose adapters are far from doing nothing."""
  torch.manual_seed(1)
  options = {'r': 4, 'lora_alpha': 6, 'target_modules': _ALL} | options
  config = peft.LoraConfig(
    **(options | _KINDS[kind]), task_type='CAUSAL_LM', lora_dropout=0.0
  )
  model = peft.get_peft_model(load_torch(base), config)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if 'lora_' in name:
        noise = torch.randn_like(weight)
        if 'magnitude' in name:
          weight.mul_(1 + 0.2 * noise)
        else:
          weight.add_(0.2 * noise)
  return model


def _their_loss(model):
  tokens = torch.tensor(_TOKENS)
  logits = model(tokens).logits[:, :-1]
  return torch.nn.functional.cross_entropy(
    logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1)
  )


def _our_logits(base, variables):
  model = Transformer(read_config(base))
  return np.asarray(model.apply(variables, _TOKENS.astype(np.int32))[0])


def _our_loss(base, config):
  model = Transformer(read_config(base))
  tokens = jnp.asarray(_TOKENS, jnp.int32)

  def loss(lora, params):
    values = lora_lib.variables(params, lora, config)
    logits, _ = model.apply(values, tokens)
    total, weight, _ = cross_entropy_loss(
      logits[:, :-1], tokens[:, 1:], jnp.ones_like(tokens[:, 1:])
    )
    return total / weight

  return loss


def _as_tree(model, kind):
  """What PEFT's parameters (or gradients) are in our tree."""
  values = {}
  for name, weight in model.named_parameters():
    if 'lora_' in name:
      array = weight.grad if kind == 'grad' else weight
      values[name.replace('.default', '')] = array.detach().numpy()
  tree = {}
  for name, array in values.items():
    parts = name.split('.')
    layer, module, projection = parts[4:7]
    path = (
      f'layers_{layer}',
      {'self_attn': 'attn', 'mlp': 'mlp'}[module],
      projection.removesuffix('_proj'),
    )
    leaf = {'lora_A': 'lora_a', 'lora_B': 'lora_b'}.get(parts[7], 'magnitude')
    node = tree
    for key in path:
      node = node.setdefault(key, {})
    node[leaf] = array
  return tree


def _assert_close(ours, theirs, tolerance):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for path, leaf in jax.tree_util.tree_leaves_with_path(theirs):
    mine = ours
    for key in path:
      mine = mine[key.key]
    np.testing.assert_allclose(
      mine, leaf, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path)
    )


@pytest.mark.parametrize(
  'family, kind',
  [
    ('llama', 'lora'),
    ('llama', 'dora'),
    ('llama', 'rslora_some'),
    ('llama', 'ranks'),
    ('llama_biases_mqa', 'dora'),
    ('qwen2', 'lora'),
    ('gemma3', 'lora'),
  ],
)
def test_files_of_peft_and_back(bases, tmp_path, family, kind):
  base = bases(family)
  model = _theirs(base, kind)
  model.save_pretrained(str(tmp_path / 'theirs'))
  shape, params = read_config(base), load_params(base, read_config(base))
  config, lora = read_peft(str(tmp_path / 'theirs'), shape)
  with torch.no_grad():
    expected = model(torch.tensor(_TOKENS)).logits.numpy()
  plain = _our_logits(base, {'params': params})
  assert np.abs(plain - expected).max() > 0.5  # the adapters do something
  ours = _our_logits(base, lora_lib.variables(params, lora, config))
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)

  save_peft(str(tmp_path / 'ours'), config, shape, lora, base_model=base)
  again_config, again = read_peft(str(tmp_path / 'ours'), shape)
  assert again_config == config
  jax.tree.map(np.testing.assert_array_equal, again, lora)
  loaded = peft.PeftModel.from_pretrained(
    load_torch(base), str(tmp_path / 'ours')
  )
  with torch.no_grad():
    back = loaded(torch.tensor(_TOKENS)).logits.numpy()
  np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize('kind', ['lora', 'dora'])
def test_gradients_and_training_equal_peft(bases, tmp_path, kind):
  base = bases('untrained')
  model = _theirs(base, kind)
  model.save_pretrained(str(tmp_path))
  shape, params = read_config(base), load_params(base, read_config(base))
  config, lora = read_peft(str(tmp_path), shape)
  loss = _our_loss(base, config)
  value_and_grad = jax.jit(jax.value_and_grad(loss))

  their_loss = _their_loss(model)
  their_loss.backward()
  value, grads = value_and_grad(lora, params)
  np.testing.assert_allclose(value, their_loss.item(), rtol=0, atol=1e-5)
  theirs = _as_tree(model, 'grad')
  assert max(np.abs(x).max() for x in jax.tree.leaves(theirs)) > 1e-2
  _assert_close(grads, theirs, 1e-5)

  trained = [p for n, p in model.named_parameters() if 'lora_' in n]
  adam = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.1)
  tx = optax.adamw(3e-3, weight_decay=0.1)
  state = tx.init(lora)
  for _ in range(5):
    adam.zero_grad()
    their_loss = _their_loss(model)
    their_loss.backward()
    adam.step()
    value, grads = value_and_grad(lora, params)
    np.testing.assert_allclose(value, their_loss.item(), rtol=0, atol=1e-5)
    updates, state = tx.update(grads, state, lora)
    lora = optax.apply_updates(lora, updates)
  _assert_close(lora, _as_tree(model, 'value'), 1e-4)


@pytest.mark.parametrize('kind', ['lora', 'dora'])
def test_merged_weights_equal_peft(bases, tmp_path, kind):
  base = bases('qwen2')
  model = _theirs(base, kind)
  model.save_pretrained(str(tmp_path / 'adapters'))
  shape, params = read_config(base), load_params(base, read_config(base))
  config, lora = read_peft(str(tmp_path / 'adapters'), shape)
  model.merge_and_unload().save_pretrained(str(tmp_path / 'merged'))
  expected = load_params(str(tmp_path / 'merged'), shape)
  merged = lora_lib.merge(params, lora, config)
  _assert_close(merged, jax.tree.map(np.asarray, expected), 2e-6)


def test_fresh_dora_magnitudes_equal_peft(bases, tmp_path):
  base = bases('qwen2')
  options = {'r': 4, 'target_modules': _ALL, 'use_dora': True}
  fresh = peft.get_peft_model(load_torch(base), peft.LoraConfig(**options))
  fresh.save_pretrained(str(tmp_path))
  shape, params = read_config(base), load_params(base, read_config(base))
  config, theirs = read_peft(str(tmp_path), shape)
  ours = lora_lib.init_lora(config, shape, params, jax.random.key(0))
  assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)
  for place, adapter in lora_lib.items(ours):
    own = theirs
    for key in place:
      own = own[key]
    np.testing.assert_allclose(
      adapter['magnitude'], own['magnitude'], rtol=1e-6
    )
    # Both draw A uniformly in +-1 / sqrt(in), and B is zero.
    bound = adapter['lora_a'].shape[1] ** -0.5
    for a in (adapter['lora_a'], own['lora_a']):
      assert 0.8 * bound < np.abs(a).max() <= bound
      assert abs(np.std(a) / bound - 3**-0.5) < 0.1
    assert not np.any(adapter['lora_b']) and not np.any(own['lora_b'])


def test_phi3_is_refused(bases, tmp_path):
  model = _theirs(bases('phi3'), 'lora', target_modules=['qkv_proj'])
  model.save_pretrained(str(tmp_path))
  with pytest.raises(UserError, match='phi3.*qkv_proj'):
    read_peft(str(tmp_path), read_config(bases('phi3')))
