"""The sampling settings of one request, checked on the host, once.

Configs, files and HTTP requests are turned into a `SamplingParams`. It cannot
exist with a wrong value: each field is checked when it is made, and
what depends on the model (`check_ids`) when the vocabulary is known. Its
counterpart on the device is `rows.RowSampling`.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import difflib
from typing import Any

from llm.errors import UserError

MAX_STOP_IDS = 16
"""Stop ids that one row can have, those of the model's EOS list included."""

# What a field accepts: (is it right, what would be right).
_POSITIVE_INT = (lambda x: x >= 1, 'an integer of 1 or more')
_COUNT = (lambda x: x >= 0, 'an integer of 0 or more')
_SHARE_OR_ZERO = (lambda x: 0.0 <= x <= 1.0, 'a number in [0, 1]')
_SHARE = (lambda x: 0.0 < x <= 1.0, 'a number in (0, 1]; 1 switches it off')
_CUTOFF = (lambda x: 0.0 <= x < 1.0, 'a number in [0, 1); 0 switches it off')
_ANY = (lambda x: True, 'a finite number; 0 switches it off')
# Larger settings would overflow float32 once they are added or multiplied.
_LARGEST = 1e9

_INTS = {
  'max_new_tokens': _POSITIVE_INT,
  'top_k': (_COUNT[0], 'an integer of 0 or more; 0 switches it off'),
  'no_repeat_ngram': (_COUNT[0], 'an integer of 0 or more; 0 switches it off'),
  'seed': (lambda x: 0 <= x < 2**32, 'an integer in [0, 2**32)'),
  'n': _POSITIVE_INT,
  'min_new_tokens': _COUNT,
  'logprobs': _COUNT,
  'dry_allowed_length': _COUNT,
}
_FLOATS = {
  # Below 1e-4 float32 logits over the temperature may overflow.
  'temperature': (
    lambda x: x == 0.0 or x >= 1e-4,
    '0 (greedy) or a number of 0.0001 or more',
  ),
  'top_p': _SHARE,
  'min_p': _SHARE_OR_ZERO,
  'typical_p': _SHARE,
  'epsilon': _CUTOFF,
  'eta': _CUTOFF,
  'repetition_penalty': (
    lambda x: x >= 1e-4,
    'a number of 0.0001 or more; 1 switches it off',
  ),
  'presence_penalty': _ANY,
  'frequency_penalty': _ANY,
  'dry_multiplier': (
    lambda x: x >= 0.0,
    'a number of 0 or more; 0 switches it off',
  ),
  'dry_base': (lambda x: x >= 1.0, 'a number of 1 or more'),
  'xtc_probability': _SHARE_OR_ZERO,
  # Two tokens cannot both have more than half: above 0.5 it never acts.
  'xtc_threshold': (
    lambda x: 0.0 < x <= 0.5,
    'a number in (0, 0.5]; set xtc_probability to 0 to switch XTC off',
  ),
}
_IDS = ('allowed_ids', 'forbidden_ids', 'stop_token_ids', 'dry_breakers')


