"""Rows of files of every kind, and what is refused by file and row."""

import gzip
import json

import pyarrow
from pyarrow import parquet
import pytest
import zstandard

from llm.data.records import find_files, read_records
from llm.errors import UserError

ROWS = [{'text': 'naïve\u2028line'}, {'text': 'b', 'n': [1]}, {'text': 'c'}]
LINES = '\n'.join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()


def read(path, **options):
  return [(r.value, r.row) for r in read_records(path, **options)]


def write(path, data: bytes):
  path.write_bytes(data)
  return path


@pytest.mark.parametrize(
  'name, data',
  [
    ('a.jsonl', LINES),
    ('a.ndjson', b'\xef\xbb\xbf' + LINES + b'\n'),
    ('a.json', LINES),
    ('a.json', json.dumps(ROWS, indent=1).encode()),
    ('a.jsonl.gz', gzip.compress(LINES)),
    ('a.json.gz', gzip.compress(json.dumps(ROWS).encode())),
    ('a.jsonl.zst', zstandard.compress(LINES)),
    # Several frames, as parallel compressors write them.
    (
      'a.jsonl.zst',
      zstandard.compress(LINES[:11]) + zstandard.compress(LINES[11:]),
    ),
  ],
)
def test_every_kind_gives_the_same_rows(tmp_path, name, data):
  assert read(write(tmp_path / name, data)) == list(zip(ROWS, (1, 2, 3)))


def test_parquet(tmp_path):
  rows = [{'messages': [{'role': 'user', 'content': str(i)}]} for i in range(3)]
  path = tmp_path / 'a.parquet'
  parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
  assert read(path) == list(zip(rows, (1, 2, 3)))


def test_blank_lines_count_as_rows(tmp_path):
  path = write(tmp_path / 'a.jsonl', b'{"a": 1}\r\n\n  \n{"a": 2}\n')
  assert read(path) == [({'a': 1}, 1), ({'a': 2}, 4)]


def test_a_json_object_is_one_row(tmp_path):
  assert read(write(tmp_path / 'a.json', b'{\n "a": 1\n}')) == [({'a': 1}, 1)]


def test_texts_and_their_documents(tmp_path):
  text = 'one\r\n\n<end>\ntwo\n<end>\n\n<end>three'
  path = write(tmp_path / 'a.txt.gz', gzip.compress(text.encode()))
  assert read(path) == [({'text': text}, 1)]
  documents = [
    ({'text': t}, n) for n, t in enumerate(['one', 'two', 'three'], 1)
  ]
  assert read(path, separator='<end>') == documents
  with pytest.raises(UserError, match='data.separator is empty'):
    read(path, separator='')


def test_lines_longer_than_a_chunk(tmp_path):
  rows = [{'text': 'x' * n} for n in (3_000_000, 1, 2_000_000)]
  data = '\n'.join(map(json.dumps, rows)).encode()
  assert read(write(tmp_path / 'a.jsonl', data)) == list(zip(rows, (1, 2, 3)))


def test_folders_patterns_and_lists(tmp_path):
  for name in ('b.jsonl', 'a.txt', 'c.jsonl.gz', '.hidden.txt', 'LICENSE'):
    data = json.dumps({'text': name}).encode()
    data = name.encode() if 'txt' in name else data
    write(tmp_path / name, gzip.compress(data) if 'gz' in name else data)
  names = lambda path: [file.name for file in find_files(path)]
  assert names(tmp_path) == ['a.txt', 'b.jsonl', 'c.jsonl.gz']
  assert names(str(tmp_path / '*.jsonl*')) == ['b.jsonl', 'c.jsonl.gz']
  assert names([tmp_path / 'c.jsonl.gz', tmp_path / 'a.txt']) == [
    'c.jsonl.gz',
    'a.txt',
  ]
  records = list(read_records(tmp_path, field='data.eval_path'))
  assert [r.value['text'] for r in records] == [
    'a.txt',
    'b.jsonl',
    'c.jsonl.gz',
  ]
  assert records[1].where == f'data.eval_path: {tmp_path}/b.jsonl, row 1'


