"""`.bin` files of PyTorch, written here by hand, opcode by opcode."""

import io
import json
import os
import zipfile

import numpy as np
import pytest

from llm.checkpoints import torch_files
from llm.checkpoints.hf import folder
from llm.checkpoints.tensor_files import read_slice, write_file
from llm.errors import UserError


def text(value):
  data = value.encode()
  return b'X' + len(data).to_bytes(4, 'little') + data


def number(value):
  return b'J' + value.to_bytes(4, 'little', signed=True)


def numbers(values):
  return b'(' + b''.join(map(number, values)) + b't'


def storage(key, kind='FloatStorage', view=b''):
  start = b'(' + text('storage') + f'ctorch\n{kind}\n'.encode()
  return start + text(key) + text('cpu') + number(6) + view + b'tQ'


REBUILD = b'ctorch._utils\n_rebuild_tensor_v2\n'
STORAGE = storage('0')
# A tuple of two tuples of two tuples …: short to write, endless to hash.
NESTED = b')q\0' + b''.join(
  bytes([0x68, i, 0x68, i, 0x86, 0x71, i + 1]) for i in range(60)
)
LAST = b'h\x3c'


def tensor(key, shape, strides, offset=0, kind='FloatStorage', part=b''):
  view = number(offset) + numbers(shape) + numbers(strides)
  rest = b'\x89ccollections\nOrderedDict\n)R'
  return REBUILD + b'(' + storage(key, kind, part) + view + rest + b'tR'


def pickled(**tensors):
  items = b''.join(text(name) + value for name, value in tensors.items())
  return b'\x80\x02}(' + items + b'u.'


def archive(data, storages, stored=True, byteorder=b'little'):
  file = io.BytesIO()
  kind = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
  with zipfile.ZipFile(file, 'w', kind) as made:
    made.writestr('archive/data.pkl', data)
    made.writestr('archive/byteorder', byteorder)
    for key, numbers_ in storages.items():
      made.writestr(f'archive/data/{key}', numbers_.tobytes())
  return file.getvalue()


VALUES = np.arange(6, dtype=np.float32)


def write(path, *args, **options):
  path.write_bytes(archive(*args, **options))
  return torch_files.read_header(str(path))


def test_views_of_a_storage(tmp_path):
  data = pickled(
    whole=tensor('0', (2, 3), (3, 1)),
    row=tensor('0', (3,), (1,), offset=3),
    none=tensor('0', (0, 3), (3, 1)),
  )
  infos, problems = write(tmp_path / 'w.bin', data, {'0': VALUES})
  assert not problems and list(infos) == ['whole', 'row', 'none']
  out = np.empty((2, 3), np.float32)
  with (tmp_path / 'w.bin').open('rb', buffering=0) as file:
    read_slice(file, infos['whole'], 0, (2, 3), (slice(0, 2), slice(0, 3)), out)
    np.testing.assert_array_equal(out, VALUES.reshape(2, 3))
    read_slice(file, infos['row'], 0, (3,), (slice(0, 3),), out[0])
  np.testing.assert_array_equal(out[0], [3, 4, 5])
  assert infos['none'].nbytes == 0


@pytest.mark.parametrize(
  'data, options, match',
  [
    (pickled(w=tensor('0', (3, 2), (1, 3))), {}, 'w: is stored .*strides'),
    (pickled(w=tensor('1', (2,), (1,))), {}, "w: .* has no storage '1'"),
    (pickled(w=tensor('0', (7,), (1,))), {}, 'w: ends behind its storage'),
    (pickled(w=tensor('0', (2,), (1,), -1)), {}, 'is damaged'),
    (pickled(w=tensor('0', (6,), (1,))), {'stored': False}, 'is compressed'),
    (pickled(w=tensor('0', (6,), (1,))), {'byteorder': b'big'}, 'byte order'),
    (pickled(w=tensor('0', (6,), (1,), kind='QInt8Storage')), {}, 'QInt8Sto'),
    (b'\x80\x02cos\nsystem\n' + text('x') + b'\x85R.', {}, 'os.system'),
    (b'(S"x"\ni__main__\nX\n.', {}, 'has STRING, which'),
    (b'\x80\x02].', {}, 'no state dict'),
    (b'\x80\x02}', {}, 'is damaged'),
    # A place in the memo that would take 16 GB as an array.
    (b'\x80\x02]r\xff\xff\xff\x7f.', {}, 'no state dict'),
    (b'\x80\x02h\x05.', {}, 'is damaged'),
    (b'\x80\x04\x95', {}, 'is damaged'),
    (b'\x80\x02}(' + text('w') + b'u.', {}, 'is damaged'),
    (b'\x80\x02' + text('w') + b'Q.', {}, 'is damaged'),
    (b'\x80\x02ctorch\nSize\nK\x01\x85R.', {}, 'is damaged'),
    (b'\x80\x02' + NESTED + b'}' + LAST + b'Ns.', {}, 'has a tuple as key'),
    (b'\x80\x02' + NESTED + b'Q.', {}, 'is damaged'),
    (
      b'\x80\x02' + REBUILD + b'N}(' + text('__defaults__') + b'Nu\x86b.',
      {},
      'sets attributes of something else than a dict',
    ),
    (
      b'\x80\x02' + STORAGE + b'}' + text('size') + text('x') + b'sb.',
      {},
      'sets attributes',
    ),
    (
      b'\x80\x02(' + STORAGE + b'K\x00J\xff\xff\xff\xff\x85K\x01\x85t.',
      {},
      'no state dict',
    ),
    (pickled(w=tensor('0', (-1,), (1,))), {}, 'is damaged'),
    (pickled(w=tensor('0', (1,) * 65, (1,) * 65)), {}, 'is damaged'),
    (pickled(w=tensor('0', (2, 2), (1,))), {}, 'is damaged'),
    (
      pickled(model=b'}' + text('w') + tensor('0', (1,), (1,)) + b's'),
      {},
      'holds no tensors by name, but model: save',
    ),
    (
      pickled(w=tensor('0', (1,), (1,)), state_dict=b'}'),
      {},
      'beside state_dict',
    ),
  ],
)
def test_what_is_refused(tmp_path, data, options, match):
  _, [problem] = write(tmp_path / 'w.bin', data, {'0': VALUES}, **options)
  with pytest.raises(UserError, match=match):
    raise UserError(problem)
  assert 'w.bin' in problem


