"""What a distillation refuses, by name and before it reads the weights."""

import json
import shutil

import pytest

from llm import config_args
from llm.errors import UserError
from llm.tasks import distill, run
from tests.fixtures import ROOT, save_model

GOOD = {'prompt': 'What is it?', 'completion': 'A row.'}
FIELDS = {
  'loss.beta': [
    (-0.1, 'loss.beta=-0.1: use 0 (forward KL) to 1 (reverse KL)'),
    (float('nan'), 'loss.beta=nan'),
  ],
  'loss.temperature': [(0.0, 'loss.temperature=0.0: use a number of 0.0001')],
  'rollout.lmbda': [
    (1.5, 'rollout.lmbda=1.5: use 0 (rows only) to 1'),
    (float('nan'), 'rollout.lmbda=nan'),
  ],
  'rollout.temperature': [
    (-1.0, 'rollout.temperature=-1.0: use 0 (greedy)'),
  ],
  'rollout.max_new_tokens': [
    (0, 'rollout.max_new_tokens=0: use 1 or more'),
    (90, 'rollout.max_new_tokens=90: with the longest prompt of 12 tokens'),
  ],
  'teacher.path': [
    (None, 'teacher.path is not set: give the folder of a larger model'),
    ('/no/such', "teacher.path='/no/such': does not exist: give a Hugging"),
  ],
  'data.path': [(None, 'data.path is not set')],
  'data.packing': [(True, 'data.packing=True: prompts are answered one in')],
  'data.curriculum': [(((0.5, 8),), 'is of pretraining; leave it unset')],
  'data.max_length': [(97, 'data.max_length=97: the teacher takes 96 tokens')],
  'train.microbatch_size': [(3, 'train.microbatch_size=3')],
  'optim.lr': [(-1.0, 'optim.lr=-1.0')],
}


@pytest.fixture
def refuse(model_folder, teacher_folder, write_rows, tmp_path, monkeypatch):
  """Runs the task; returns the message, given before any weight is read."""

  def fail(*args):
    raise AssertionError('the weights were read')

  monkeypatch.setattr(distill, 'build_train_model', fail)
  path = write_rows(*[GOOD] * 4, name='good.jsonl')

  def refuse(changes):
    config = config_args.load_config(str(ROOT / 'configs' / 'distill.py'))
    fields = {
      'model.path': model_folder,
      'teacher.path': teacher_folder,
      'data.path': path,
      'data.max_length': 32,
      'train.steps': 2,
      'train.batch_size': 2,
      'optim.warmup_steps': 0,
      'rollout.max_new_tokens': 8,
    }
    for name, value in (fields | changes).items():
      *groups, last = name.split('.')
      node = config
      for group in groups:
        node = node[group]
      node[last] = value
    with pytest.raises(UserError) as caught:
      run.run_task(config, str(tmp_path / 'run'))
    return ' '.join(str(caught.value).split())

  return refuse


@pytest.mark.parametrize('field', FIELDS)
def test_wrong_values_are_refused_by_name(refuse, field):
  for value, wanted in FIELDS[field]:
    assert wanted in refuse({field: value})


def test_teachers_that_do_not_fit_are_refused(refuse, tmp_path):
  small = save_model(tmp_path, vocab_size=260, max_length=16)
  message = refuse({'teacher.path': small})
  assert 'data.max_length=32: the teacher takes 16 tokens' in message
  path = tmp_path / 'tokenizer.json'
  raw = json.loads(path.read_text(encoding='utf-8'))
  raw['model']['vocab'] |= {'a': 98, 'b': 97}
  path.write_text(json.dumps(raw), encoding='utf-8')
  message = refuse({'teacher.path': small})
  assert f"teacher.path='{small}': has another vocabulary" in message
  assert "id 97 is b'b' and the student's is b'a'" in message


def test_a_reward_model_is_no_teacher(refuse, tmp_path, teacher_folder):
  folder = tmp_path / 'scores'
  shutil.copytree(teacher_folder, folder)
  path = folder / 'config.json'
  raw = json.loads(path.read_text(encoding='utf-8'))
  raw['architectures'] = ['LlamaForSequenceClassification']
  path.write_text(json.dumps(raw), encoding='utf-8')
  message = refuse({'teacher.path': str(folder)})
  assert message == (
    f"teacher.path='{folder}': holds a LlamaForSequenceClassification, which "
    'scores texts and writes none: give a language model'
  )


def test_an_export_over_the_teacher_is_refused(refuse, teacher_folder):
  message = refuse({'export': teacher_folder})
  assert 'is teacher.path too; name a folder of its own' in message


def test_rows_that_do_not_fit_are_refused(refuse, write_rows):
  texts = write_rows({'text': 'a text'}, name='texts.jsonl')
  prompts = write_rows({'prompt': 'x'}, {'prompt': 'y'}, name='prompts.jsonl')
  mixed = write_rows(GOOD, {'prompt': 'x'}, name='mixed.jsonl')
  for changes, wanted in [
    (
      {'data.path': texts},
      'texts have no prompt to complete; use rollout.lmbda',
    ),
    (
      {'data.path': prompts},
      'has prompts without completions, which rollout.lmbda',
    ),
    (
      {'data.path': prompts, 'rollout.lmbda': 1.0, 'data.eval_fraction': 0.5},
      'data.eval_fraction=0.5: ',
    ),
    (
      {'data.path': prompts, 'rollout.lmbda': 1.0, 'data.eval_path': prompts},
      'row 1: is of no known shape',
    ),
    (
      {
        'rollout.lmbda': 0.0,
        'rollout.max_new_tokens': 128,
        'rollout.temperature': 0.5,
      },
      'rollout.temperature=0.5: with rollout.lmbda=0 and without rollout.seq',
    ),
    ({'data.path': mixed}, 'row 2: is of no known shape'),
    (
      {'rollout.lmbda': 1.0, 'rollout.seq_kd': True},
      'rollout.seq_kd=True: with rollout.lmbda=1 the student writes all',
    ),
  ]:
    assert wanted in refuse(changes), changes
