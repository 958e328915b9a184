"""Broken files of a model folder: each is named once, with its remedy."""

import json
import os
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from llm.checkpoints.hf.config import to_hf
from llm.checkpoints.hf.folder import listed
from llm.checkpoints.hf.load import load_params
from llm.checkpoints.hf.names import leaves
from llm.checkpoints.hf.source import read_config
from llm.checkpoints.tensor_files import read_header
from llm.errors import UserError
from llm.models.config import ModelConfig

_CONFIG = ModelConfig(
  vocab_size=40,
  embed_dim=16,
  hidden_dim=24,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  max_length=32,
)


@pytest.fixture
def folder(tmp_path):
  """A model in three files and their index."""
  pieces = [piece for leaf in leaves(_CONFIG) for piece in leaf.pieces]
  tensors = {p.name: np.zeros(p.shape, np.float32) for p in pieces}
  weight_map = {}
  for part in range(3):
    name = f'model-{part + 1:05}-of-00003.safetensors'
    held = dict(list(tensors.items())[part::3])
    save_file(held, tmp_path / name)
    weight_map |= dict.fromkeys(held, name)
  index = {'metadata': {}, 'weight_map': weight_map}
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
  (tmp_path / 'config.json').write_text(json.dumps(to_hf(_CONFIG)))
  return tmp_path


def _refusal(folder):
  with pytest.raises(UserError) as error:
    load_params(str(folder), _CONFIG)
  return str(error.value)


def _header(text):
  return struct.pack('<Q', len(text)) + text


@pytest.mark.parametrize(
  'data, cause',
  [
    (None, 'but missing: download it'),
    (b'', 'the file is empty: download it again'),
    (b'abc', '3 bytes, and its header'),
    (
      b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n',
      'is a pointer of Git LFS',
    ),
    (_header(b'[' * 100_000), 'its header is corrupt (RecursionError'),
    (_header(b'[]'), 'its header is corrupt'),
    (
      _header(b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}'),
      'its header is corrupt (OverflowError',
    ),
  ],
)
def test_a_broken_shard_is_one_problem(folder, data, cause):
  path = folder / 'model-00002-of-00003.safetensors'
  path.unlink()
  if data is not None:
    path.write_bytes(data)
  message = _refusal(folder)
  assert message.startswith(f'{path}: ') and cause in message
  assert 'download it' in message
  assert '\n' not in message and 'config.json' not in message


@pytest.mark.parametrize('name', ['../a.safetensors', '/a', 'x/../../a'])
def test_an_index_stays_in_its_folder(folder, name):
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': {'a': name}}))
  message = _refusal(folder)
  assert message.startswith(f'{index}: names {name!r}, which is outside')


def test_a_folder_in_place_of_a_shard(folder):
  path = folder / 'model-00002-of-00003.safetensors'
  path.unlink()
  path.mkdir()
  message = _refusal(folder)
  assert message.startswith(f'{path}: cannot be read (Is a directory)')
  assert '\n' not in message


def test_broken_files_are_listed_once_each(folder):
  for path in folder.glob('model-*'):
    path.write_bytes(b'')
  message = _refusal(folder)
  assert message.startswith(f'{folder}: 3 problems:')
  assert message.count('the file is empty') == message.count('\n') == 3


def test_long_lists_are_cut_short():
  problems = [f'problem {i}' for i in range(9)]
  assert listed('x', problems[:1]) == 'problem 0'
  assert listed('x', problems[:5]).endswith('problem 4')
  message = listed('x', problems)
  assert message.startswith('x: 9 problems:\n  problem 0')
  assert message.endswith('problem 4\n  and 4 more')


def test_a_tensor_inside_the_header_is_corrupt(tmp_path):
  path = tmp_path / 'a.safetensors'
  entry = {'dtype': 'F32', 'shape': [1], 'data_offsets': [-4, 0]}
  path.write_bytes(_header(json.dumps({'a': entry}).encode()))
  _, problems = read_header(str(path))
  assert len(problems) == 1 and problems[0].startswith('a: corrupt')
  entry = {'dtype': ['F32'], 'shape': [1], 'data_offsets': [0, 4]}
  path.write_bytes(_header(json.dumps({'a': entry}).encode()) + bytes(4))
  infos, problems = read_header(str(path))
  assert infos['a'].dtype == "['F32']" and not problems


@pytest.mark.parametrize(
  'text, parts',
  [
    ('{\n"a": 1,\n}', ['not valid JSON', 'fix it at line 3']),
    ('', ['not valid JSON', 'fix it at line 1', 'download it again']),
    ('[' * 100_000, ['not valid JSON', 'download it again']),
    ('[]', ['holds a list, not an object: download it again']),
  ],
)
def test_json_that_is_none_has_a_remedy(folder, text, parts):
  path = folder / 'config.json'
  path.write_text(text)
  with pytest.raises(UserError) as error:
    read_config(str(folder))
  assert str(error.value).startswith(f'{path}: ')
  assert all(part in str(error.value) for part in parts)
  path.write_bytes(b'\xff\xfe')
  with pytest.raises(UserError, match='not valid JSON .*download it again'):
    read_config(str(folder))
  path.unlink()
  os.mkdir(path)
  with pytest.raises(UserError, match='cannot be read .*permissions'):
    read_config(str(folder))


@pytest.mark.parametrize(
  'raw', [{'eos_token_id': 'x'}, {'eos_token_id': 40}, {'bos_token_id': [1]}]
)
def test_ids_of_the_generation_config_are_checked(folder, raw):
  path = folder / 'generation_config.json'
  path.write_text(json.dumps(raw))
  [(key, value)] = raw.items()
  with pytest.raises(UserError) as error:
    read_config(str(folder))
  assert str(error.value).startswith(
    f'generation_config.json: {key}={value!r}: must be an id of the vocabulary'
  )
