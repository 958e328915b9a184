"""`.bin` files that PyTorch writes, read without it."""

import collections
import os
import pickle

import numpy as np
import pytest
import torch

from llm.checkpoints import torch_files
from llm.checkpoints.tensor_files import read_slice


def read(path, info):
  out = np.empty(info.shape, np.float32)
  with open(path, 'rb', buffering=0) as file:
    index = tuple(slice(0, n) for n in info.shape)
    if info.shape:
      read_slice(file, info, 0, info.shape, index, out)
  return out


def state():
  generator = torch.Generator().manual_seed(0)
  normal = lambda *shape: torch.randn(*shape, generator=generator)
  table = normal(5, 3)
  return collections.OrderedDict(
    table=table,
    tied=table,
    rows=table[1:3],
    half=normal(4).half(),
    brain=normal(2, 2).bfloat16(),
    parameter=torch.nn.Parameter(normal(3)),
    one=normal(1, 1),
  )


@pytest.mark.parametrize('zipped', (True, False))
def test_tensors(tmp_path, zipped):
  path = str(tmp_path / 'w.bin')
  saved = state()
  torch.save(saved, path, _use_new_zipfile_serialization=zipped)
  infos, problems = torch_files.read_header(path)
  assert not problems and list(infos) == list(saved)
  for name, tensor in saved.items():
    want = tensor.detach().float().numpy()
    np.testing.assert_array_equal(read(path, infos[name]), want)
  # Tied weights lie at one place.
  assert infos['table'].offset == infos['tied'].offset


def test_other_things_of_a_checkpoint(tmp_path):
  path = str(tmp_path / 'w.bin')
  inner = {'w': torch.ones(2)}
  torch.save({'state_dict': inner, 'epoch': 3, 'lr': 0.1}, path)
  assert list(torch_files.read_header(path)[0]) == ['w']
  torch.save({'w': torch.ones(2), 'step': 7, 'name': 'x'}, path)
  assert list(torch_files.read_header(path)[0]) == ['w']
  torch.save([torch.ones(2)], path)
  assert 'no state dict' in torch_files.read_header(path)[1][0]


def test_a_transposed_tensor_is_refused(tmp_path):
  path = str(tmp_path / 'w.bin')
  torch.save({'w': torch.ones(2, 3).t(), 'v': torch.ones(2)}, path)
  infos, [problem] = torch_files.read_header(path)
  assert list(infos) == ['v'] and 'w: is stored' in problem
  assert '.contiguous()' in problem


@pytest.mark.parametrize('zipped', (True, False))
def test_truncated_files(tmp_path, zipped):
  path = tmp_path / 'w.bin'
  torch.save(state(), path, _use_new_zipfile_serialization=zipped)
  whole = path.read_bytes()
  for size in (0, 10, len(whole) // 2, len(whole) - 10):
    path.write_bytes(whole[:size])
    infos, problems = torch_files.read_header(str(path))
    assert problems, size
    assert all(str(path) in problem for problem in problems)


class Evil:
  def __init__(self, call):
    self.call = call

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize(
  'call, name',
  [
    ((os.system, ('touch hacked',)), 'system'),
    ((eval, ('open("hacked", "w")',)), '.eval'),
    ((getattr, ('a', 'upper')), '.getattr'),
    ((__import__, ('os',)), '.__import__'),
  ],
)
@pytest.mark.parametrize('zipped', (True, False))
def test_code_is_never_run(tmp_path, monkeypatch, call, name, zipped):
  monkeypatch.chdir(tmp_path)
  torch.save({'w': Evil(call)}, 'w.bin', _use_new_zipfile_serialization=zipped)
  infos, [problem] = torch_files.read_header('w.bin')
  assert infos == {} and name in problem and 'not trusted' in problem
  assert not os.path.exists('hacked')


def test_pickles_that_are_not_of_tensors(tmp_path):
  path = tmp_path / 'w.bin'
  for data in (
    pickle.dumps({'w': 1}),
    b'\x80\x02r\xff\xff\xff\x7f.',  # a memo of two thousand million entries
    b'\x80\x02J\x01\x00\x00\x00r\xff\xff\xff\x7f.',
    b'cos\nsystem\n(S"x"\ntR.',
    b'\x82\x01.',  # a registered extension
  ):
    path.write_bytes(data)
    infos, problems = torch_files.read_header(str(path))
    assert infos == {} and len(problems) == 1
