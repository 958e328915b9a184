"""The quickstart in miniature: its files, its skips, its marks."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from llm import config_args
import llm.api
from llm.data.worlds import quickstart as quickstart_data
from llm.data.worlds import world as world_lib
from llm.errors import UserError
from llm.evals import exam
from llm.runs import outputs
from llm.tasks import quickstart, quickstart_checks
from llm.text import chat, chat_mask

ROOT = pathlib.Path(__file__).parents[2]
TRAINED = ('pretrain', 'sft', 'preference', 'rl')
STAGES = ('corpus', 'tokenizer', *TRAINED, 'model', 'exam')
MODELS = ('untrained', *TRAINED)
STEPS = 12


def _config(*overrides):
  config = config_args.load_config(f'{ROOT}/configs/quickstart.py:smoke')
  tiny = (
    'world.size=3',
    'world.max_operand=2',
    'world.sum_exposures=4',
    'tokenizer.vocab_size=330',
    'data.max_length=256',
    'model.embed_dim=32',
    'model.hidden_dim=32',
    'model.num_layers=1',
    'model.num_heads=1',
    f'pretrain.steps={STEPS}',
    'pretrain.batch_size=2',
    'pretrain.checkpoint_every=2',
    'pretrain.optim.warmup_steps=2',
    'sft.steps=4',
    'sft.batch_size=2',
    'sft.optim.warmup_steps=1',
    'preference.steps=3',
    'preference.batch_size=2',
    'preference.optim.lr=0.001',
    'preference.optim.warmup_steps=1',
    'rl.steps=3',
    'rl.batch_size=2',
    'rl.optim.lr=0.001',
    'rl.optim.warmup_steps=1',
    'rl.rollout.group_size=4',
    'rl.loss.entropy_coef=0.1',  # hardly a sum is right yet: something to learn
    'exam.batch_size=32',
    'exam.max_new_tokens=4',
    'exam.text_tokens=4',
  )
  args = [f'--config.{item}' for item in (*tiny, *overrides)]
  config_args.override_config(config, args)
  return config


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _params(folder):
  _, params, _ = llm.api.load(str(folder))
  return jax.tree.leaves(params)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('quickstart')
  quickstart.run(_config(), str(folder))
  return folder


@pytest.fixture
def no_exam(monkeypatch):
  """Leaves out the slow last stage."""
  done = {'questions': 0, 'groups': {}, 'texts': [], 'result': {}}
  monkeypatch.setattr(exam, 'hold_exam', lambda *args, **kwargs: done)
  monkeypatch.setattr(exam, 'print_report', lambda stage: None)


def test_every_stage_leaves_its_folder(workdir):
  for stage in STAGES:
    assert (workdir / stage / 'stage.json').is_file()
  assert not list(workdir.glob('.*'))  # nothing half-made


def test_metrics_have_one_row_per_step(workdir):
  rows = _rows(workdir / 'pretrain' / 'metrics.jsonl')
  assert [row['step'] for row in rows] == list(range(1, STEPS + 1))
  fields = {'step', 'loss', 'tokens', 'tokens_per_s', 'lr', 'grad_norm'}
  assert all(fields <= set(row) for row in rows)
  assert rows[-1]['loss'] < rows[0]['loss']
  # A fresh model gives every token nearly the same probability.
  assert abs(rows[0]['loss'] - np.log(330)) < 0.1
  # Linear warmup over 2 steps to 0.01, then a line that reaches 0 at the end.
  expected = [0.005, 0.01, *(0.01 * (1 - i / 10) for i in range(10))]
  np.testing.assert_allclose([row['lr'] for row in rows], expected, rtol=1e-5)
  tuning = _rows(workdir / 'sft' / 'metrics.jsonl')
  assert [row['step'] for row in tuning] == [1, 2, 3, 4]


def test_the_model_is_that_of_the_last_stage(workdir):
  weights = [
    (workdir / kind / 'model' / 'model.safetensors').read_bytes()
    for kind in TRAINED
  ]
  assert len(set(weights)) == len(TRAINED)
  assert (workdir / 'model' / 'model.safetensors').read_bytes() == weights[-1]
  model, _, tok = llm.api.load(str(workdir / 'model'))
  assert model.config.eos_ids == tok.eos_ids == (2,)
  messages = [{'role': 'user', 'content': 'What is 1 + 1?'}]
  assert chat.encode(tok, messages) == tok.encode('Question: What is 1 + 1?')


def test_each_training_begins_with_the_model_before(workdir):
  # With a rate of 0 a stage would export what it was given.
  limits = {'sft': 4 * 0.01, 'preference': 3 * 0.003, 'rl': 3 * 0.003}
  for kind, before in zip(TRAINED[1:], TRAINED):
    moved = max(
      float(abs(a - b).max())
      for a, b in zip(
        _params(workdir / kind / 'model'), _params(workdir / before / 'model')
      )
    )
    assert 0 < moved < limits[kind]  # some steps of at most about the rate
  config = quickstart_checks.training_config(_config(), 'sft')
  assert (config.task, config.train.steps, config.optim.lr) == ('sft', 4, 0.003)


def test_only_answers_are_learned_in_tuning(workdir):
  _, _, tok = llm.api.load(str(workdir / 'model'))
  dialogue = _rows(workdir / 'corpus' / 'dialogues.jsonl')[0]['messages']
  ids, mask = chat_mask.encode_with_mask(tok, dialogue)
  said, part = [], []
  for id, learned in zip(ids, mask):
    if learned:
      part.append(id)
    elif part:
      said, part = [*said, part], []
  said.append(part)
  assert all(part[-1] == tok.eos_ids[0] for part in said)
  answers = [m['content'] for m in dialogue if m['role'] == 'assistant']
  assert [tok.decode(part).strip() for part in said] == answers


def test_the_texts_have_quizzes_if_asked(workdir, tmp_path):
  dialogues = _rows(workdir / 'corpus' / 'dialogues.jsonl')
  texts = [row['text'] for row in _rows(workdir / 'corpus' / 'texts.jsonl')]
  question, answer = (m['content'] for m in dialogues[0]['messages'][:2])
  assert sum(text.startswith(f'{question} {answer}.') for text in texts)
  world = world_lib.build_world(0, 3, max_operand=2, sum_exposures=4)
  quickstart_data.write_corpus(tmp_path, world, quizzes=False)
  fewer = [row['text'] for row in _rows(tmp_path / 'texts.jsonl')]
  assert fewer == texts[: len(texts) - len(dialogues)]
  assert not any('?' in text for text in fewer)


def test_marks_follow_the_ledger(workdir):
  world = world_lib.build_world(0, 3, max_operand=2, sum_exposures=4)
  marks = _rows(workdir / 'exam' / 'marks.jsonl')
  answers = _rows(workdir / 'exam' / 'answers.jsonl')
  assert len(marks) == len(world.facts) == 3 * 6 + 9
  for mark, answer, fact in zip(marks, answers, world.facts):
    assert mark['truth'] == fact.object
    assert mark['question'] in answer['prompt']
    assert list(mark['answers']) == list(MODELS)
    assert mark['answers']['rl'] == answer['text'].strip()
    for name in MODELS:
      said = mark['answers'][name].rstrip('.')
      assert mark['right'][name] == (said == fact.object)
    assert {'prefill_s', 'decode_s'} <= set(answer['timing'])
  result = json.loads((workdir / 'result.json').read_text())
  written = [m for m in marks if m['fact']['stated']]
  sums = [m['right'] for m in written if m['fact']['relation'] == 'sum']
  for name in MODELS:
    assert result[f'sums_{name}'] == np.mean([right[name] for right in sums])
  assert result['rl_reward_mean'] >= 0 < result['preference_loss']
  assert min(result['prefill_tokens_per_s'], result['decode_tokens_per_s']) > 0


def test_groups_follow_exposure():
  def group(stated, asked, relation='town'):
    return exam.group_of(world_lib.Fact('A', relation, 'B', stated, asked))

  assert group(64, 16) == 'popular people, asked in training'
  assert group(16, 0) == 'popular people, only read about'
  assert group(8, 2) == 'rare people'
  assert group(0, 0) == 'people: never written'
  assert group(24, 24, 'sum') == 'sums: written'
  assert group(0, 0, 'sum') == 'sums: never written'


def test_a_second_run_repeats_nothing(workdir, capsys):
  before = {s: (workdir / s).stat().st_mtime_ns for s in STAGES}
  quickstart.run(_config(), str(workdir))
  assert {s: (workdir / s).stat().st_mtime_ns for s in STAGES} == before
  assert capsys.readouterr().out.count('(done before)') == len(STAGES)


@pytest.mark.parametrize('kind', ('pretrain', 'rl'))
def test_a_killed_training_goes_on_and_ends_the_same(
  kind, workdir, tmp_path, monkeypatch, capsys, no_exam
):
  append = outputs.append_metrics

  def dies(folder, row):
    append(folder, row)
    if folder.endswith(kind) and row['step'] == total - 1:
      raise KeyboardInterrupt

  def train(fields, root, name, folder):  # the other stages: as they were
    if name == kind:
      return build(fields, root, name, folder)
    shutil.copytree(workdir / name / 'model', folder / 'model')
    return json.loads((workdir / name / 'stage.json').read_text())['summary']

  total, build = {'pretrain': STEPS, 'rl': 3}[kind], quickstart._train
  config = _config('rl.checkpoint_every=1')
  record = tmp_path / kind / 'stage.json'
  monkeypatch.setattr(quickstart, '_train', train)
  monkeypatch.setattr(outputs, 'append_metrics', dies)
  with pytest.raises(KeyboardInterrupt):
    quickstart.run(config, str(tmp_path))
  assert 'summary' not in json.loads(record.read_text())
  monkeypatch.setattr(outputs, 'append_metrics', append)
  quickstart.run(config, str(tmp_path))
  assert 'resumes from the checkpoint of step' in capsys.readouterr().err
  assert 'summary' in json.loads(record.read_text())
  rows = _rows(tmp_path / kind / 'metrics.jsonl')
  assert [row['step'] for row in rows] == list(range(1, total + 1))
  for ours, unbroken in zip(
    _params(tmp_path / kind / 'model'),
    _params(workdir / kind / 'model'),
    strict=True,
  ):
    np.testing.assert_array_equal(ours, unbroken)


@pytest.fixture
def no_training(workdir, monkeypatch):
  """Takes what is trained from `workdir`; lists the rates asked for."""
  rates = []

  def train(fields, _, kind, folder):
    rates.append((kind, fields.optim.lr))
    shutil.copytree(workdir / kind / 'model', folder / 'model')
    return json.loads((workdir / kind / 'stage.json').read_text())['summary']

  monkeypatch.setattr(quickstart, '_train', train)
  return rates


@pytest.mark.parametrize(
  ('override', 'skipped'),
  (
    ('pretrain.optim.lr=0.02', {'corpus', 'tokenizer'}),
    ('sft.optim.lr=0.02', {'corpus', 'tokenizer', 'pretrain'}),
    ('rl.optim.lr=0.02', {'corpus', 'tokenizer', *TRAINED[:-1]}),
  ),
)
def test_other_settings_repeat_only_what_depends_on_them(
  override, skipped, tmp_path, capsys, no_training, no_exam
):
  quickstart.run(_config(), str(tmp_path))
  assert no_training == [
    ('pretrain', 0.01), ('sft', 0.003), ('preference', 0.001), ('rl', 0.001)
  ]  # fmt: skip
  capsys.readouterr()
  quickstart.run(_config(override), str(tmp_path))
  lines = capsys.readouterr().out.splitlines()
  done = {line.split()[0] for line in lines if '(done before)' in line}
  assert done == skipped
  assert 0.02 in dict(no_training).values()


def test_without_a_workdir_it_takes_its_own(
  tmp_path, monkeypatch, no_training, no_exam
):
  monkeypatch.chdir(tmp_path)
  quickstart.run(_config(), None)
  folder = tmp_path / 'runs' / 'quickstart'
  config = json.loads((folder / 'config.json').read_text())
  assert config['pretrain']['steps'] == STEPS
  assert (folder / 'model' / 'config.json').is_file()


@pytest.mark.parametrize(
  ('override', 'message'),
  (
    ('world.size=1', 'world.size=1'),
    ('world.sum_exposures=0', 'world.sum_exposures=0'),
    ('tokenizer.vocab_size=200', 'tokenizer.vocab_size=200'),
    ('sft.optim.name=sgdd', "sft: optim.name='sgdd'"),
    ('pretrain.optim.lr=-1.0', 'pretrain: optim.lr=-1.0'),
    ('pretrain.batch_size=0', 'pretrain.batch_size=0'),
    ('data.max_length=300', 'data.max_length=300'),
    ('sft.steps=0', 'sft.steps=0'),
    ('exam.batch_size=0', 'exam.batch_size=0'),
    ('preference.loss.name=dpp', "preference: loss.name='dpp'"),
    ('preference.loss.alpha=1.0', 'preference: loss.alpha=1.0'),
    ('rl.loss.name=grop', "rl: loss.name='grop'"),
    ('preference.loss.beta=-1.0', 'preference: loss.beta=-1.0'),
    ('rl.rollout.group_size=0', 'rl: rollout.group_size=0'),
    ('rl.rollout.group_size=1', 'rl: rollout.group_size=1: grpo compares'),
    ('rl.rollout.minibatches=3', 'rl: rollout.minibatches=3: use a divisor of'),
    ('rl.rollout.epochs=2', 'rl: steps=3: use a multiple of 2'),
    ('rl.rollout.max_new_tokens=256', 'rl: rollout.max_new_tokens=256: use l'),
    ('model.num_kv_heads=3', 'model.num_kv_heads=3'),
    ('model.head_dim=7', 'model.head_dim=7'),
    ('seed=-1', 'seed=-1'),
  ),
)
def test_bad_settings_are_refused_by_name(tmp_path, override, message):
  with pytest.raises(UserError, match=message):
    quickstart.run(_config(override), str(tmp_path))
