"""The quickstart in miniature: its files, its skips, its marks."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from llm import config_args
import llm.api
from llm.data.worlds import world as world_lib
from llm.errors import UserError
from llm.tasks import exam, quickstart
from llm.tasks import run as run_lib
from llm.text import chat

ROOT = pathlib.Path(__file__).parents[2]
STAGES = ('corpus', 'tokenizer', 'train', 'model', 'exam')
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
    f'train.steps={STEPS}',
    'train.batch_size=4',
    'optim.warmup_steps=2',
    'exam.batch_size=32',
    'exam.max_new_tokens=4',
    'exam.text_tokens=4',
  )
  args = [f'--config.{item}' for item in (*tiny, *overrides)]
  config_args.override_config(config, args)
  return config


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _params(workdir):
  with np.load(workdir / 'train' / 'params.npz') as arrays:
    return dict(arrays)


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
  rows = _rows(workdir / 'metrics.jsonl')
  assert [row['step'] for row in rows] == list(range(1, STEPS + 1))
  fields = {'step', 'loss', 'tokens', 'tokens_per_s', 'lr', 'grad_norm'}
  assert all(fields <= set(row) for row in rows)
  assert rows[-1]['loss'] < rows[0]['loss']
  # A fresh model gives every token nearly the same probability.
  assert abs(rows[0]['loss'] - np.log(330)) < 0.1
  # Linear warmup over 2 steps to 0.01, then a line that reaches 0 at the end.
  expected = [0.005, 0.01, *(0.01 * (1 - i / 10) for i in range(10))]
  np.testing.assert_allclose([row['lr'] for row in rows], expected, rtol=1e-5)


def test_exported_folder_holds_what_was_trained(workdir):
  model, params, tok = llm.api.load(str(workdir / 'model'))
  flat = quickstart._flatten(params)
  trained = _params(workdir)
  assert set(flat) == set(trained)
  for name, value in trained.items():
    np.testing.assert_array_equal(flat[name], value)
  assert model.config.eos_ids == tok.eos_ids == (2,)
  messages = [{'role': 'user', 'content': 'What is 1 + 1?'}]
  assert chat.encode(tok, messages) == tok.encode(
    'Question: What is 1 + 1? Answer:'
  )


def test_dialogues_are_encoded_as_in_a_chat(workdir):
  _, _, tok = llm.api.load(str(workdir / 'model'))
  documents = _rows(workdir / 'corpus' / 'documents.jsonl')
  dialogue = next(row for row in documents if 'messages' in row)
  ids = quickstart._encode(tok, dialogue)
  assert ids[0] == tok.bos_id and ids[-1] == tok.eos_ids[0]
  prompt = chat.encode(tok, dialogue['messages'][:1])
  assert ids[: len(prompt)] == prompt
  text = next(row for row in documents if 'text' in row)
  ids = quickstart._encode(tok, text)
  assert tok.decode(ids) == text['text']
  assert (ids[0], ids[-1]) == (1, 2)


def test_marks_follow_the_ledger(workdir):
  world = world_lib.build_world(0, 3, max_operand=2, sum_exposures=4)
  marks = _rows(workdir / 'exam' / 'marks.jsonl')
  answers = _rows(workdir / 'exam' / 'answers.jsonl')
  assert len(marks) == len(world.facts) == 3 * 6 + 9
  for mark, answer, fact in zip(marks, answers, world.facts):
    assert mark['truth'] == fact.object
    assert mark['question'] in answer['prompt']
    assert mark['answer'] == answer['text'].strip()
    assert mark['right'] == (mark['answer'].rstrip('.') == fact.object)
    assert {'prefill_s', 'decode_s'} <= set(answer['timing'])
  result = json.loads((workdir / 'result.json').read_text())
  written = [m for m in marks if m['fact']['stated']]
  sums = [m['right'] for m in written if m['fact']['relation'] == 'sum']
  assert result['sums_right'] == np.mean(sums)
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


def test_a_killed_training_starts_again_and_ends_the_same(
  workdir, tmp_path, monkeypatch, no_exam
):
  append = run_lib.append_metrics

  def dies(folder, row):
    append(folder, row)
    if row['step'] == 3:
      raise KeyboardInterrupt

  monkeypatch.setattr(run_lib, 'append_metrics', dies)
  with pytest.raises(KeyboardInterrupt):
    quickstart.run(_config(), str(tmp_path))
  assert not (tmp_path / 'train').exists()
  monkeypatch.setattr(run_lib, 'append_metrics', append)
  quickstart.run(_config(), str(tmp_path))
  assert len(_rows(tmp_path / 'metrics.jsonl')) == STEPS
  expected = _params(workdir)
  for name, value in _params(tmp_path).items():
    np.testing.assert_array_equal(value, expected[name])


@pytest.fixture
def no_training(workdir, monkeypatch):
  """Takes the trained parameters from `workdir`; lists the rates asked for."""
  rates = []

  def train(folder, config, *_):
    rates.append(config.optim.lr)
    shutil.copy(workdir / 'train' / 'params.npz', folder)
    return json.loads((workdir / 'train' / 'stage.json').read_text())['summary']

  monkeypatch.setattr(quickstart, '_train', train)
  return rates


def test_other_settings_repeat_only_what_depends_on_them(
  tmp_path, capsys, no_training, no_exam
):
  quickstart.run(_config(), str(tmp_path))
  capsys.readouterr()
  quickstart.run(_config('optim.lr=0.02'), str(tmp_path))
  lines = capsys.readouterr().out.splitlines()
  skipped = {line.split()[0] for line in lines if '(done before)' in line}
  assert skipped == {'corpus', 'tokenizer'}
  assert no_training == [0.01, 0.02]


def test_without_a_workdir_it_takes_its_own(
  tmp_path, monkeypatch, no_training, no_exam
):
  monkeypatch.chdir(tmp_path)
  quickstart.run(_config(), None)
  folder = tmp_path / 'runs' / 'quickstart'
  config = json.loads((folder / 'config.json').read_text())
  assert config['train']['steps'] == STEPS
  assert (folder / 'model' / 'config.json').is_file()


@pytest.mark.parametrize(
  ('override', 'message'),
  (
    ('world.size=1', 'world.size=1'),
    ('tokenizer.vocab_size=200', 'tokenizer.vocab_size=200'),
    ('optim.name=sgdd', "optim.name='sgdd'"),
    ('train.batch_size=10000', 'train.batch_size=10000'),
    ('data.max_length=8', 'data.max_length=8'),
    ('train.steps=0', 'train.steps=0'),
    ('exam.batch_size=0', 'exam.batch_size=0'),
    ('model.num_kv_heads=3', 'model.num_kv_heads=3'),
    ('model.head_dim=7', 'model.head_dim=7'),
    ('seed=-1', 'seed=-1'),
  ),
)
def test_bad_settings_are_refused_by_name(tmp_path, override, message):
  with pytest.raises(UserError, match=message):
    quickstart.run(_config(override), str(tmp_path))


def test_loss_of_a_packed_row_is_that_of_its_documents(workdir):
  # Packing with segments and positions must not change what is learned.
  model, params, tok = llm.api.load(str(workdir / 'model'))
  loss_fn = jax.jit(quickstart._make_loss(model.config))
  documents = [
    tok.encode(text) for text in ('1 + 1 = 2.', 'What is 2?', '0 makes 0')
  ]
  pack = quickstart.packing.pack_documents
  packed = loss_fn(params, {}, pack(documents, 64), None)
  single = [
    loss_fn(params, {}, pack([document], 64), None)
    for document in documents
  ]
  np.testing.assert_allclose(packed[0], sum(s[0] for s in single), rtol=1e-5)
  assert float(packed[1]) == sum(len(d) - 1 for d in documents)
