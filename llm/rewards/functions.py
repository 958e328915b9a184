"""Rewards that are functions of a row and a completion's text.

Each is `(row, text, finished, **options) -> float`; `finished` is False where
the completion was cut off at its maximum length. An entry of `config.rewards`
is (name, weight) or (name, weight, options), the name one of REWARDS or a
function of one's own, 'module:function'.
"""

from collections.abc import Callable
import importlib
import inspect
import math
import re
from typing import Any

from llm.errors import RunError, UserError
from llm.rewards import numbers
from llm.rewards.sandbox import passes


def exact_answer(row: dict[str, Any], text: str, finished: bool) -> float:
  """1 if the stripped text is the row's `answer`, else 0."""
  del finished
  return float(text.strip() == str(row['answer']).strip())


def last_number(row: dict[str, Any], text: str, finished: bool) -> float:
  """1 if the last number in the text equals the row's `answer`, else 0.

  Numbers are read by `numbers.last_value` and compared as floats: '2-3' ends in
  3, '1,2,6' in 6, and '3.0' equals 3. The `answer` is a number, or a text that
  has one after '####', as in GSM8K.
  """
  del finished
  answer = _number(row['answer'])
  return float(numbers.last_value(text) == answer)


def matches(
  row: dict[str, Any], text: str, finished: bool, *, pattern: str
) -> float:
  """1 if the whole stripped text matches a regular expression."""
  del row, finished
  return float(re.fullmatch(pattern, text.strip(), re.DOTALL) is not None)


def ends(row: dict[str, Any], text: str, finished: bool) -> float:
  """1 for a completion that ends by itself."""
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

  Both run one after the other in a process of their own; see `sandbox.passes`
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
MODEL = 'model'  # a reward model, which is rated elsewhere: rewards/rater
_SUMMARY = ('mean', 'std', 'min', 'max', 'overlong')  # metrics `reward_…`
_TRIAL = {'answer': '1', 'tests': ''}
_MOST = 3e38  # that float32 can hold


def check_rewards(rewards: Any) -> None:
  """Refuses invalid entries; those of REWARDS are called once as a trial.

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
    if not abs(weight) <= _MOST:
      raise UserError(
        f'{where}: the weight is a finite number of at most {_MOST:.2g}'
      )
    if not isinstance(options, dict):
      raise UserError(f'{where}: the options are a dict of keywords')
    if name == MODEL:
      _check_model(where, options)
      continue
    if reward_names([entry])[0] in _SUMMARY:
      raise UserError(
        f'{where}: the metric reward_{reward_names([entry])[0]} is that of all '
        'rewards together; give the function another name'
      )
    try:
      function = find_reward(name)
      _check_call(function, options)
      if name in REWARDS:
        function(_TRIAL, '', True, **options)
    except (TypeError, ValueError, re.error) as error:
      raise UserError(f'{where}: {error}') from None


def _check_call(function: Callable[..., float], options: dict) -> None:
  """Raises TypeError, naming the parameter, where a call would fail."""
  parameters = [*inspect.signature(function).parameters.values()]
  kinds = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
  )
  known = [p.name for p in parameters[3:] if p.kind in kinds]
  takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
  for name in options:
    if name not in known and not takes_any:
      raise TypeError(
        f'no option {name!r}; it has {", ".join(known) or "none"}'
      )
  try:
    inspect.signature(function).bind({}, '', True, **options)
  except TypeError as error:
    raise TypeError(
      f'{error}; a reward is called as (row, text, finished, **options)'
    ) from None


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
  """Refuses a row that lacks what its rewards read, or has it of another kind.

  Raises:
    UserError: naming the key.
  """
  for name, *_ in rewards:
    if name not in _READS:
      continue
    key, kind, is_kind = _READS[name]
    value = row.get(key)
    if value is None:
      raise UserError(f'has no {key!r}, which the reward {name} reads')
    if not is_kind(value):
      raise UserError(
        f'{key!r} is {str(value)[:100]!r}, and the reward {name} reads {kind}'
      )


def reward_names(rewards: Any) -> list[str]:
  """A name for each entry, for metrics: the second `matches` is `matches_2`."""
  names = []
  for entry in rewards:
    name = str(entry[0]).rpartition(':')[2]
    taken = sum(n == name or n.startswith(f'{name}_') for n in names)
    names.append(f'{name}_{taken + 1}' if taken else name)
  return names


def rate(entry: Any, row: dict[str, Any], text: str, finished: bool) -> float:
  """The reward of one entry's function, without its weight.

  Returns:
    A number; NaN for a completion that could not be rated.

  Raises:
    RunError: the function raises, or returns no number.
  """
  name, _, options = _parts(entry)
  try:
    return float(find_reward(name)(row, text, finished, **options))
  except (Exception, SystemExit) as error:  # one's own may fail in any way
    raise RunError(
      f'the reward {name} failed on the completion {text[:200]!r} of the row '
      f'{str(row)[:200]}: {type(error).__name__}: {error}'
    ) from error


def _parts(entry) -> tuple[Any, Any, Any]:
  name, weight, *options = entry
  return name, weight, options[0] if options else {}


def _number(value: Any) -> float:
  """Raises ValueError where a value is none."""
  found = numbers.only_value(str(value).rpartition('####')[2])
  if found is None:
    raise ValueError(f'{value!r} is no number')
  return found


def _is_number(value: Any) -> bool:
  try:
    return math.isfinite(_number(value)) and not isinstance(value, bool)
  except ValueError:
    return False


def _is_plain(value: Any) -> bool:
  return isinstance(value, (str, int, float)) and not isinstance(value, bool)


# By reward: the key of a row that it reads, as what, and whether it is that.
_READS = {
  'exact_answer': ('answer', 'a text or a number', _is_plain),
  'last_number': ('answer', "a number, or one after '####'", _is_number),
  'passes_tests': ('tests', 'a text', lambda value: isinstance(value, str)),
}


def _check_model(where: str, options: dict[str, Any]) -> None:
  if set(options) != {'path'} or not isinstance(options['path'], str):
    raise UserError(
      f"{where}: give the folder of the reward model, ('model', 1.0, "
      "{'path': PATH})"
    )