def test_progress_ends_at_the_whole(tmp_path):
  write(tmp_path / 'a.jsonl', LINES)
  write(tmp_path / 'b.jsonl', LINES)
  calls = []
  list(read_records(tmp_path, on_bytes=lambda *call: calls.append(call)))
  assert len(calls) == 6 and calls[-1] == (2 * len(LINES), 2 * len(LINES))
  assert calls == sorted(calls)


@pytest.mark.parametrize(
  'name, data, match',
  [
    ('a.jsonl', b'', 'a.jsonl holds no rows'),
    ('a.jsonl', b'\n \n', 'a.jsonl holds no rows'),
    ('a.json', b'[]', 'a.json holds no rows'),
    ('a.json', b'', 'a.json holds no rows'),
    ('a.txt', b' \n', 'a.txt holds no rows'),
    ('a.jsonl.gz', gzip.compress(b''), 'a.jsonl.gz holds no rows'),
    ('a.jsonl', b'{"a": 1}\n{"a": ', 'a.jsonl, row 2: not valid JSON'),
    ('a.jsonl', b'{"a": 1}\n\n[1]', r'a.jsonl, row 3: a JSON object .* \[1\]'),
    ('a.jsonl', b'{"a": 1}\n{"a": "\xff"}', 'row 2: not UTF-8 at byte 7'),
    ('a.json', b'[{"a": 1}, 2]', 'a.json, row 2: a JSON object .* 2'),
    ('a.json', b'[{"a": 1}, ', 'a.json is not valid JSON'),
    ('a.json', b'{"a": 1}\n{"a" 1}', 'a.json, row 2: not valid JSON'),
    ('a.txt', b'ab\xff', 'a.txt is not UTF-8 at byte 2'),
    ('a.jsonl.gz', b'{"a": 1}', 'a.jsonl.gz is cut off or broken'),
    ('a.jsonl.gz', gzip.compress(LINES)[:-9], 'a.jsonl.gz is cut off or bro'),
    ('a.jsonl.zst', zstandard.compress(LINES)[:-3], 'is cut off or broken'),
    ('a.jsonl.zst', LINES, 'a.jsonl.zst is cut off or broken'),
    ('a.parquet', LINES, 'a.parquet is not a Parquet file'),
    ('a.csv', b'a,b', 'a.csv is of no known kind; known are .jsonl'),
  ],
)
def test_bad_files_are_refused(tmp_path, name, data, match):
  with pytest.raises(UserError, match=match):
    read(write(tmp_path / name, data))


@pytest.mark.parametrize(
  'path, match',
  [
    ('nowhere.jsonl', "data.path='nowhere.jsonl' does not exist"),
    ('nowhere/*.jsonl', 'no file matches'),
    ('.', 'no file of a known kind'),
    ([], 'names no file'),
    ('', 'name a file'),
    (None, 'data.path=None'),
  ],
)
def test_no_file(tmp_path, monkeypatch, path, match):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=match):
    read(path)


def test_a_folder_leaves_out_what_is_about_the_data(tmp_path):
  for name in ('b.txt', 'a.txt', 'LICENSE.txt', 'Readme.txt', '.hidden.txt'):
    (tmp_path / name).write_text(name)
  files = find_files(tmp_path)
  assert [file.name for file in files] == ['a.txt', 'b.txt']


def test_line_ends_marks_and_separators(tmp_path):
  # CRLF; a byte order mark at the start and where files were joined; U+2028,
  # U+0085 and a vertical tab, which end no line of JSON.
  rows = [{'a': 'x\u2028y'}, {'a': 'x\u0085\x0by'}, {'a': 3}]
  lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
  data = b'\xef\xbb\xbf' + b'\r\n\xef\xbb\xbf'.join(lines) + b'\r\n'
  assert read(write(tmp_path / 'a.jsonl', data)) == list(zip(rows, (1, 2, 3)))