@dataclasses.dataclass(frozen=True)
class SamplingParams:
  """The sampling settings of one request; defaults sample from the model.

  Raises:
    UserError: for a wrong value; the message names field, value and remedy.

  Attributes:
    max_new_tokens: how many tokens to write at most.
    temperature: divides the logits; 0 means greedy: the token of highest
      processed logit, no filter and no noise.
    top_k: keep the k most likely tokens and those equal to the k-th; 0 is off.
    top_p: keep the smallest set of most likely tokens that holds p; 1 is off.
    min_p: drop what is less likely than `min_p` times the likeliest; 0 is off.
    typical_p: keep the most typical tokens that hold this mass; 1 is off.
    epsilon: drop tokens less likely than this; 0 is off.
    eta: entropy-dependent cutoff; 0 is off.
    repetition_penalty: divides positive and multiplies negative logits of
      every token of the prompt and of the output; 1 is off.
    presence_penalty: subtracted from the logits of tokens in the output.
    frequency_penalty: subtracted once per occurrence in the output.
    no_repeat_ngram: no n-gram of this length occurs twice, prompt included.
    logit_bias: token id -> number added to its logit.
    allowed_ids: if not empty, only these ids can be drawn.
    forbidden_ids: ids that cannot be drawn.
    seed: of the noise; the tokens depend on params, prompt, seed and position
      alone.
    n: how many samples; sample i is that of a request with `seed + i` (see
      `expand`).
    stop: strings that end the text.
    stop_token_ids: ids that end it, beside those of the model.
    ignore_eos: do not stop at the model's end-of-sequence ids.
    min_new_tokens: no id that stops can be drawn before this many tokens.
    logprobs: number of most likely alternatives to report per token.
    dry_multiplier: strength of the DRY penalty on repeated sequences; 0 is off.
    dry_base: growth of the DRY penalty with each repeated token.
    dry_allowed_length: DRY penalises repetitions of this many tokens or more.
    dry_breakers: ids across which DRY counts no repetition.
    xtc_probability: chance per token that XTC acts; 0 is off.
    xtc_threshold: of tokens at least this likely, XTC keeps only the least
      likely one.
  """

  max_new_tokens: int = 128
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  typical_p: float = 1.0
  epsilon: float = 0.0
  eta: float = 0.0
  repetition_penalty: float = 1.0
  presence_penalty: float = 0.0
  frequency_penalty: float = 0.0
  no_repeat_ngram: int = 0
  logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
  allowed_ids: tuple[int, ...] = ()
  forbidden_ids: tuple[int, ...] = ()
  seed: int = 0
  n: int = 1
  stop: tuple[str, ...] = ()
  stop_token_ids: tuple[int, ...] = ()
  ignore_eos: bool = False
  min_new_tokens: int = 0
  logprobs: int = 0
  dry_multiplier: float = 0.0
  dry_base: float = 1.75
  dry_allowed_length: int = 2
  dry_breakers: tuple[int, ...] = ()
  xtc_probability: float = 0.0
  xtc_threshold: float = 0.1

  def __post_init__(self):
    _check(self)

  @classmethod
  def from_dict(
    cls, values: Mapping[str, Any], base: 'SamplingParams | None' = None
  ) -> 'SamplingParams':
    """Returns `base` (default: the defaults) overridden by `values`.

    Args:
      values: field name -> value, as read from JSON: lists serve as tuples,
        the keys of `logit_bias` may be strings of digits, `stop` may be one
        string.
      base: settings of the run that a row overrides.

    Raises:
      UserError: for an unknown key, with the nearest field's name, and for
        each wrong value.
    """
    if not isinstance(values, Mapping):
      raise UserError(
        f'sampling = {values!r}: must be an object of sampling fields'
      )
    known = [field.name for field in dataclasses.fields(cls)]
    for key in values:
      if key not in known:
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
        remedy = (
          f'did you mean {near[0]!r}?'
          if near
          else f'known fields are {", ".join(known)}'
        )
        raise UserError(f'sampling.{key} is unknown: {remedy}')
    return dataclasses.replace(base or cls(), **values)


def expand(params: SamplingParams) -> list[SamplingParams]:
  """Returns the `n` rows of a request: sample i has the seed `seed + i`."""
  return [
    dataclasses.replace(params, n=1, seed=(params.seed + i) % 2**32)
    for i in range(params.n)
  ]


def check_ids(
  params: SamplingParams, vocab_size: int, eos_ids: Iterable[int] = ()
) -> None:
  """Checks what depends on the model: ids, number of alternatives and stops.

  Args:
    params: settings that passed the checks of their own fields.
    vocab_size: number of logits.
    eos_ids: the model's end-of-sequence ids.

  Raises:
    UserError: an id is outside [0, vocab_size), nothing is left to draw, or
      there are more than `MAX_STOP_IDS` stop ids.
  """
  for name in (*_IDS, 'logit_bias'):
    for token in getattr(params, name):
      if token >= vocab_size:
        raise _wrong(
          name, token, f'ids of this model are below {vocab_size}, its '
          'vocabulary size',
        )  # fmt: skip
  if params.logprobs > vocab_size:
    raise _wrong(
      'logprobs', params.logprobs, f'this vocabulary has {vocab_size} tokens'
    )
  if len(set(params.forbidden_ids)) >= vocab_size:
    raise _wrong('forbidden_ids', '(all ids)', 'leave at least one id')
  stops = stop_ids(params, eos_ids)
  if len(stops) > MAX_STOP_IDS:
    raise _wrong(
      'stop_token_ids',
      params.stop_token_ids,
      f'at most {MAX_STOP_IDS} with the end-of-sequence ids of the model, '
      f'these are {len(stops)}',
    )


