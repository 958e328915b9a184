"""The run `preview`: every row of a file with what becomes of it."""

import json
import pathlib

import pytest

from llm import config_args
from llm.command import main
from llm.errors import UserError
from llm.tasks import preview
from llm.tasks.run import check_name
from tests.fixtures import ROOT, TEMPLATE

MESSAGES = {
  'messages': [
    {'role': 'user', 'content': 'q'},
    {'role': 'assistant', 'content': 'a'},
  ]
}


@pytest.fixture
def show_rows(tmp_path):
  """show_rows('sft', 'limit=2', …) -> rows of the output."""

  def run(kind, *overrides, workdir=None, output='out.jsonl'):
    config = config_args.load_config(str(ROOT / 'configs' / 'preview.py'))
    out = tmp_path / output
    fields = [f'kind={kind}', f'output={out}', 'data.max_length=64']
    if not any(o.startswith(('tokenizer', 'model')) for o in overrides):
      fields.append('tokenizer.path=bytes')
    args = [f'--config.{field}' for field in [*fields, *overrides]]
    config_args.override_config(config, args)
    preview.run(config, workdir)
    return [json.loads(line) for line in out.read_text().splitlines()]

  return run


@pytest.fixture
def chat_tokenizer(tmp_path):
  """A folder with a tokenizer of bytes and a chat template, and no model."""
  from llm.text.tokenizer import load_tokenizer

  folder = tmp_path / 'tokenizer'
  folder.mkdir()
  load_tokenizer('bytes').save(str(folder))
  template = TEMPLATE.replace('{{ m.content }}', '{{ m.content }}|')
  (folder / 'chat_template.jinja').write_text(template + '{{ mood }}')
  return str(folder)


def test_each_row_is_written_and_bad_ones_do_not_stop_it(
  write_rows, show_rows, capsys, tmp_path
):
  path = write_rows(
    {'prompt': 'a', 'completion': 'b', 'id': 3},
    '{"prompt": ',
    '',
    '[1]',
    '{"prompt": "\\ud800", "completion": "b"}',
    {'prompt': 'a', 'completion': ''},
    '"é"',
    {'text': 'c'},
  )
  rows = show_rows('sft', f'data.path={path}', 'show=1', workdir=str(tmp_path))
  assert [row['row'] for row in rows] == [1, 2, 4, 5, 6, 7, 8]
  assert rows[0] == {
    'row': 1,
    'token_ids': [256, 97, 98, 257],
    'loss_weights': [0.0, 0.0, 1.0, 1.0],
    'text': '<|bos|>ab<|eos|>',
  }
  assert 'not valid JSON' in rows[1]['left_out']
  assert rows[2]['left_out'] == 'a JSON object is needed, not [1]'
  assert 'left_out' in rows[3] and 'empty' in rows[4]['left_out']
  assert rows[6]['text'] == '<|bos|>c<|eos|>'
  shown = capsys.readouterr().out
  assert 'row 1, 4 tokens, 2 learned\n<|bos|>a⟦b<|eos|>⟧' in shown
  assert 'row 2' in shown and 'not read: id' in shown
  result = json.loads((tmp_path / 'result.json').read_text())
  assert result['rows'] == 7 and result['left_out'] == {'refused': 5}
  assert result['unread'] == {'id': 1}


def test_a_folder_with_a_tokenizer_alone(write_rows, show_rows, chat_tokenizer):
  path = write_rows(MESSAGES | {'system': 'S'}, MESSAGES)
  rows = show_rows(
    'sft',
    f'data.path={path}',
    f'tokenizer.path={chat_tokenizer}',
    'data.chat_template_kwargs={"mood": "!"}',
    'data.system=T',
  )
  assert [row['text'] for row in rows] == [
    '<s>S|<u>q|<a>a|<|eos|>!',
    '<s>T|<u>q|<a>a|<|eos|>!',
  ]
  prompts = show_rows(
    'rl',
    f'data.path={write_rows({"messages": MESSAGES["messages"][:1]})}',
    f'tokenizer.path={chat_tokenizer}',
    'data.system=T',
  )
  assert prompts[0]['text'] == '<s>T|<u>q|<a>'
  assert 'loss_weights' not in prompts[0]


def test_a_model_folder_and_a_limit(write_rows, show_rows, model_folder):
  pair = {'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}
  path = write_rows(pair, pair | {'rejected': 'a'}, pair)
  rows = show_rows(
    'preference', f'data.path={path}', f'model.path={model_folder}', 'limit=2'
  )
  assert rows[0]['chosen']['text'] == '<|bos|>qa<|eos|>'
  assert rows[1] == {
    'row': 2,
    'left_out': 'chosen and rejected are the same tokens',
  }
  assert len(rows) == 2
  config = config_args.load_config(str(ROOT / 'configs' / 'preview.py'))
  config.model.path, config.data.path = model_folder, path
  assert preview.open_reader(config).max_length == 96
  with pytest.raises(UserError, match='data.max_length=97: the model takes'):
    show_rows(
      'sft', f'data.path={path}', f'model.path={model_folder}',
      'data.max_length=97',
    )  # fmt: skip


def test_several_files_are_named(tmp_path, show_rows):
  for name in 'ab':
    (tmp_path / f'{name}.json').write_text('[{"text": "c"}, {"text": "d"}]')
  rows = show_rows('sft', f'data.path={tmp_path}/?.json')
  assert [(pathlib.Path(r['file']).name, r['row']) for r in rows] == [
    ('a.json', 1),
    ('a.json', 2),
    ('b.json', 1),
    ('b.json', 2),
  ]


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (('kind=sfт',), "kind='sfт': use one of sft, preference"),
    (('limit=0',), 'limit=0: use 1 or more'),
    (('show=-1',), 'show=-1: use 0 or more'),
    (('data.path=none.jsonl',), "data.path='none.jsonl' does not exist"),
    (('data.max_length=1',), 'data.max_length=1: use 2 or more'),
    (('kind=rl', 'data.overlong=truncate'), 'prompts are not cut'),
    (('kind=kto', 'data.overlong=split'), "overlong='split': completions"),
    (('data.step_separator=x',), 'is of kind=reward'),
    (('data.learn=first',), "data.learn='first': use one of all, last"),
    (('data.system=S',), 'data.system: is written by a chat template'),
    (('tokenizer.path=none',), 'none'),
    (('output={rows}',), 'is data.path itself'),
    (('output={other}',), 'exists and is no preview'),
    (('output={folder}',), 'is a folder'),
  ],
)
def test_what_is_refused(write_rows, show_rows, tmp_path, overrides, message):
  names = {
    'rows': write_rows({'text': 'a'}),
    'other': write_rows({'text': 'b'}, name='other.jsonl'),
    'folder': tmp_path,
  }
  fields = [override.format(**names) for override in overrides]
  with pytest.raises(UserError, match=message):
    show_rows('sft', f'data.path={names["rows"]}', *fields)
  assert (tmp_path / 'other.jsonl').read_text() == '{"text": "b"}\n'
  assert not list(tmp_path.glob('*.partial'))


def test_a_preview_may_be_made_anew(write_rows, show_rows):
  path = write_rows({'text': 'a'})
  first = show_rows('sft', f'data.path={path}')
  assert show_rows('sft', f'data.path={path}') == first


def test_the_command(write_rows, capsys):
  check_name('preview')
  path = write_rows({'prompt': 'a', 'answer': 'b'})
  args = ['launch.py', '--config=preview', '--config.kind=rl']
  assert main([*args, f'--config.data.path={path}']) == 2
  assert 'neither model.path nor tokenizer.path' in capsys.readouterr().err
