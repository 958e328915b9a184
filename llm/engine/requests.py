"""Prompts with their sampling settings, checked before any work starts."""

import ast
from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
from typing import Any

from llm import config_args
from llm.decode.sampling_params import SamplingParams, check_ids, expand
from llm.engine.sampling_defaults import check_defaults
from llm.errors import UserError
from llm.models.config import ModelConfig, length_limit
from llm.text import chat_options, json_rows
from llm.text.chat_options import ChatOptions
from llm.text.turn_end import turn_end

ROW_KEYS = (
  'prompt', 'messages', 'token_ids', 'sampling', *chat_options.FIELDS,
)  # fmt: skip
DEFAULT_NEW_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Request:
  """One prompt, ready for the model.

  `prompt` is what the user wrote: the text, the rendered messages, or None for
  bare token ids without a tokenizer. `tokens` includes BOS where the tokenizer
  puts one. `sampling.n` completions are wanted. `continues` says that prompt
  and completion are one text; an assistant's message is a text of its own.
  """

  index: int
  prompt: str | None
  tokens: tuple[int, ...]
  sampling: SamplingParams
  continues: bool = True


@dataclasses.dataclass(frozen=True)
class Sample:
  """One completion to make: the `number`-th of a request, with its own seed."""

  request: Request
  number: int
  sampling: SamplingParams


@dataclasses.dataclass(frozen=True)
class Limits:
  """What the model and the cache allow: tokens in a row, and token ids."""

  max_length: int
  vocab_size: int
  eos_ids: tuple[int, ...] = ()
  name: str = 'model.max_length'  # the field that max_length comes from


def model_limits(config: ModelConfig) -> Limits:
  """What a model of this shape allows."""
  return Limits(length_limit(config), config.vocab_size, config.eos_ids)


def make_samples(requests: Sequence[Request]) -> list[Sample]:
  """The `sampling.n` samples of each request, in order.

  Two requests with n = 2 and seed 5 give samples with the seeds 5, 6, 5, 6.
  """
  return [
    Sample(request, number, sampling)
    for request in requests
    for number, sampling in enumerate(expand(request.sampling))
  ]


def read_jsonl(path: str, field: str) -> Iterator[tuple[str, dict]]:
  """Yields (where, object) for each line that is not blank.

  `where` names file and line for error messages, `field` is the config field
  that holds the path.

  Raises:
    UserError: no such file, or a line that is not one JSON object in UTF-8.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    what = 'is a folder' if file.is_dir() else 'does not exist'
    raise UserError(f'{field}={path!r} {what}: name a JSONL file')
  empty, parser = True, json_rows.Parser()
  for number, line in enumerate(file.read_bytes().split(b'\n'), 1):
    where = f'{field}={path!r}, line {number}'
    try:
      text = line.decode('utf-8-sig')
    except UnicodeDecodeError as error:
      raise UserError(
        f'{where}: not UTF-8 at byte {error.start} of the line'
      ) from None
    if not text.strip():
      continue
    row = parser.row(text)
    if isinstance(row, json_rows.Bad):
      raise UserError(f'{where}: {row.why}')
    if not isinstance(row, dict):
      raise UserError(f'{where}: a JSON object is needed, not {_show(row)}')
    empty = False
    yield where, row
  if empty:
    raise UserError(f'{field}={path!r} holds no rows')


def read_requests(
  path: str,
  tokenizer,
  sampling: dict,
  limits: Limits,
  options: ChatOptions = ChatOptions(),
) -> list[Request]:
  """Reads and checks a whole file of prompts.

  Args:
    path: JSONL; each row has one of `prompt`, `messages`, `token_ids`, and
      optionally a `sampling` object that overrides `sampling`. One with
      messages may have the columns `chat_options.FIELDS`.
    tokenizer: of the model; None serves rows of token ids only.
    sampling: the run's settings, as the keyword arguments of SamplingParams.
    limits: what fits.
    options: how the run renders messages.

  Raises:
    UserError: the first bad row, by its line, field and value.
  """
  requests = []
  for where, row in read_jsonl(path, 'prompts_file'):
    settings = row_sampling(row, sampling, where)
    prompt, tokens = prompt_tokens(row, tokenizer, where, options)
    request = make_request(
      len(requests),
      prompt,
      tokens,
      settings,
      limits,
      where,
      continues='messages' not in row,
      tokenizer=tokenizer,
    )
    requests.append(request)
  return requests


def check_first_request(
  path: str, sampling: dict, options: ChatOptions = ChatOptions()
) -> None:
  """Refuses a file whose first row is broken, whatever the model is.

  Args:
    path, sampling, options: as for `read_requests`.

  Raises:
    UserError: the file or the row, by its line, field and value.
  """
  where, row = next(read_jsonl(path, 'prompts_file'))
  settings = row_sampling(row, sampling, where)
  parse_prompt(row, where, options)
  if settings.get('max_new_tokens') is None:  # what fits the model
    settings.pop('max_new_tokens', None)
  try:
    SamplingParams.from_dict(settings)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None


def row_sampling(row: dict, sampling: dict, where: str) -> dict:
  """The run's settings with those of a row, whose keys are checked."""
  check_keys(row, ROW_KEYS, where)
  own = row.get('sampling', {})
  if not isinstance(own, dict):
    raise UserError(f'{where}: sampling={_show(own)}: give an object')
  return {**sampling, **own}


