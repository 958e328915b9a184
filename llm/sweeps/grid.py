"""Override dicts of a sweep, and the names of the runs they stand for.

An override dict maps the full name of a config field to its value:
`{'optim.lr': 1e-3, 'seed': 0}`.
"""

import hashlib
import itertools
import json
import re
from typing import Any, Iterable, Iterator, Mapping

from llm.errors import UserError

Overrides = Mapping[str, Any]

_ID_CHARS = 60  # of the readable part: the whole stays a handy folder name


def product(axes: Mapping[str, Iterable[Any]]) -> Iterator[dict[str, Any]]:
  """Yields every combination, the last axis changing fastest.

  Trace: `product({'a': (1, 2), 'b': (3, 4)})` yields `{a: 1, b: 3}`,
  `{a: 1, b: 4}`, `{a: 2, b: 3}`, `{a: 2, b: 4}`.
  """
  for values in itertools.product(*axes.values()):
    yield dict(zip(axes, values))


def zipped(axes: Mapping[str, Iterable[Any]]) -> Iterator[dict[str, Any]]:
  """Yields the first values of all axes, then the second ones, and so on.

  Raises:
    UserError: the axes differ in length.
  """
  axes = {name: list(values) for name, values in axes.items()}
  lengths = {name: len(values) for name, values in axes.items()}
  if len(set(lengths.values())) > 1:
    raise UserError(f'zipped: the axes differ in length: {lengths}')
  for values in zip(*axes.values()):
    yield dict(zip(axes, values))


def run_id(config: str, overrides: Overrides) -> str:
  """Returns the folder name of a run: readable, and stable across sweeps.

  It depends on the config's name and on the overrides with their types (1, 1.0
  and True differ), not on their order. A hash of all of it ends the name,
  since the readable part is cut.

  Raises:
    UserError: a value is no bool, number, text, or tuple or dict of them.
  """
  for name, value in overrides.items():
    if value is None:
      raise UserError(
        f'sweep override {name}=None: no flag can say None; leave {name} out'
      )
    try:
      json.dumps(value)
    except TypeError:
      raise UserError(
        f'sweep override {name}={value!r}: a {type(value).__name__} cannot be '
        'passed to a run; use a bool, number, text, tuple or dict'
      ) from None
  whole = json.dumps([config, overrides], sort_keys=True)
  digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
  parts = (
    f'{name.split(".")[-1]}={overrides[name]}' for name in sorted(overrides)
  )
  readable = re.sub(r'[^\w.=,+-]+', '_', ','.join(parts))[:_ID_CHARS]
  return f'{readable},{digest}' if readable else digest
