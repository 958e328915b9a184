"""Rows of Parquet files, with the nulls that they are padded with."""

import pyarrow
from pyarrow import parquet
import pytest

from llm.data.records import read_records
from llm.errors import UserError


def rows_of(path, table, **options):
  if isinstance(table, list):
    table = pyarrow.Table.from_pylist(table)
  parquet.write_table(table, path, **options)
  return [record.value for record in read_records(path)]


def test_objects_get_back_the_keys_that_they_had(tmp_path):
  called = {'name': 'weather', 'arguments': {'town': 'Rome'}}
  timed = {'name': 'time', 'arguments': {'zone': 'CET', 'hours': [1, 2]}}
  rows = [
    {
      'messages': [
        {'role': 'user', 'content': 'q'},
        {'role': 'assistant', 'tool_calls': [called, timed]},
        {'role': 'tool', 'content': 'sunny', 'name': 'weather'},
      ]
    },
    {'messages': [{'role': 'user', 'content': ''}]},
    {'messages': [{'role': 'assistant', 'tool_calls': []}]},
  ]
  assert rows_of(tmp_path / 'a.parquet', rows) == rows


def test_schemas_of_tools_get_back_their_own_properties(tmp_path):
  tools = [
    {'name': n, 'parameters': {'properties': {p: {'type': 'string'}}}}
    for n, p in (('weather', 'town'), ('time', 'zone'))
  ]
  assert rows_of(tmp_path / 'a.parquet', [{'tools': tools}]) == [
    {'tools': tools}
  ]


def test_nulls_of_columns_and_lists_are_kept(tmp_path):
  rows = [{'a': None, 'b': [1, None]}, {'a': 'x', 'b': None}]
  assert rows_of(tmp_path / 'a.parquet', rows) == rows


def test_many_rows_in_groups(tmp_path):
  rows = [{'text': f'{n}\u2028', 'n': n} for n in range(3000)]
  assert rows_of(tmp_path / 'a.parquet', rows, row_group_size=700) == rows


def test_words_from_a_dictionary(tmp_path):
  array = pyarrow.array(['x', 'y', 'x']).dictionary_encode()
  table = pyarrow.table({'a': array})
  assert rows_of(tmp_path / 'a.parquet', table) == [
    {'a': 'x'}, {'a': 'y'}, {'a': 'x'}
  ]  # fmt: skip


def test_a_row_that_is_not_utf8(tmp_path):
  offsets = pyarrow.py_buffer(b'\0\0\0\0\2\0\0\0\4\0\0\0\5\0\0\0')
  data = pyarrow.py_buffer(b'abc\xffd')
  text = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, offsets, data])
  path = tmp_path / 'a.parquet'
  table = pyarrow.table({'n': [1, 2, 3], 'text': text})
  parquet.write_table(table, path)
  bad = []
  rows = read_records(
    path, on_bad=lambda record, why: bad.append((record, why))
  )
  assert [(r.row, r.value) for r in rows] == [
    (1, {'n': 1, 'text': 'ab'}),
    (3, {'n': 3, 'text': 'd'}),
  ]
  ((record, why),) = bad
  assert record.row == 2 and why == (
    'text is not UTF-8 at byte 1; write it as UTF-8'
  )
  with pytest.raises(UserError, match='row 2: text is not UTF-8 at byte 1'):
    list(read_records(path))


def test_files_that_are_refused(tmp_path):
  path = tmp_path / 'a.parquet'
  twice = pyarrow.table([[1], [2]], names=['a', 'a'])
  with pytest.raises(UserError, match="has two columns 'a': rename or remove"):
    rows_of(path, twice)
  with pytest.raises(UserError, match='a.parquet holds no rows'):
    rows_of(path, pyarrow.table({'a': pyarrow.array([], pyarrow.int32())}))
  for data, match in (
    (b'', 'is not a Parquet file that pyarrow reads'),
    (b'PAR1 and no more', 'is not a Parquet file that pyarrow reads'),
    (b'version https://git-lfs.github.com/spec/v1', 'a pointer of Git LFS'),
  ):
    path.write_bytes(data)
    with pytest.raises(UserError, match=match):
      list(read_records(path))
