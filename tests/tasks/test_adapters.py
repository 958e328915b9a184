"""Adapters of a PEFT folder: added to a model, or trained on."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import llm
from llm import config_args
from llm.checkpoints.hf.peft import read_peft, save_peft
from llm.checkpoints.source import open_checkpoint
from llm.decode.score import score
from llm.errors import UserError
from llm.models import lora as lora_lib
from llm.models.lora_config import LoraConfig
from llm.models.lora_fit import base_leaf
from llm.models.lora_places import match_targets, resolve
from llm.models.lora_tree import leaves
from llm.runs import report
from llm.tasks import run

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = LoraConfig(rank=2, alpha=6.0, targets=('q_proj', 'up_proj'))
FLAGS = {
  'lora.rank': 2,
  'lora.alpha': 6.0,
  'lora.targets': "('q_proj', 'up_proj')",
}


def draw_adapters(path, config, settings=SETTINGS, seed=0):
  """Writes adapters that are far from doing nothing."""
  rng = np.random.default_rng(seed)
  lora = {}
  for place in match_targets(settings, config):
    rows, columns = lora_lib.shape(config, place)
    adapter = {
      'lora_a': rng.normal(0.0, 0.5, (settings.rank, columns)),
      'lora_b': rng.normal(0.0, 0.5, (rows, settings.rank)),
    }
    if settings.dora:
      adapter['magnitude'] = rng.uniform(1.0, 2.0, rows)
    adapter = {k: x.astype(np.float32) for k, x in adapter.items()}
    lora_lib.insert(lora, place, adapter)
  save_peft(str(path), settings, config, lora)
  return lora


@pytest.fixture
def adapters(model_folder, tmp_path):
  path = tmp_path / 'adapters'
  draw_adapters(path, open_checkpoint(model_folder).config)
  return str(path)


def adapted_logprobs(model_folder, adapters, rows):
  """Of a forward pass through base and adapters side by side."""
  model, params, _ = llm.load(model_folder)
  values = lora_lib.variables(params, *read_peft(adapters, model.config)[::-1])
  forward = jax.jit(model.apply)  # one program, not one per operation
  out = []
  for tokens in rows:
    logits, _ = forward(values, jnp.asarray([tokens[:-1]]))
    logprobs = np.asarray(jax.nn.log_softmax(logits[0]))
    out.append([float(logprobs[i, t]) for i, t in enumerate(tokens[1:])])
  return out


def test_score_and_generate_add_the_adapters(
  model_folder, adapters, run_task, write_rows
):
  rows = [[256, 5, 9, 77], [256, 200, 1]]
  path = write_rows(*[{'token_ids': row} for row in rows])
  plain = run_task('score', f'input={path}')
  added = run_task(
    'score', f'input={path}', f'lora.path={adapters}', output='added.jsonl'
  )
  want = adapted_logprobs(model_folder, adapters, rows)
  for base, row, logprobs in zip(plain, added, want, strict=True):
    assert row['id'] != base['id']
    np.testing.assert_allclose(row['logprobs'][1:], logprobs, atol=1e-5)
    difference = np.subtract(row['logprobs'][1:], base['logprobs'][1:])
    assert np.abs(difference).max() > 0.1
  (row,) = run_task(
    'generate',
    'prompt=Hi',
    'sampling.max_new_tokens=4',
    'sampling.ignore_eos=true',
    f'lora.path={adapters}',
    output='text.jsonl',
  )
  model, params, _ = llm.load(model_folder, lora=adapters)
  whole = row['prompt_token_ids'] + row['token_ids']
  (scores,) = score(model, params, [whole])
  np.testing.assert_allclose(row['logprobs'], scores[-4:], atol=1e-4)


def test_folders_that_do_not_fit(model_folder, adapters, run_task, tmp_path):
  for flags, wanted in [
    (
      [f'model.path={adapters}'],
      'holds adapters alone: name them as lora.path',
    ),
    (['lora.path=/no/such'], 'lora.path: /no/such: no such folder'),
    ([f'lora.path={model_folder}'], 'lora.path: '),
  ]:
    with pytest.raises(UserError, match=wanted):
      run_task('generate', 'prompt=Hi', *flags)


@pytest.fixture
def train(model_folder, write_rows, tmp_path, monkeypatch):
  """train('name', field=value) runs `configs/lora.py` in a workdir."""
  monkeypatch.setattr(report, 'plot_loss', lambda *args: None)  # slow
  rows = [{'prompt': 'ab', 'completion': f'c{i}'} for i in range(8)]
  data = write_rows(*rows)

  def train(name, fields):
    config = config_args.load_config(str(ROOT / 'configs' / 'lora.py'))
    values = {
      'model.path': model_folder,
      'data.path': data,
      'data.max_length': 16,
      'data.packing': False,
      'data.shuffle': False,
      'train.batch_size': 2,
      'train.steps': 1,
      'train.eval_every': 0,
      'optim.warmup_steps': 0,
      'optim.lr': 1e-3,
      'optim.schedule': 'constant',
      **FLAGS,
    }
    values = {k: v for k, v in (values | fields).items() if v is not None}
    args = [f'--config.{k}={v}' for k, v in values.items()]
    config_args.override_config(config, args)
    run.run_task(config, str(tmp_path / name))
    lines = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]

  return train


@pytest.mark.slow
def test_training_goes_on_from_adapters(
  train, model_folder, adapters, tmp_path
):
  merged = tmp_path / 'merged'
  # A rate of 0 leaves them as they are.
  first = train(
    'still', {'lora.path': adapters, 'optim.lr': 0.0, 'export': merged}
  )
  model, params, _ = llm.load(model_folder, lora=adapters)
  exported = llm.load(str(merged))[1]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), exported, params
  )
  rows = [[256, *b'abc0', 257], [256, *b'abc1', 257]]
  logprobs = adapted_logprobs(model_folder, adapters, rows)
  want = -np.mean([row[2:] for row in logprobs])
  np.testing.assert_allclose(first[0]['loss'], want, rtol=1e-5)
  other = tmp_path / 'other'
  draw_adapters(other, model.config, seed=1)
  with pytest.raises(UserError, match='model.weights is'):
    train('still', {'lora.path': other, 'train.steps': 2, 'optim.lr': 0.0})
  # Scanned layers stack them; they are trained and written.
  out = tmp_path / 'out'
  scanned = train(
    'scan',
    {'lora.path': adapters, 'lora.export': out, 'model.scan_layers': True},
  )
  np.testing.assert_allclose(scanned[0]['loss'], first[0]['loss'], rtol=1e-5)
  before, after = (
    load_file(pathlib.Path(path) / 'adapter_model.safetensors')
    for path in (adapters, out)
  )
  assert before.keys() == after.keys()
  moved = [np.abs(after[k] - before[k]).max() for k in before]
  assert all(0 < x < 2e-3 for x in moved)  # one step of Adam


def test_other_settings_than_the_adapters_have(train, adapters, tmp_path):
  with pytest.raises(UserError) as caught:
    train(
      'other',
      {
        'lora.path': adapters,
        'lora.rank': 4,
        'lora.targets': "('q_proj',)",
        'lora.dora': True,
      },
    )
  assert (
    'its adapters have other settings than lora says; give --config.lora.rank=2'
    " --config.lora.dora=False --config.lora.targets=\"('q_proj', 'up_proj')\""
  ) in str(caught.value)
  with pytest.raises(UserError, match='lora.path=.*their own base; set model'):
    train(
      'fresh',
      {'lora.path': adapters, 'model.path': None, 'tokenizer.path': 'bytes'},
    )
  assert not (tmp_path / 'fresh').exists()


@pytest.mark.slow
@pytest.mark.parametrize('fresh', [False, True])
def test_a_merged_export_is_not_rounded(train, model_folder, tmp_path, fresh):
  """The base computes in bfloat16; its weights are exported in float32."""
  fields = {'dtype': 'bfloat16', 'export': tmp_path / 'out'}
  if fresh:
    fields |= {'model.path': None, 'tokenizer.path': 'bytes'}
    shape = {'embed_dim': 16, 'hidden_dim': 16, 'num_layers': 1, 'num_heads': 2}
    shape |= {'num_kv_heads': 1, 'head_dim': 8}
    fields |= {f'model.{k}': v for k, v in shape.items()}
  train('run', fields | {'lora.export': tmp_path / 'adapters'})
  out = load_file(tmp_path / 'out' / 'model.safetensors')
  assert {x.dtype.name for x in out.values()} == {'float32'}
  key = 'model.layers.0.mlp.up_proj.weight'
  part = 'base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight'
  found = load_file(tmp_path / 'adapters' / 'adapter_model.safetensors')
  delta = 3.0 * found[part.format('B')] @ found[part.format('A')]
  assert np.abs(delta).max() > 1e-4
  if fresh:  # what was trained on, and no rounding of the sum
    rest = out[key] - delta
    rounded = rest.astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_allclose(rest, rounded, atol=1e-6)
    return
  base = load_file(pathlib.Path(model_folder) / 'model.safetensors')
  np.testing.assert_allclose(out[key], base[key] + delta, atol=1e-6)
  name = 'model.embed_tokens.weight'
  np.testing.assert_array_equal(out[name], base[name])


_ALL = {
  'lora.targets': "('all-linear', 'embed_tokens')",
  'lora.exclude': "('k_proj', '.*/mlp/down')",
  'lora.layers': '(0,)',
  'lora.rank_pattern': "(('q_proj', 3),)",
  'lora.alpha_pattern': "(('layers_0/.*', 5.0), ('embed_tokens', 1.0))",
  'lora.modules_to_save': "('norm', 'lm_head')",
}


@pytest.mark.slow
def test_every_setting_is_trained_resumed_exported_and_read(
  train, model_folder, tmp_path
):
  merged, out = tmp_path / 'merged', tmp_path / 'out'
  fields = {**_ALL, 'export': merged, 'lora.export': out, 'optim.lr': 1e-2}
  whole = train('whole', {**fields, 'train.steps': 2})
  parts = {'lora.export': tmp_path / 'parts_out', 'export': None}
  train('parts', {**fields, **parts})
  rest = train('parts', {**fields, **parts, 'train.steps': 2})
  assert [row['loss'] for row in rest] == [row['loss'] for row in whole]
  name = 'adapter_model.safetensors'
  assert (tmp_path / 'parts_out' / name).read_bytes() == (
    out / name
  ).read_bytes()

  base, params, _ = llm.load(model_folder)
  settings, lora = read_peft(str(out), base.config)
  assert resolve(settings, base.config) == {
    ('layers_0', 'attn', 'q'): (3, 5.0),
    ('layers_0', 'attn', 'v'): (2, 5.0),
    ('layers_0', 'attn', 'o'): (2, 5.0),
    ('layers_0', 'mlp', 'gate'): (2, 5.0),
    ('layers_0', 'mlp', 'up'): (2, 5.0),
    ('embedder',): (2, 1.0),
  }
  for path, copy in leaves(lora):
    moved = np.abs(copy - base_leaf(params, path)).max()
    assert 1e-3 < moved < 3e-2, path  # two steps of Adam
  exported = llm.load(str(merged))[1]
  added = llm.load(model_folder, lora=str(out))[1]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), exported, added
  )
  # What was exported is where another run goes on.
  flags = {'lora.targets': None, **_ALL, 'lora.path': out, 'optim.lr': 0.0}
  still = train('still', {**flags, 'lora.export': tmp_path / 'still_out'})
  assert still[0]['loss'] < whole[0]['loss']
  again = tmp_path / 'still_out' / name
  assert again.read_bytes() == (out / name).read_bytes()


def test_places_that_the_adapters_do_not_have(train, model_folder, tmp_path):
  config = open_checkpoint(model_folder).config
  settings = LoraConfig(
    rank=2,
    alpha=6.0,
    targets=('q_proj', 'up_proj'),
    alpha_pattern=(('up_proj', 3.0),),
    modules_to_save=('final_norm',),
    tokens=(('embed_tokens', (5, 9)),),
  )
  path = tmp_path / 'adapters'
  params = llm.load(model_folder)[1]
  lora = lora_lib.init_lora(settings, config, params, jax.random.key(0))
  save_peft(str(path), settings, config, lora)
  with pytest.raises(UserError) as caught:
    train('other', {'lora.path': path, 'lora.rank_pattern': "(('q_proj', 4),)"})
  assert str(caught.value).endswith(
    'give --config.lora.rank_pattern="()" '
    '--config.lora.alpha_pattern="((\'up_proj\', 3.0),)" '
    '--config.lora.modules_to_save="(\'final_norm\',)" '
    '--config.lora.tokens="((\'embed_tokens\', (5, 9)),)"'
  )
  for field, value, message in [
    ('lora.layers', '(9,)', 'lora.layers: 9: the model has the layers 0 to'),
    ('lora.modules_to_save', "('norms',)", "'norms' names nothing in this"),
    ('lora.rank_pattern', "(('k_proj', 4),)", 'names nothing of the adapters'),
    ('lora.tokens', "(('embed_tokens', (99999,)),)", 'has no row 99999'),
    ('lora.alpha_pattern', "('q_proj', 4.0)", 'lora.alpha_pattern=.*use pairs'),
  ]:
    with pytest.raises(UserError, match=message):
      train('bad', {field: value})
  with pytest.raises(UserError, match='lora.layers=.*needs adapters'):
    off = {'lora.rank': 0, 'lora.alpha': 16.0, 'lora.targets': None}
    train('none', {**off, 'lora.layers': '(0,)'})
