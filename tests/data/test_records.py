"""Rows of files of every kind, and what is refused by file and row."""

import gzip
import json

import pyarrow
from pyarrow import parquet
import pytest
import zstandard

from llm.data.pairs import load_pairs
from llm.data.records import find_files, read_records
from llm.errors import UserError
from llm.text.tokenizer import load_tokenizer

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


@pytest.mark.parametrize('name', ['a.jsonl', 'a.json', 'a.jsonl.gz'])
@pytest.mark.parametrize('end', [b'\n', b'\r\n', b'\n \n', b' \t\r\n'])
def test_ends_of_lines_and_marks_of_utf8(tmp_path, name, end):
  bom = b'\xef\xbb\xbf'
  # Two files that were joined, and a blank end.
  lines = [json.dumps(row).encode() for row in ROWS]
  data = bom + lines[0] + end + bom + lines[1] + end + lines[2] + end + bom
  data = gzip.compress(data) if name.endswith('.gz') else data
  assert [value for value, _ in read(write(tmp_path / name, data))] == ROWS


def test_marks_of_utf8_in_texts(tmp_path):
  path = write(tmp_path / 'a.txt', '\ufeffone\n\ufefftwo\ufeff'.encode())
  assert read(path) == [({'text': 'one\ntwo\ufeff'}, 1)]
  path = write(tmp_path / 'a.txt', '\ufeff\n'.encode())
  with pytest.raises(UserError, match='holds no rows'):
    read(path)


def test_only_newlines_end_a_line(tmp_path):
  text = 'a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh'
  row = {'text': text, text: [text]}
  data = json.dumps(row, ensure_ascii=False).encode()
  data = data.replace(b'\\u001c', b'\\u001C') + b'\n' + data
  for name in ('a.jsonl', 'a.json'):
    assert read(write(tmp_path / name, data)) == [(row, 1), (row, 2)]


def test_a_folder_of_shards(tmp_path):
  for shard in (10, 2, 0):
    rows = [{'n': 2 * shard}, {'n': 2 * shard + 1}]
    name = f'train-{shard:05}-of-00011.parquet'
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
  write(tmp_path / 'README.md', b'# about')
  write(tmp_path / 'dataset_info.json.lock', b'')
  assert [value['n'] for value, _ in read(tmp_path)] == [
    0, 1, 4, 5, 20, 21
  ]  # fmt: skip
  assert [value['n'] for value, _ in read(tmp_path / 'train-*.parquet')] == [
    0, 1, 4, 5, 20, 21
  ]  # fmt: skip


def test_rows_after_a_bad_one_are_read(tmp_path):
  data = (
    b'{"n": 1}\n{"n": 2, "n": 3}\n[]\n{"n": "\xff"}\n{"n": 1e999}\n{"n": 4}'
  )
  bad = []
  rows = read_records(
    write(tmp_path / 'a.jsonl', data),
    on_bad=lambda record, why: bad.append((record.row, record.value, why)),
  )
  assert [(r.row, r.value) for r in rows] == [(1, {'n': 1}), (6, {'n': 4})]
  assert [(row, value) for row, value, _ in bad] == [
    (2, {}), (3, {}), (4, {}), (5, {})
  ]  # fmt: skip
  reasons = [why.split(';')[0] for _, _, why in bad]
  assert reasons == [
    "the row has 'n' twice, as 2 and as 3",
    'a JSON object is needed, not []',
    'not UTF-8 at byte 7 of the line',
    'n=1e999 is beyond the largest number',
  ]
  bad.clear()
  path = write(tmp_path / 'a.json', b'[{"n": 1, "n": 2}, 7, {"n": "\\udc00"}]')
  assert not list(read_records(path, on_bad=lambda *b: bad.append(b)))
  assert [record.row for record, _ in bad] == [1, 2, 3]


@pytest.mark.parametrize(
  'margin', ['1' + '0' * 400, '-1' + '0' * 400, '1e999', '-1e999', '1e39',
             'NaN', '-Infinity', '1' + '0' * 5000],
  ids=range(8),
)  # fmt: skip
def test_numbers_that_no_float_holds(tmp_path, margin):
  good = '{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1.5}'
  data = f'{good}\n{good.replace("1.5", margin)}\n'.encode()
  path = write(tmp_path / 'a.jsonl', data)
  tok = load_tokenizer('bytes')
  with pytest.raises(UserError, match=r'a.jsonl, row 2: margin=') as caught:
    load_pairs(path, tok, max_length=16)
  assert len(str(caught.value)) < 250 + len(str(path))
  path = write(tmp_path / 'a.jsonl', good.encode())
  assert load_pairs(path, tok, max_length=16)[0].margins.tolist() == [1.5]


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
    ('a.jsonl', '{"a": 1}'.encode('utf-16'), 'a.jsonl is UTF-16; write it as'),
    ('a.json', '[]'.encode('utf-16-le'), 'a.json is UTF-16; write it as UTF-8'),
    ('a.txt', 'one'.encode('utf-16-be'), r'\(iconv -f UTF-16BE -t UTF-8\)'),
    ('a.txt', 'one'.encode('utf-32'), 'a.txt is UTF-32; write it as UTF-8'),
    ('a.txt.gz', gzip.compress('é'.encode('utf-16')), 'a.txt.gz is UTF-16'),
    ('a.jsonl', '{"é": 1}'.encode('latin-1'), 'row 1: not UTF-8 at byte 2'),
    ('a.jsonl', gzip.compress(LINES), 'by gzip; let its name end in .gz'),
    ('a.json', zstandard.compress(LINES), 'zstd; let its name end in .zst'),
    ('a.jsonl', b'PAR1\x15\x04', 'is a Parquet file; let its name end in'),
    ('a.txt', b'PK\x03\x04', 'a.txt is a ZIP archive; unpack it'),
    ('a.jsonl', b'version https://git-lfs.github', 'a pointer of Git LFS'),
    ('a.jsonl', b'[\n{"a": 1}\n]', 'row 1: not an object in one line; a file'),
    ('a.jsonl', b'{\n"a": 1\n}', 'objects over several lines, is named .json'),
    ('a.json', b'[1' + b'0' * 5000 + b']', 'a.json, row 1: a JSON object is'),
    ('a.json', b'[{"a": "\\ud800"}]', 'a.json, row 1: a=.* surrogate pair'),
    ('a.json', b'[' * 99_999, 'a.json is nested too deeply; write it flatter'),
    ('a.json', b'[[{"a": 1}]]', r"a.json, row 1: a JSON object .* \[{'a': 1}"),
    ('a.json', b'"x"', "a.json, row 1: a JSON object is needed, not 'x'"),
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
