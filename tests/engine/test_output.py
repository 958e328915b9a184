"""Output files: continued, never overwritten, never silently mixed."""

import json

import pytest

from llm.engine.output import digest, fingerprint, open_output
from llm.errors import UserError

KEYS = [(0, 0, 'a'), (0, 1, 'b'), (1, 0, 'c')]


def row(key, **more):
  return dict(zip(('index', 'sample', 'id'), key), **more)


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_new_file_and_folder_above_it_are_made(tmp_path):
  path = tmp_path / 'deep' / 'out.jsonl'
  output = open_output(str(path), KEYS)
  output.write(row(KEYS[0], text='héllo\n'))
  assert output.done == frozenset()
  assert read(path) == [row(KEYS[0], text='héllo\n')]


def test_finished_rows_are_kept_and_a_cut_off_row_is_dropped(tmp_path):
  path = tmp_path / 'out.jsonl'
  output = open_output(str(path), KEYS)
  for key in KEYS[:2]:
    output.write(row(key))
  with path.open('a') as file:
    file.write('{"index": 1, "sam')
  output = open_output(str(path), KEYS)
  assert output.done == set(KEYS[:2]) and output.moved_to is None
  output.write(row(KEYS[2]))
  assert read(path) == [row(key) for key in KEYS]


def test_rows_of_other_inputs_are_moved_aside(tmp_path):
  path = tmp_path / 'out.jsonl'
  open_output(str(path), [(0, 0, 'x')]).write(row((0, 0, 'x')))
  output = open_output(str(path), KEYS)
  assert output.done == frozenset()
  assert output.moved_to == tmp_path / 'out.jsonl.1'
  assert read(output.moved_to) == [row((0, 0, 'x'))]
  output.write(row(KEYS[0]))
  open_output(str(path), [(0, 0, 'y')])
  assert read(tmp_path / 'out.jsonl.2') == [row(KEYS[0])]
  assert path.read_text() == ''


def test_fresh_starts_anew_and_keeps_no_copy_of_the_same_rows(tmp_path):
  path = tmp_path / 'out.jsonl'
  open_output(str(path), KEYS).write(row(KEYS[0]))
  output = open_output(str(path), KEYS, fresh=True)
  assert output.done == frozenset() and output.moved_to is None
  assert path.read_text() == ''


@pytest.mark.parametrize('text', ['hello\n', '{"prompt": "a"}\n', '[1]\n'])
def test_a_file_of_somebody_else_is_refused_and_kept(tmp_path, text):
  path = tmp_path / 'in.jsonl'
  path.write_text(text)
  with pytest.raises(UserError, match='line 1 was not written by this command'):
    open_output(str(path), KEYS)
  assert path.read_text() == text


def test_a_folder_is_refused(tmp_path):
  with pytest.raises(UserError, match='is a folder'):
    open_output(str(tmp_path), KEYS)


def test_digest_depends_on_every_part():
  assert digest([1, 2], {'a': 1, 'b': 2}) == digest([1, 2], {'b': 2, 'a': 1})
  assert len({digest([1, 2]), digest([1, 2], 0), digest([2, 1])}) == 3


def test_fingerprint_changes_when_a_file_does(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  before = fingerprint(str(tmp_path))
  assert before == fingerprint(str(tmp_path))
  (tmp_path / 'config.json').write_text('{"a": 1}')
  assert fingerprint(str(tmp_path)) != before
