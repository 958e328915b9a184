"""Rewards that need no model: functions of a row and an answer's text.

Each is `(row, text, finished, **options) -> float`; `finished` says that the
answer came to its end before it was cut off.
"""

import os
import re
import resource
import subprocess
import sys
import tempfile
from typing import Any

from llm.errors import UserError


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
  """1 if the whole text has the form of a regular expression."""
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
  return -min(max(len(text) / characters - 1.0, 0.0), 1.0)


def passes_tests(
  row: dict[str, Any],
  text: str,
  finished: bool,
  *,
  seconds: float = 2.0,
  megabytes: int = 512,
) -> float:
  """1 if the text, a Python program with the row's `tests` after it, exits 0.

  It runs in a process of its own, isolated from site packages, in an empty
  folder, with bounds on time, memory, files and processes. That keeps
  accidents in; it is no jail for hostile code.
  """
  del finished
  program = f'{text}\n\n{row["tests"]}\n'

  def limit():
    size = megabytes << 20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))

  with tempfile.TemporaryDirectory() as folder:
    try:
      done = subprocess.run(
        [sys.executable, '-I', '-c', program],
        cwd=folder,
        env={'PATH': os.defpath},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=seconds,
        preexec_fn=limit,
        check=False,
      )
    except subprocess.TimeoutExpired:
      return 0.0
  return float(done.returncode == 0)


REWARDS = {
  'brevity': brevity,
  'ends': ends,
  'exact_answer': exact_answer,
  'last_number': last_number,
  'matches': matches,
  'passes_tests': passes_tests,
}
_NEEDS = {
  'exact_answer': 'answer',
  'last_number': 'answer',
  'passes_tests': 'tests',
}


def check_rewards(rewards: Any) -> None:
  """Refuses what is no tuple of (name, weight) or (name, weight, options).

  Raises:
    UserError: naming the entry.
  """
  for entry in rewards:
    name = f'rewards: {entry!r}'
    if not isinstance(entry, (tuple, list)) or len(entry) not in (2, 3):
      raise UserError(f'{name}: give (name, weight) or (name, weight, options)')
    if entry[0] not in REWARDS:
      raise UserError(
        f'{name}: no such reward; use one of {", ".join(REWARDS)}'
      )
    if len(entry) == 3 and not isinstance(entry[2], dict):
      raise UserError(f'{name}: the options are a dict of keywords')
    try:
      row = {'answer': '1', 'tests': 'assert True'}
      options = entry[2] if len(entry) == 3 else {}
      if entry[0] != 'passes_tests':
        REWARDS[entry[0]](row, '', True, **options)
    except (TypeError, re.error) as error:
      raise UserError(f'{name}: {error}') from None


def check_row(rewards: Any, row: dict[str, Any]) -> None:
  """Refuses a row that lacks what its rewards read.

  Raises:
    UserError: naming the key.
  """
  for entry in rewards:
    key = _NEEDS.get(entry[0])
    if key is not None and key not in row:
      raise UserError(f'has no {key!r}, which the reward {entry[0]} reads')


def rate(
  rewards: Any, row: dict[str, Any], text: str, finished: bool
) -> tuple[float, dict[str, float]]:
  """(weighted sum, each reward by its name, without its weight)."""
  parts, total = {}, 0.0
  for name, weight, *options in rewards:
    value = REWARDS[name](
      row, text, finished, **(options[0] if options else {})
    )
    parts[name] = value
    total += weight * value
  return total, parts
