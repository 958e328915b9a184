"""A step on 4 devices is the step on one, and no device does another's rows.

The devices are simulated: `run_python` starts a process with 4 of them.
"""

import json

import pytest

from tests.parallel.cases import LENGTH, ROWS

# (data, fsdp, tensor), microbatches, chunked cross entropy
DENSE = [
  ((4, 1, 1), 2, False),
  ((1, 4, 1), 2, True),
  ((2, 2, 1), 1, False),
  ((2, 1, 2), 1, True),
]
ADAPTERS = [((2, 2, 1), 2, False), ((1, 1, 4), 1, False)]
EXPERTS = [((1, 2, 2), 1, False)]


def _compare(run_python, cases, **options):
  code = (
    'from tests.parallel.cases import compare\n'
    f'compare({cases!r}, **{options!r})'
  )
  return dict(
    zip(map(str, cases), json.loads(run_python(code, devices=4)), strict=True)
  )


def _assert_same(cases, results):
  for case, result in zip(cases, results.values(), strict=True):
    (_, _, tensor), _, _ = case
    # Splitting a width adds roundings inside of each product.
    bound = 1e-6 if tensor == 1 else 2e-6
    assert result['loss'] < 1e-6, (case, result)
    assert result['gradient'] < bound, (case, result)


def _assert_own_rows(cases, results):
  """No activation of all rows of a microbatch is fetched."""
  for case, result in zip(cases, results.values(), strict=True):
    (data, fsdp, _), microbatches, _ = case
    if data * fsdp == 1:  # each device has all rows
      continue
    rows = ROWS // microbatches
    for shape in result['gathered']:
      activation = shape[0] == rows and len(shape) > 2
      assert not activation and shape[0] != rows * LENGTH, result


def test_dense_model(run_python):
  results = _compare(run_python, DENSE)
  _assert_same(DENSE, results)
  _assert_own_rows(DENSE, results)
  memory = [result['memory'] for result in results.values()]
  # Of parameters and optimizer state: a quarter, plus norm scales, counts and
  # the rows of the batch.
  assert memory[1] < 0.28
  assert memory[0] > 0.9
  assert 0.45 < memory[2] < 0.55
  assert 0.45 < memory[3] < 0.55


@pytest.mark.slow
def test_experts_unrolled(run_python):
  results = _compare(run_python, EXPERTS, kind='experts', scan=False)
  _assert_same(EXPERTS, results)
  _assert_own_rows(EXPERTS, results)


@pytest.mark.slow
def test_adapters(run_python):
  results = _compare(run_python, ADAPTERS, scan=False, lora=True)
  _assert_same(ADAPTERS, results)
  _assert_own_rows(ADAPTERS, results)
