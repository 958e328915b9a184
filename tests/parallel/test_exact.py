"""A step on 4 devices is the step on one, and no device does another's rows.

The devices are simulated: `run_python` starts a process with 4 of them.
"""

import json

# (data, fsdp, tensor), microbatches, chunked cross entropy
DENSE = [
  ((4, 1, 1), 2, False),
  ((1, 4, 1), 2, True),
  ((2, 2, 1), 1, False),
  ((2, 1, 2), 2, True),
]
EXPERTS = [((1, 2, 2), 2, False)]


def _compare(run_python, cases, **options):
  code = (
    'from tests.parallel.cases import compare\n'
    f'compare({cases!r}, **{options!r})'
  )
  return dict(
    zip(map(str, cases), json.loads(run_python(code, devices=4)), strict=True)
  )


def _assert_same(results):
  for case, result in results.items():
    assert result['loss'] < 1e-6, (case, result)
    assert result['gradient'] < 1e-6, (case, result)


def _assert_own_rows(results):
  """Nothing of all rows of a microbatch, or of a whole batch, is fetched."""
  for case, result in results.items():
    whole = [s for s in result['gathered'] if len(s) > 2 and s[0] in (8, 16)]
    assert whole == [], (case, result)


def test_dense_model(run_python):
  results = _compare(run_python, DENSE)
  _assert_same(results)
  _assert_own_rows(results)
  memory = [result['memory'] for result in results.values()]
  # Of parameters and optimizer state: a quarter, plus norm scales, counts and
  # the rows of the batch.
  assert memory[1] < 0.28
  assert memory[0] > 0.9
  assert 0.45 < memory[2] < 0.55
  assert 0.45 < memory[3] < 0.55


def test_experts_unrolled(run_python):
  results = _compare(run_python, EXPERTS, kind='experts', scan=False)
  _assert_same(results)
  _assert_own_rows(results)
