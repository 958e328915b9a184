"""What the values of a Hugging Face `config.json` may be, key by key.

The file has no schema: a number written as text, a null or a minus sign would
be noticed only when some array has the wrong shape. So each key that `from_hf`
reads has one kind of value, checked before anything is computed from it.
"""

from collections.abc import Callable, Iterable
import sys
from typing import Any, NamedTuple

from llm.errors import UserError

TOKEN_KEYS = ('bos_token_id', 'eos_token_id', 'pad_token_id')
_REMEDY = 'fix it, or download the file again'
_MAX_SHOWN = 80


class Kind(NamedTuple):
  """What a value must be, in words and as a test."""

  what: str
  holds: Callable[[Any], bool]


def _is_integer(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  # Not math.isfinite, which fails for an integer that no float can hold.
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return number and abs(value) <= sys.float_info.max


def _list_of(what: str, kind: type) -> Kind:
  return Kind(
    f'a list of {what}',
    lambda value: (
      isinstance(value, (list, tuple)) and all(type(v) is kind for v in value)
    ),
  )


def _or_null(kind: Kind) -> Kind:
  return Kind(
    f'{kind.what} or null', lambda value: value is None or kind.holds(value)
  )


SIZE = Kind('a positive integer', lambda v: _is_integer(v) and v > 0)
POSITIVE = Kind('a number above 0', lambda v: _is_number(v) and v > 0)
NUMBER = Kind('a number of 0 or more', lambda v: _is_number(v) and v >= 0)
FLAG = Kind('true or false', lambda v: isinstance(v, bool))
_COUNT = Kind('an integer of 0 or more', lambda v: _is_integer(v) and v >= 0)
_TEXT = Kind('a string', lambda v: isinstance(v, str))
_OBJECT = Kind('an object', lambda v: isinstance(v, dict))
_KINDS = {
  SIZE: """
    vocab_size hidden_size intermediate_size num_hidden_layers
    num_attention_heads max_position_embeddings sliding_window_pattern
    num_local_experts num_experts num_experts_per_tok moe_intermediate_size
    decoder_sparse_step
  """,
  _or_null(SIZE): """
    num_key_value_heads head_dim sliding_window
    original_max_position_embeddings
  """,
  POSITIVE: 'rms_norm_eps query_pre_attn_scalar',
  _or_null(POSITIVE): """
    attn_logit_softcapping final_logit_softcapping rope_theta
    rope_local_base_freq partial_rotary_factor
  """,
  NUMBER: 'router_aux_loss_coef',
  _COUNT: 'max_window_layers',
  # transformers takes null for false.
  _or_null(FLAG): """
    attention_bias mlp_bias tie_word_embeddings use_sliding_window
    norm_topk_prob
  """,
  _TEXT: 'hidden_act hidden_activation',
  _or_null(_list_of('strings', str)): 'layer_types',
  _or_null(_list_of('integers', int)): 'mlp_only_layers',
  _or_null(_OBJECT): """
    rope_parameters rope_scaling rope_parameters.full_attention
    rope_parameters.sliding_attention
  """,
}
# key -> what it may hold.
KINDS = {key: kind for kind, keys in _KINDS.items() for key in keys.split()}


def shown(key: str, value: Any) -> str:
  """`key=value` for a message; a long value is cut."""
  text = repr(value)
  if len(text) > _MAX_SHOWN:
    text = f'{text[:_MAX_SHOWN]}…'
  return f'{key}={text}'


def check(key: str, value: Any, kind: Kind | None = None) -> Any:
  """Returns the value if the key may have it.

  Args:
    key: as the file has it.
    value: what the file has there.
    kind: what it must be; by default that of `KINDS`.

  Raises:
    UserError: it is something else.
  """
  kind = kind or KINDS[key]
  if not kind.holds(value):
    raise UserError(
      f'config.json: {shown(key, value)}: must be {kind.what}: {_REMEDY}'
    )
  return value


def check_all(values: dict, keys: Iterable[str]) -> None:
  """Checks those of the keys that are there and have a kind."""
  for key in keys:
    if key in values and key in KINDS:
      check(key, values[key])


def read_token_ids(file: str, raw: dict, vocab_size: int) -> dict:
  """The entries of BOS, EOS and PAD in a file, those that are there.

  Raises:
    UserError: one is no id of the vocabulary; the file and the key are named.
  """
  found = {key: raw[key] for key in TOKEN_KEYS if key in raw}
  if found.get('pad_token_id') == -1:
    found['pad_token_id'] = None  # how files of the first Llama say none
  for key, value in found.items():
    many = key == 'eos_token_id'
    ids = value if many and isinstance(value, (list, tuple)) else [value]
    if value is not None and not all(
      _is_integer(i) and 0 <= i < vocab_size for i in ids
    ):
      raise UserError(
        f'{file}: {shown(key, value)}: must be an id of the vocabulary (0 to '
        f'{vocab_size - 1}){", a list of them" if many else ""} or null: '
        f'{_REMEDY}'
      )
  return found