def stop_ids(params: SamplingParams, eos_ids: Iterable[int]) -> tuple[int, ...]:
  """Returns the ids that end a row: EOS (unless ignored) and its own."""
  eos = () if params.ignore_eos else tuple(eos_ids)
  return tuple(dict.fromkeys((*eos, *params.stop_token_ids)))


def _wrong(name: str, value: Any, remedy: str) -> UserError:
  return UserError(f'sampling.{name} = {value!r}: {remedy}')


def _check(params: SamplingParams) -> None:
  """Checks and normalises every field of `params` in place."""

  def put(name, value):
    object.__setattr__(params, name, value)

  for name, (is_right, remedy) in _INTS.items():
    value = getattr(params, name)
    if not _is_int(value) or not is_right(value):
      raise _wrong(name, value, f'must be {remedy}')
    put(name, int(value))
  for name, (is_right, remedy) in _FLOATS.items():
    value = getattr(params, name)
    if not _is_number(value) or not is_right(float(value)):
      limit = '' if ']' in remedy else f' (at most {_LARGEST:g})'
      raise _wrong(name, value, f'must be {remedy}{limit}')
    put(name, float(value))
  for name in _IDS:
    put(name, _checked_ids(name, getattr(params, name)))
  put('logit_bias', _checked_bias(params.logit_bias))
  put('stop', _checked_stop(params.stop))
  if not isinstance(params.ignore_eos, bool):
    raise _wrong('ignore_eos', params.ignore_eos, 'must be true or false')
  _check_together(params)


def _check_together(params: SamplingParams) -> None:
  if params.min_new_tokens > params.max_new_tokens:
    raise _wrong(
      'min_new_tokens',
      params.min_new_tokens,
      f'must not exceed max_new_tokens = {params.max_new_tokens}',
    )
  if params.allowed_ids and not (
    set(params.allowed_ids) - set(params.forbidden_ids)
  ):
    raise _wrong(
      'allowed_ids',
      params.allowed_ids,
      'forbidden_ids forbids all of them: leave at least one',
    )


def _is_int(value: Any) -> bool:
  # Index types such as numpy integers count; bool and float do not.
  return hasattr(value, '__index__') and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  """Whether `value` is finite and small enough for float32 arithmetic."""
  if isinstance(value, (str, bytes, bool)) or not hasattr(value, '__float__'):
    return False
  try:
    return abs(float(value)) <= _LARGEST
  except (OverflowError, TypeError, ValueError):
    return False


def _checked_ids(name: str, ids: Any) -> tuple[int, ...]:
  if isinstance(ids, (str, bytes, Mapping)) or not isinstance(ids, Iterable):
    raise _wrong(name, ids, 'must be a list of token ids')
  ids = tuple(ids)
  for token in ids:
    if not _is_int(token) or token < 0:
      raise _wrong(name, token, 'token ids are integers of 0 or more')
  return tuple(int(token) for token in ids)


def _checked_bias(bias: Any) -> dict[int, float]:
  if not isinstance(bias, Mapping):
    raise _wrong('logit_bias', bias, 'must map token ids to numbers')
  checked = {}
  for token, value in bias.items():
    # JSON has no integer keys.
    if isinstance(token, str) and token.isascii() and token.isdigit():
      token = int(token)
    if not _is_int(token) or token < 0:
      raise _wrong('logit_bias', token, 'keys are token ids, 0 or more')
    if not _is_number(value):
      raise _wrong(
        f'logit_bias[{token}]',
        value,
        f'must be a number of at most {_LARGEST:g} in magnitude; '
        'forbidden_ids bans a token',
      )
    checked[int(token)] = float(value)
  return checked


def _checked_stop(stop: Any) -> tuple[str, ...]:
  strings = (stop,) if isinstance(stop, str) else stop
  if not isinstance(strings, Iterable) or isinstance(strings, Mapping):
    raise _wrong('stop', stop, 'must be a string or a list of strings')
  strings = tuple(strings)
  for string in strings:
    if not isinstance(string, str) or not string:
      raise _wrong('stop', string, 'must be a string that is not empty')
  return strings
