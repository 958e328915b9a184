"""Rewards that are functions of a row and an answer's text.

Each is `(row, text, finished, **options) -> float`; `finished` says that the
answer came to its end before it was cut off. An entry of `config.rewards` is
(name, weight) or (name, weight, options), the name one of REWARDS or a function
of one's own, 'module:function'.
"""

from collections.abc import Callable
import importlib
import inspect
import math
import re
from typing import Any

from llm.errors import RunError, UserError
from llm.train.programs import passes


def exact_answer(row: dict[str, Any], text: str, finished: bool) -> float:
  """1 if the stripped text is the row's `answer`, else 0."""
  del finished
  return float(text.strip() == str(row['answer']).strip())


def last_number(row: dict[str, Any], text: str, finished: bool) -> float:
  """1 if the last number in the text equals the row's `answer`, else 0."""
  del finished
  numbers = re.findall(r'-?\d[\d,]*(?:\.\d+)?', text)
  if not numbers:
    return 0.0
  answer = str(row['answer']).replace(',', '')
  try:
    return float(float(numbers[-1].replace(',', '')) == float(answer))
  except ValueError:
    return 0.0


def matches(
  row: dict[str, Any], text: str, finished: bool, *, pattern: str
) -> float:
  """1 if the whole stripped text has the form of a regular expression."""
  del row, finished
  return float(re.fullmatch(pattern, text.strip(), re.DOTALL) is not None)


def ends(row: dict[str, Any], text: str, finished: bool) -> float:
  """1 for an answer that ends by itself."""
  del row, text
  return float(finished)


def brevity(
  row: dict[str, Any], text: str, finished: bool, *, characters: int
) -> float:
  """Minus the share by which the text exceeds `characters`, at most 1."""
  del row, finished
  if characters < 1:
    raise ValueError(f'characters={characters}: use 1 or more')
  return -min(max(len(text) / characters - 1.0, 0.0), 1.0)


def passes_tests(
  row: dict[str, Any],
  text: str,
  finished: bool,
  *,
  seconds: float = 2.0,
  megabytes: int = 512,
) -> float:
  """1 if the text, a Python program, passes the row's `tests`, else 0.

  Both run one after the other in a process of their own; see `programs.passes`
  for its limits.
  """
  del finished
  return float(passes(text, row['tests'], seconds=seconds, megabytes=megabytes))


REWARDS = {
  'brevity': brevity,
  'ends': ends,
  'exact_answer': exact_answer,
  'last_number': last_number,
  'matches': matches,
  'passes_tests': passes_tests,
}
MODEL = 'model'  # a reward model, which is rated elsewhere: tasks/rl_rewards
_NEEDS = {
  'exact_answer': 'answer',
  'last_number': 'answer',
  'passes_tests': 'tests',
}
_TRIAL = {'answer': '1', 'tests': ''}


def check_rewards(rewards: Any) -> None:
  """Refuses entries without a meaning; ones of REWARDS are tried out.

  Raises:
    UserError: naming the entry.
  """
  if not isinstance(rewards, (tuple, list)) or not rewards:
    raise UserError(
      f"rewards={rewards!r}: give some, such as (('exact_answer', 1.0),)"
    )
  for entry in rewards:
    where = f'rewards: {entry!r}'
    if not isinstance(entry, (tuple, list)) or len(entry) not in (2, 3):
      raise UserError(
        f'{where}: give (name, weight) or (name, weight, options)'
      )
    name, weight, options = _parts(entry)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
      raise UserError(f'{where}: the weight is a number')
    if not math.isfinite(weight):
      raise UserError(f'{where}: the weight is a finite number')
    if not isinstance(options, dict):
      raise UserError(f'{where}: the options are a dict of keywords')
    if name == MODEL:
      _check_model(where, options)
      continue
    try:
      function = find_reward(name)
      inspect.signature(function).bind({}, '', True, **options)
      if name in REWARDS:
        function(_TRIAL, '', True, **options)
    except (TypeError, ValueError, re.error) as error:
      raise UserError(f'{where}: {error}') from None


def find_reward(name: Any) -> Callable[..., float]:
  """One of REWARDS, or what 'module:function' names.

  Raises:
    UserError: there is no such function.
  """
  if name in REWARDS:
    return REWARDS[name]
  module, _, attribute = str(name).partition(':')
  if not attribute:
    raise UserError(
      f'no such reward; use one of {", ".join([*REWARDS, MODEL])}, or a '
      "function of your own as 'module:function'"
    )
  try:
    function = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise UserError(f'{error}; the module must be importable') from None
  if not callable(function):
    raise UserError(f'{name} is no function')
  return function


def check_row(rewards: Any, row: dict[str, Any]) -> None:
  """Refuses a row that lacks what its rewards read.

  Raises:
    UserError: naming the key.
  """
  for entry in rewards:
    key = _NEEDS.get(entry[0])
    if key is not None and row.get(key) is None:
      raise UserError(f'has no {key!r}, which the reward {entry[0]} reads')


def reward_names(rewards: Any) -> list[str]:
  """A name for each entry, for metrics: the second `matches` is `matches_2`."""
  names = []
  for entry in rewards:
    name = str(entry[0]).rpartition(':')[2]
    taken = sum(n == name or n.startswith(f'{name}_') for n in names)
    names.append(f'{name}_{taken + 1}' if taken else name)
  return names


def rate(entry: Any, row: dict[str, Any], text: str, finished: bool) -> float:
  """What the function of one entry says, without its weight.

  Returns:
    A number; NaN for an answer that could not be rated.

  Raises:
    RunError: the function raises, or returns no number.
  """
  name, _, options = _parts(entry)
  try:
    return float(find_reward(name)(row, text, finished, **options))
  except Exception as error:  # a function of one's own may fail in any way
    raise RunError(
      f'the reward {name} failed on the answer {text[:200]!r} to the row '
      f'{str(row)[:200]}: {type(error).__name__}: {error}'
    ) from error


def _parts(entry) -> tuple[Any, Any, Any]:
  name, weight, *options = entry
  return name, weight, options[0] if options else {}


def _check_model(where: str, options: dict[str, Any]) -> None:
  if set(options) != {'path'} or not isinstance(options['path'], str):
    raise UserError(
      f"{where}: give the folder of the reward model, ('model', 1.0, "
      "{'path': PATH})"
    )