def test_a_storage_that_is_a_part_of_another(tmp_path):
  whole = pickled(w=tensor('0', (6,), (1,), part=b'N'))
  assert not write(tmp_path / 'w.bin', whole, {'0': VALUES})[1]
  part = pickled(w=tensor('0', (6,), (1,), part=numbers((0, 6))))
  _, [problem] = write(tmp_path / 'w.bin', part, {'0': VALUES})
  assert "storage '0' is a part of another" in problem


def test_archives_that_are_not_as_pytorch_writes_them(tmp_path):
  path, data = tmp_path / 'w.bin', pickled(w=tensor('0', (6,), (1,)))
  whole = archive(data, {'0': VALUES})

  def problem(changed):
    path.write_bytes(changed)
    infos, [said] = torch_files.read_header(str(path))
    assert infos == {} and said.startswith(f'{path}: ')
    return said

  # Bit 0 of the flags in the first central entry: encrypted.
  at = whole.index(b'PK\x01\x02') + 8
  encrypted = whole[:at] + b'\1' + whole[at + 1 :]
  assert 'its archive/data.pkl is encrypted' in problem(encrypted)
  deflated = bytearray(archive(data, {'0': VALUES}, stored=False))
  deflated[60] ^= 0xFF  # not even unpacked
  assert 'its archive/data.pkl is compressed' in problem(bytes(deflated))
  with zipfile.ZipFile(path, 'w') as made:
    made.writestr('weights/readme', 'x')
  assert 'not one of one state dict' in problem(path.read_bytes())
  file = io.BytesIO(whole)
  with pytest.warns(UserWarning), zipfile.ZipFile(file, 'a') as made:
    made.writestr('archive/data/0', b'other')  # which of the two is meant?
  assert 'not one of one state dict' in problem(file.getvalue())


@pytest.mark.parametrize(
  'data, said',
  [
    (b'', 'the file is empty'),
    (b'version https://git-lfs.github.com/spec/v1\noid', 'pointer of Git LFS'),
    (b'<!DOCTYPE html><html>', 'its pickle is damaged'),
    (b'PK\3\4' + bytes(40), 'its pickle is damaged'),
    (b'GGUF' + bytes(40), 'its pickle is damaged'),
  ],
)
def test_files_that_are_none_of_weights(tmp_path, data, said):
  path = tmp_path / 'w.bin'
  path.write_bytes(data)
  infos, [problem] = torch_files.read_header(str(path))
  assert infos == {} and problem.startswith(f'{path}: ') and said in problem
  assert 'download' in problem


def save_shards(path, stem, suffix, total, skip=()):
  for number in range(1, total + 1):
    name = f'{stem}-{number:05}-of-{total:05}.{suffix}'
    if number in skip:
      continue
    if suffix == 'bin':
      data = pickled(**{f't{number}': tensor('0', (6,), (1,))})
      (path / name).write_bytes(archive(data, {'0': VALUES}))
    else:
      tensors = {f't{number}': ((6,), np.dtype(np.float32))}
      write_file(str(path / name), tensors, lambda _: [VALUES])


@pytest.mark.parametrize(
  'stem, suffix', [('model', 'safetensors'), ('pytorch_model', 'bin')]
)
def test_shards_without_an_index(tmp_path, stem, suffix):
  save_shards(tmp_path, stem, suffix, 3)
  infos, problems = folder.read_headers(str(tmp_path))
  assert not problems and list(infos) == ['t1', 't2', 't3']
  last = tmp_path / f'{stem}-00003-of-00003.{suffix}'
  last.write_bytes((tmp_path / f'{stem}-00001-of-00003.{suffix}').read_bytes())
  _, [problem] = folder.read_headers(str(tmp_path))
  assert problem.startswith('t1: is in ') and 'remove one of the two' in problem
  last.unlink()
  with pytest.raises(UserError, match='shard 3 of 3 is missing'):
    folder.read_headers(str(tmp_path))
  save_shards(tmp_path, stem, suffix, 2)
  with pytest.raises(UserError, match='shards of 2 and of 3 files'):
    folder.read_headers(str(tmp_path))


def test_an_index_of_bin_files(tmp_path):
  save_shards(tmp_path, 'pytorch_model', 'bin', 2)
  names = {f't{n}': f'pytorch_model-0000{n}-of-00002.bin' for n in (1, 2)}
  index = tmp_path / 'pytorch_model.bin.index.json'
  index.write_text(json.dumps({'weight_map': names}))
  infos, problems = folder.read_headers(str(tmp_path))
  assert not problems and list(infos) == ['t1', 't2']
  os.remove(tmp_path / names['t2'])
  _, [problem] = folder.read_headers(str(tmp_path))
  assert 'named by pytorch_model.bin.index.json but missing' in problem


def test_other_names(tmp_path):
  (tmp_path / 'consolidated.00.pth').write_bytes(b'x')
  with pytest.raises(UserError, match='it has consolidated.00.pth'):
    folder.read_headers(str(tmp_path))