def parse_prompt(
  row: dict, where: str, options: ChatOptions = ChatOptions()
) -> tuple[str, Any, ChatOptions]:
  """A row's only prompt: its key, its value, and how it is to be rendered."""
  given = [key for key in ('prompt', 'messages', 'token_ids') if key in row]
  if len(given) != 1:
    raise UserError(
      f'{where}: has {" and ".join(given) or "no prompt"}: give exactly one of '
      'prompt, messages, token_ids'
    )
  value = row[given[0]]
  if given[0] == 'token_ids':
    value = token_list(value, 'token_ids', where)
  if given[0] == 'prompt' and not isinstance(value, str):
    raise UserError(f'{where}: prompt={_show(value)}: give a string')
  messages = value if given[0] == 'messages' else None
  try:
    options = chat_options.row_options(row, messages, options)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None
  return given[0], value, options


def prompt_tokens(
  row: dict, tokenizer, where: str, options: ChatOptions = ChatOptions()
) -> tuple[str | None, tuple]:
  """Text and token ids of a row's only prompt, in whichever form it comes."""
  form, value, options = parse_prompt(row, where, options)
  if form == 'token_ids':
    tokens, text = value, None
    if tokenizer and all(0 <= t < tokenizer.vocab_size for t in tokens):
      text = tokenizer.decode(list(tokens), skip_special=False)
    return text, tokens
  if tokenizer is None:
    raise UserError(
      f'{where}: {form} needs a tokenizer and none lies beside the model: '
      'set tokenizer.path, or give token_ids'
    )
  try:
    if form == 'prompt':
      return value, tuple(tokenizer.encode_prompt(value))
    text = chat_options.render(tokenizer, value, options)
    return text, tuple(tokenizer.encode(text, bos=False))
  except UserError as error:
    raise UserError(f'{where}: {error}') from None


def make_request(
  index: int,
  prompt: str | None,
  tokens: tuple[int, ...],
  sampling: dict,
  limits: Limits,
  where: str,
  continues: bool = True,
  tokenizer: Any = None,
) -> Request:
  """Checks one prompt with its settings against what fits.

  A message of the assistant, which has continues=False, also ends where the
  tokenizer's chat template ends one.
  """
  check_tokens(tokens, limits, where)
  room = limits.max_length - len(tokens)
  if not tokens:
    raise UserError(
      f'{where}: the prompt is empty and the tokenizer has no BOS token to '
      'start from: give at least one token'
    )
  if room < 1:
    raise UserError(
      f'{where}: the prompt has {len(tokens)} tokens and {limits.name}='
      f'{limits.max_length} must also hold a completion: shorten it to at most '
      f'{limits.max_length - 1}'
    )
  settings = dict(sampling)
  if settings.get('max_new_tokens') is None:
    settings['max_new_tokens'] = min(DEFAULT_NEW_TOKENS, room)
  try:
    params = SamplingParams.from_dict(settings)
    if not continues:
      params = with_turn_end(params, tokenizer)
    check_ids(params, limits.vocab_size, limits.eos_ids)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None
  if params.max_new_tokens > room:
    raise UserError(
      f'{where}: {len(tokens)} prompt tokens and sampling.max_new_tokens='
      f'{params.max_new_tokens} make {len(tokens) + params.max_new_tokens}, '
      f'more than {limits.name}={limits.max_length}: at most {room} new tokens '
      'fit'
    )
  return Request(index, prompt, tuple(tokens), params, continues)


def with_turn_end(params: SamplingParams, tokenizer: Any) -> SamplingParams:
  """The settings with the end of an assistant's turn among the stops.

  Args:
    params: with `ignore_eos` they stay as they are.
    tokenizer: whose chat template says what ends a turn; or None.
  """
  end = None if tokenizer is None else turn_end(tokenizer)
  if end is None or params.ignore_eos or end in params.stop_token_ids:
    return params
  stops = (*params.stop_token_ids, end)
  return dataclasses.replace(params, stop_token_ids=stops)


def run_sampling(config) -> dict:
  """The run's `sampling` fields that are set, as plain Python values.

  Raises:
    UserError: one of them is wrong by itself.
  """
  fields = {k: v for k, v in config.to_dict().items() if v is not None}
  check_defaults(fields.pop('defaults', None))
  bias = fields.get('logit_bias')
  if isinstance(bias, str):
    try:
      fields['logit_bias'] = ast.literal_eval(bias)
    except (ValueError, SyntaxError):
      raise UserError(
        f'sampling.logit_bias={bias!r}: write \'{{"TOKEN_ID": BIAS, …}}\''
      ) from None
  SamplingParams.from_dict(fields)
  return fields


def check_keys(row: dict, allowed: tuple[str, ...], where: str) -> None:
  """Refuses a key that would otherwise be dropped silently."""
  for key in row:
    if key not in allowed:
      hint = config_args.hint(key, allowed)
      raise UserError(f'{where}: unknown key {key!r}{hint}')


def token_list(value, field: str, where: str) -> tuple[int, ...]:
  """`value` as token ids; refuses what is not a list of integers."""
  if not isinstance(value, list) or any(type(t) is not int for t in value):
    raise UserError(f'{where}: {field}={_show(value)}: give a list of integers')
  return tuple(value)


def check_tokens(tokens: tuple[int, ...], limits: Limits, where: str) -> None:
  """Refuses ids outside of the vocabulary and rows that are too long."""
  for i, token in enumerate(tokens):
    if not 0 <= token < limits.vocab_size:
      raise UserError(
        f'{where}: token_ids[{i}]={token}: the vocabulary has ids 0 to '
        f'{limits.vocab_size - 1}'
      )
  if len(tokens) > limits.max_length:
    raise UserError(
      f'{where}: {len(tokens)} tokens are more than {limits.name}='
      f'{limits.max_length}: shorten the row to at most {limits.max_length}'
    )


def _show(value) -> str:
  text = repr(value)
  return text if len(text) <= 60 else text[:57] + '…'
