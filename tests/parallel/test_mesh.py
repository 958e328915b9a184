"""The mesh's fields and the batch sizes it takes: values and refusals."""

import types

import pytest

from llm.errors import UserError
from llm.parallel.mesh import check_batch, make_mesh


def _config(data=-1, fsdp=1, tensor=1):
  return types.SimpleNamespace(data=data, fsdp=fsdp, tensor=tensor)


def test_shapes(run_python):
  out = run_python(
    """
import types, jax
from llm.errors import UserError
from llm.parallel.mesh import make_mesh

def shape(data, fsdp, tensor):
  mesh = make_mesh(types.SimpleNamespace(data=data, fsdp=fsdp, tensor=tensor))
  assert mesh.axis_names == ('data', 'fsdp', 'tensor')
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
  assert mesh.devices.size == len(jax.devices()) == 8
  return mesh.devices.shape

assert shape(-1, 1, 1) == (8, 1, 1)
assert shape(-1, 2, 2) == (2, 2, 2)
assert shape(1, -1, 2) == (1, 4, 2)
assert shape(2, 4, 1) == (2, 4, 1)
for sizes in ((2, 2, 1), (-1, 3, 1)):
  try:
    shape(*sizes)
  except UserError as e:
    print(e)
""",
    devices=8,
  )
  assert out.splitlines() == [
    'mesh.data=2, mesh.fsdp=2, mesh.tensor=1: the product 4 must be the '
    'number of devices, 8; set mesh.data=-1 to use all of them',
    'mesh.data=-1, mesh.fsdp=3, mesh.tensor=1: the product 3 must divide the '
    'number of devices, 8',
  ]


@pytest.mark.parametrize(
  ('changes', 'message'),
  (
    ({'fsdp': 0}, 'mesh.fsdp=0: use a number of devices of at least 1, or -1'),
    ({'tensor': -2}, 'mesh.tensor=-2: use a number'),
    ({'data': 1.0}, 'mesh.data=1.0: use a number'),
    ({'data': True}, 'mesh.data=True: use a number'),
    ({'fsdp': -1}, 'mesh.data=-1, mesh.fsdp=-1.*only one axis can be -1'),
  ),
)
def test_wrong_fields_are_refused_by_name(changes, message):
  with pytest.raises(UserError, match=message):
    make_mesh(_config(**changes))


def _mesh(data, fsdp, tensor=1):
  return types.SimpleNamespace(
    shape={'data': data, 'fsdp': fsdp, 'tensor': tensor}
  )


def test_batch_sizes():
  assert check_batch(16, 4, _mesh(2, 2)) == 4
  assert check_batch(16, None, _mesh(2, 2, tensor=2)) == 1
  assert check_batch(12, 0, _mesh(3, 4)) == 1


@pytest.mark.parametrize(
  ('sizes', 'message'),
  (
    ((0, 0), 'train.batch_size=0: use at least 1'),
    ((8, -1), 'train.microbatch_size=-1: use a number of rows, or 0'),
    ((8, 3), 'train.microbatch_size=3: it must divide train.batch_size=8'),
    ((8, 2), 'train.microbatch_size=2: use a multiple of 4, for mesh.data=2'),
    ((6, 0), 'train.batch_size=6: use a multiple of 4.*mesh.fsdp=2'),
  ),
)
def test_sizes_that_do_not_fit_are_refused_by_name(sizes, message):
  with pytest.raises(UserError, match=message):
    check_batch(*sizes, _mesh(2, 2))
