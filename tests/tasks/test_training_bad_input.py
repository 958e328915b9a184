"""What a training run refuses, by name and before it reads the weights."""

import json
import math
import pathlib
import shutil

import pytest

from llm import config_args
from llm.errors import UserError
from llm.runs import exports, report
from llm.tasks import run, supervised

ROOT = pathlib.Path(__file__).parents[2]
GOOD = {'prompt': 'What is it?', 'completion': ' A row.'}
FRESH = {
  'model.embed_dim': 16,
  'model.hidden_dim': 16,
  'model.num_layers': 1,
  'model.num_heads': 2,
  'model.num_kv_heads': 1,
  'model.head_dim': 8,
  'tokenizer.path': 'bytes',
}


@pytest.fixture
def data(write_rows):
  return write_rows(*[GOOD] * 8, name='data.jsonl')


@pytest.fixture
def make_config(data):
  """make_config('sft', {'train.steps': 0}) -> a config, else good."""

  def make(kind='sft', changes=None):
    config = config_args.load_config(str(ROOT / 'configs' / f'{kind}.py'))
    values = {
      'data.path': data,
      'data.max_length': 32,
      'train.steps': 2,
      'train.batch_size': 2,
      'optim.warmup_steps': 0,
    }
    values |= {} if 'model.path' in (changes or {}) else FRESH
    for name, value in (values | (changes or {})).items():
      *path, last = name.split('.')
      node = config
      for part in path:
        node = node[part]
      node[last] = value
    return config

  return make


@pytest.fixture
def refuse(make_config, tmp_path, monkeypatch):
  """Runs the task; returns the message, given before any weight is read."""

  def fail(*args):
    raise AssertionError('the weights were read')

  monkeypatch.setattr(supervised, 'build_train_model', fail)

  def refuse(kind, changes, workdir=tmp_path / 'run'):
    config = make_config(kind, changes)
    with pytest.raises(UserError) as caught:
      run.run_task(config, workdir and str(workdir))
    return ' '.join(str(caught.value).split())

  return refuse


FIELDS = {
  'dtype': [('int8', "dtype='int8': use one of")],
  'seed': [(-1, 'seed=-1: use 0 or more')],
  'model.embed_dim': [(0, 'model.embed_dim=0: use 1 or more')],
  'model.num_kv_heads': [(3, 'model.num_kv_heads=3: use a divisor')],
  'model.head_dim': [(7, 'model.head_dim=7: use an even number')],
  'tokenizer.path': [(None, 'neither model.path nor tokenizer.path is set')],
  'data.path': [
    (None, 'data.path is not set'),
    ('/no/where.jsonl', "data.path='/no/where.jsonl' does not exist"),
  ],
  'data.max_length': [
    (1, 'data.max_length=1: use 2 or more'),
    (4096, 'data.max_length=4096: the model takes 2048 tokens'),
  ],
  'data.overlong': [('keep', "data.overlong='keep'")],
  'data.eval_fraction': [
    (1.0, 'data.eval_fraction=1.0: use 0.0 or more, below 1.0'),
    (0.99, 'data.eval_fraction=0.99: of 8 examples'),
  ],
  'data.eval_path': [('/no/x.jsonl', "data.eval_path='/no/x.jsonl' does not")],
  'data.seed': [(-1, 'data.seed=-1: use 0 or more')],
  'data.curriculum': [
    (((0.5, 64),), 'use a length of 2 to data.max_length=32'),
    (((16,),), 'data.curriculum: stage (16,): give (until, length)'),
    (((0.5, 16),), 'whose answers it would cut from their questions'),
  ],
  'train.steps': [(0, 'train.steps=0: use 1 or more')],
  'train.batch_size': [(0, 'train.batch_size=0: use 1 or more')],
  'train.microbatch_size': [
    (-1, 'train.microbatch_size=-1'),
    (3, 'train.microbatch_size=3: it must divide train.batch_size=2'),
  ],
  'train.log_every': [(0, 'train.log_every=0: use 1 or more')],
  'train.eval_every': [(-1, 'train.eval_every=-1')],
  'train.checkpoint_every': [(-1, 'train.checkpoint_every=-1')],
  'train.keep': [(0, 'train.keep=0: use 1 or more')],
  'train.best': [('loss', "train.best='loss': use")],
  'train.export': [
    ('first', "train.export='first': use 'last' or 'best'"),
  ],
  'train.max_bad_steps': [(0, 'train.max_bad_steps=0: use 1 or more')],
  'train.ema_decay': [(1.0, 'train.ema_decay=1.0: use a decay in [0, 1)')],
  'train.remat': [('some', "train.remat='some': use one of none, dots, full")],
  'optim.name': [('adam', "optim.name='adam': use one of adamw")],
  'optim.lr': [
    (-1.0, 'optim.lr=-1.0: use a number of at least 0'),
    (math.nan, 'optim.lr=nan'),
  ],
  'optim.schedule': [('step', "optim.schedule='step': use one of constant")],
  'optim.warmup_steps': [(3, 'optim.warmup_steps=3: use 0 to train.steps=2')],
  'optim.min_lr_ratio': [(2.0, 'optim.min_lr_ratio=2.0')],
  'optim.weight_decay': [(-0.1, 'optim.weight_decay=-0.1')],
  'optim.b1': [(1.0, 'optim.b1=1.0: use a decay in [0, 1)')],
  'optim.eps': [(0.0, 'optim.eps=0.0')],
  'optim.clip_norm': [(-1.0, 'optim.clip_norm=-1.0')],
  'optim.groups': [
    (((1, {}),), 'optim.groups: (1, {}): use'),
    ((('no_such', {'lr_factor': 0.1}),), "optim.groups: pattern 'no_such'"),
  ],
  'loss.name': [('mse', "loss.name='mse': use one of cross_entropy")],
  'loss.neftune_alpha': [(-1.0, 'loss.neftune_alpha=-1.0: use 0')],
  'lora.rank': [(-1, 'lora.rank=-1: use 0')],
  'mesh.data': [(0, 'mesh.data=0: use a number of devices')],
  'mesh.fsdp': [(64, 'mesh.fsdp=64')],
  'sample.max_new_tokens': [(0, 'max_new_tokens = 0')],
  'sample.temperature': [(-1.0, 'temperature = -1.0')],
  'sample.chat': [(True, 'sample.chat=True: the tokenizer has no chat templ')],
  'sample.prompts': [
    ((1,), 'sample.prompts: 1: use texts only'),
    (('a' * 2000,), 'tokens and sample.max_new_tokens=64 exceed the 2048'),
  ],
  'log.wandb.mode': [('off', "log.wandb.mode='off': must be one of")],
  'export': [('', "export='': name a folder")],
}