def test_nulls_of_parquet_columns(tmp_path):
  call = {'function': {'name': 'f', 'arguments': {'town': 'Rome'}}}
  other = {'function': {'name': 'g', 'arguments': {'hour': 3}}}
  rows = [
    {'messages': [{'role': 'assistant', 'content': 'a'},
                  {'role': 'assistant', 'tool_calls': [call]}]},
    {'messages': [{'role': 'assistant', 'tool_calls': [other]}], 'system': 's'},
  ]  # fmt: skip
  path = tmp_path / 'a.parquet'
  schema = pyarrow.Table.from_pylist(
    [{**rows[0], 'system': None}, rows[1]]
  ).schema
  parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
  assert read(path) == list(zip(rows, (1, 2)))


def test_a_folder_of_shards_is_read_in_order(tmp_path):
  for number in (10, 2, 0):
    parquet.write_table(
      pyarrow.Table.from_pylist([{'n': number}]),
      tmp_path / f'train-{number:05}-of-00011.parquet',
    )
  assert [value['n'] for value, _ in read(tmp_path)] == [0, 2, 10]


def test_a_line_of_a_megabyte(tmp_path):
  row = {'text': 'é' * (1 << 20)}
  data = json.dumps(row, ensure_ascii=False).encode()
  assert read(write(tmp_path / 'a.jsonl', data)) == [(row, 1)]


def test_numbers_that_only_python_has(tmp_path):
  # Integers of any size are kept; what reads them says what fits.
  data = b'{"a": 1' + b'0' * 400 + b'}\n{"a": 1e999}\n{"a": -1e999}\n'
  values = [value['a'] for value, _ in read(write(tmp_path / 'a.jsonl', data))]
  assert values == [10**400, float('inf'), -float('inf')]


@pytest.mark.parametrize(
  'name, data, match',
  [
    ('a.jsonl', b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}', "row 2: .*'a' is .*tw"),
    ('a.json', b'[{"a": {"b": 1, "b": 2}}]', "a.json: .*'b' is there twice"),
    ('a.jsonl', b'{"a": ' + b'1' * 5000 + b'}', 'row 1: not valid .*digits'),
    ('a.json', b'{"a": ' + b'1' * 5000 + b'}', 'a.json: .*digits'),
    ('a.jsonl', b'[' * 100_000, 'row 1: not valid JSON'),
    ('a.jsonl', '{"a": 1}'.encode('utf-16'), 'row 1: not UTF-8 .*save the f'),
    ('a.json', '{"a": 1}'.encode('utf-16'), 'not UTF-8 .*save it as UTF-8'),
    ('a.txt', 'ab'.encode('utf-16'), 'not UTF-8 .*save it as UTF-8'),
    ('a.jsonl', b'', 'holds no rows'),
    ('a.jsonl', b'\n \r\n', 'holds no rows'),
    ('a.jsonl', b'[1]', r'row 1: a JSON object is needed, not \[1\]'),
    ('a.json', b'[[1]]', r'row 1: a JSON object is needed'),
  ],
)  # fmt: skip
def test_rows_that_cannot_be_read(tmp_path, name, data, match):
  with pytest.raises(UserError, match=match):
    read(write(tmp_path / name, data))


def test_half_of_a_surrogate_pair_is_refused_where_it_is_encoded(tmp_path):
  from llm.data.dataset import load_examples
  from llm.text.tokenizer import load_tokenizer

  data = b'{"text": "a"}\n{"text": "\\ud800"}\n{"text": "\\ud83d\\ude42"}\n'
  path = write(tmp_path / 'a.jsonl', data)
  with pytest.raises(UserError, match='row 2: text: character 0 is half of a'):
    load_examples(path, load_tokenizer('bytes'), max_length=8)