# Without which a group's fields would not be read at all.
NEEDED = {
  'log': {'log.wandb.project': 'p'},
  'sample': {'sample.prompts': ('a',)},
}


@pytest.mark.parametrize('field', FIELDS)
def test_wrong_values_are_refused_by_name(refuse, field):
  for value, wanted in FIELDS[field]:
    more = NEEDED.get(field.split('.')[0], {})
    assert wanted in refuse('sft', more | {field: value})


def test_fields_that_nothing_would_read(refuse):
  for field, value, wanted in [
    ('sample.chat', True, 'sample.chat=True needs texts to continue: set sa'),
    ('log.wandb.name', 'me', "log.wandb.name='me' needs log.wandb.project"),
    ('lora.alpha', 1.0, 'lora.alpha=1.0 needs adapters: set lora.rank above 0'),
    ('train.eval_first', True, 'train.eval_first=True needs rows to evaluate'),
    ('train.export', 'best', 'needs rows to evaluate: set data.eval_path or'),
    (
      'optim.decay_fraction',
      0.5,
      "=0.5 is of optim.schedule='wsd', or use 0",
    ),
    ('data.seed', 3, 'data.seed=3 needs an order to draw'),
    ('optim.eps', 1e-6, 'optim.eps=1e-06 is not read by this optim.name'),
    ('data.separator', '--', "data.separator='--': "),
  ]:
    more = {'data.shuffle': False, 'optim.name': 'sgd'}
    assert wanted in refuse('sft', more | {field: value})


def test_the_best_is_of_what_the_run_evaluates(refuse):
  changes = {'train.best': 'eval_reward_mean', 'data.eval_fraction': 0.5}
  message = refuse('sft', changes)
  assert "train.best='eval_reward_mean': sft evaluates eval_loss" in message


def test_wrong_values_of_adapters(refuse):
  for field, value, wanted in [
    ('lora.alpha', 0.0, 'lora.alpha=0.0: use a number above 0'),
    ('lora.dropout', 1.0, 'lora.dropout=1.0: use a rate in [0, 1)'),
    ('lora.targets', ('query',), "lora.targets: 'query' names nothing in this"),
  ]:
    assert wanted in refuse('lora', {field: value})


def test_a_run_needs_a_workdir(refuse):
  assert '--workdir=runs/NAME' in refuse('sft', {}, workdir=None)


def test_rows_are_refused_by_number(refuse, write_rows, tmp_path):
  chat = {'messages': [{'role': 'user', 'content': 'Only a question?'}]}
  for rows, wanted in [
    ([''], 'holds no rows'),
    ([GOOD, {'question': 'x'}], 'row 2: is of no known shape'),
    ([GOOD, '{"prompt": '], 'row 2: '),
    ([GOOD, GOOD, {'prompt': 'a', 'completion': ''}], 'row 3: '),
    ([GOOD, chat], 'row 2: '),
  ]:
    path = write_rows(*rows, name='bad.jsonl')
    message = refuse('sft', {'data.path': path})
    assert 'data.path' in message and 'bad.jsonl' in message
    assert wanted in message, message
    # Of the rows that are held out as well.
    message = refuse('sft', {'data.eval_path': path})
    assert 'data.eval_path' in message and wanted in message
  (tmp_path / 'empty.jsonl').write_bytes(b'')
  assert 'empty.jsonl holds no rows' in refuse(
    'sft', {'data.path': str(tmp_path / 'empty.jsonl')}
  )


@pytest.fixture
def copy(model_folder, tmp_path):
  """A model folder that a test may change."""
  return pathlib.Path(shutil.copytree(model_folder, tmp_path / 'model'))


def test_a_template_that_drops_the_answer(refuse, copy, write_rows):
  template = '{% for m in messages %}{% if m.role == "user" %}{{ m.content }}'
  template += '{% endif %}{% endfor %}'
  (copy / 'chat_template.jinja').write_text(template)
  chat = [
    {'role': 'user', 'content': 'a'},
    {'role': 'assistant', 'content': 'b'},
  ]
  path = write_rows({'messages': chat}, name='chat.jsonl')
  message = refuse('sft', {'model.path': str(copy), 'data.path': path})
  assert 'row 1: ' in message and 'template' in message


def test_a_model_that_does_not_fit(refuse, copy, write_rows):
  raw = json.loads((copy / 'config.json').read_text())
  small = raw | {'vocab_size': 100, 'bos_token_id': None, 'eos_token_id': None}
  (copy / 'generation_config.json').unlink()
  (copy / 'config.json').write_text(json.dumps(small))
  message = refuse('sft', {'model.path': str(copy)})
  assert 'tokenizer' in message and 'vocab_size is 100' in message
  (copy / 'config.json').write_text(json.dumps(raw))
  changes = {'model.path': str(copy), 'data.max_length': 97}
  assert 'data.max_length=97: the model takes 96' in refuse('sft', changes)
  changes = {'model.path': str(copy), 'model.embed_dim': 32}
  assert 'model.embed_dim=32: the model at model.path has 16' in refuse(
    'sft', changes
  )
  assert "model.path='/no' does not exist" in refuse(
    'sft', {'model.path': '/no'}
  )


def test_exports_are_refused_before_the_run(refuse, copy, tmp_path):
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'thesis.tex').write_text('x')
  model = {'model.path': str(copy)}
  for path, more, wanted in [
    ('file', {}, 'is a file; name a folder'),
    ('file/out', {}, 'file is not a folder'),
    ('full', {}, 'holds no earlier export (thesis.tex, …); name a new folder'),
    ('run', {}, 'is the workdir too'),
    ('model', model, 'is model.path too'),
    ('model', {}, 'holds another model, whose'),
  ]:
    path = str(tmp_path / path)
    assert wanted in refuse('sft', {'export': path} | more)
    if wanted != 'holds another model, whose':
      assert wanted in refuse('lora', {'lora.export': path} | more)
  both = {'export': str(tmp_path / 'new'), 'lora.export': str(tmp_path / 'new')}
  assert 'is export too' in refuse('lora', both)
  assert not (tmp_path / 'new').exists()
  assert (tmp_path / 'full' / 'thesis.tex').read_text() == 'x'


def test_a_folder_that_may_not_be_written(refuse, tmp_path, monkeypatch):
  # Whoever runs the tests may write everywhere as root.
  monkeypatch.setattr(exports.os, 'access', lambda path, mode: False)
  path = str(tmp_path / 'a' / 'b')
  message = refuse('sft', {'export': path})
  assert f'{tmp_path} may not be written; name another folder' in message


def test_the_workdir_of_another_run(
  make_config, copy, write_rows, tmp_path, monkeypatch
):
  monkeypatch.setattr(report, 'plot_loss', lambda *args: None)  # slow
  workdir = tmp_path / 'run'
  model = {'model.path': str(copy)}
  run.run_task(make_config('sft', model), str(workdir))
  turned = pathlib.Path(shutil.copytree(copy, tmp_path / 'turned'))
  raw = json.loads((turned / 'config.json').read_text())
  raw['rope_theta'] = 500.0
  raw.pop('rope_parameters', None)
  (turned / 'config.json').write_text(json.dumps(raw))
  before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
  other = write_rows(*[GOOD | {'prompt': 'Another?'}] * 8, name='other.jsonl')
  for changes, wanted in [
    ({'model.path': str(turned)}, 'model.rope.theta is 10000.0 there and 500'),
    ({'model.path': None} | FRESH, 'model.hidden_dim is 32 there and 16 here'),
    ({'optim.lr': 1.0}, 'config.optim.lr is 2e-05 there and 1.0 here'),
    ({'data.path': other}, 'examples is '),
    ({'data.seed': 1}, 'config.data.seed is 0 there and 1 here'),
    ({'seed': 1}, 'config.seed is 0 there and 1 here'),
    ({'lora.rank': 2}, 'config.lora.rank is 0 there and 2 here'),
    ({'model.scan_layers': True}, 'model.scan_layers is False there'),
    ({'train.steps': 1}, 'train.steps=1: the run in'),
  ]:
    with pytest.raises(UserError) as caught:
      run.run_task(make_config('sft', model | changes), str(workdir))
    message = str(caught.value)
    assert wanted in message and str(workdir) in message
    assert 'another workdir' in message
  after = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
  assert after == before
