"""Values that no config.json may hold: each is refused by its key."""

import pytest

from llm.checkpoints.hf.config import from_hf
from llm.checkpoints.hf.values import read_token_ids
from llm.errors import UserError

_SHAPE = dict(
  vocab_size=100,
  hidden_size=32,
  intermediate_size=64,
  num_hidden_layers=4,
  num_attention_heads=4,
  num_key_value_heads=2,
)


def _raw(model_type='llama', **changes):
  return {'model_type': model_type, **_SHAPE, **changes}


def _refusal(raw):
  with pytest.raises(UserError) as error:
    from_hf(raw)
  message = str(error.value)
  assert message.startswith('config.json: ') and message.count(': ') > 1
  return message


_WRONG = {
  'llama': [
    ('model_type', [['a'], 3, None]),
    ('vocab_size', [0, 2.0, True, '100', None]),
    ('max_position_embeddings', [0, -1, None, 1e3]),
    ('head_dim', [7, 0, -2, '8']),
    ('num_key_value_heads', [3, 0, 8, 'x']),
    ('rms_norm_eps', [-1, 0, 'x', None, float('nan'), float('inf')]),
    ('tie_word_embeddings', ['no', 1]),
    ('attention_bias', ['no', 0]),
    ('mlp_bias', [[]]),
    ('hidden_act', [['silu'], None]),
    ('layer_types', [3, 'full', [3], [['a']], ['full_attention'] * 3]),
    ('rope_theta', [-1, 0, '1e4', True, 10**400]),
    ('rope_parameters', [[1], 'x', 3]),
    ('rope_scaling', [[1], 'x']),
    ('partial_rotary_factor', ['x', -1]),
    ('original_max_position_embeddings', [0, 'x', 2.5]),
    ('bos_token_id', ['x', -1, 100, [1], True]),
    ('eos_token_id', ['2', [1, 'b'], [[1]], [None], 100, -1, [1, 999999]]),
    ('pad_token_id', ['x', 100, -2]),
  ],
  'mistral': [('sliding_window', [-3, 0, 2.5, 'x'])],
  'qwen2': [
    ('use_sliding_window', ['no', 1]),
    ('max_window_layers', [-1, 'x', None]),
  ],
  'gemma2': [
    ('query_pre_attn_scalar', [0, -1, 'x', None]),
    ('final_logit_softcapping', ['x', 0, -1.0]),
    ('attn_logit_softcapping', [0.0, float('inf')]),
  ],
  'gemma3_text': [
    ('sliding_window_pattern', [0, 'x']),
    ('rope_local_base_freq', [-1, 'x']),
  ],
  'mixtral': [
    ('num_local_experts', [0, 1, 'x']),
    ('num_experts_per_tok', [9, 0]),
    ('router_aux_loss_coef', [-1, 'x', None]),
  ],
  'qwen3_moe': [
    ('num_experts_per_tok', [129, 'x']),
    ('mlp_only_layers', [3, [77], [-1], ['a'], [True], 'x']),
    ('decoder_sparse_step', [0, None]),
    ('norm_topk_prob', ['yes']),
  ],
}
_CASES = [
  (model_type, key, value)
  for model_type, keys in _WRONG.items()
  for key, values in keys
  for value in values
]


@pytest.mark.parametrize('model_type, key, value', _CASES)
def test_wrong_values_are_refused_by_key(model_type, key, value):
  assert key in _refusal(_raw(model_type) | {key: value})


@pytest.mark.parametrize('key', ['full_attention', 'sliding_attention'])
@pytest.mark.parametrize('value', [3, [1], 'x'])
def test_rope_by_layer_type_is_made_of_objects(key, value):
  raw = _raw('gemma3_text', rope_parameters={key: value})
  assert f'rope_parameters.{key}={value!r}' in _refusal(raw)


@pytest.mark.parametrize(
  'changes, parts',
  [
    (dict(rope_theta=5), ['rope_theta=5', 'rope_parameters.rope_theta=']),
    (dict(rope_theta=-1), ['rope_theta=-1: must be a number above 0']),
    (
      dict(rope_scaling=dict(rope_type='linear', factor=2.0)),
      ["rope_parameters.rope_type='yarn'", "rope_scaling.rope_type='linear'"],
    ),
    (dict(partial_rotary_factor=0.5), ['partial_rotary_factor=0.5']),
  ],
)
def test_rope_that_is_said_twice_must_agree(changes, parts):
  said = dict(rope_theta=1e4, rope_type='yarn', factor=2.0)
  assert from_hf(_raw(rope_parameters=said, rope_theta=10000)).rope.factor == 2
  message = _refusal(_raw(rope_parameters=said, **changes))
  assert all(part in message for part in parts)


def test_gemma3_rope_that_is_said_twice_must_agree():
  raw = _raw(
    'gemma3_text',
    rope_local_base_freq=5,
    rope_parameters=dict(sliding_attention=dict(rope_theta=1e4)),
  )
  message = _refusal(raw)
  assert 'rope_local_base_freq=5' in message
  assert 'rope_parameters.sliding_attention.rope_theta=10000.0' in message


@pytest.mark.parametrize(
  'key, value',
  [
    ('rope_type', ['a']),
    ('factor', 'x'),
    ('factor', float('nan')),
    ('beta_fast', 0),
    ('mscale', -1),
    ('truncate', 'no'),
    ('original_max_position_embeddings', 0),
  ],
)
def test_wrong_rope_values_are_refused_by_key(key, value):
  scaling = {'rope_type': 'yarn', 'factor': 2.0, key: value}
  assert f'{key}={value!r}' in _refusal(_raw(rope_scaling=scaling))


@pytest.mark.parametrize('factors', [[1, 2, 3, 'x'], [1, 2, 3, 0], [1], 3])
def test_longrope_factors(factors):
  scaling = dict(type='longrope', short_factor=[1.0] * 4, long_factor=factors)
  assert 'long_factor' in _refusal(_raw(rope_scaling=scaling))


def test_llama3_frequencies_are_in_order():
  scaling = dict(
    rope_type='llama3', factor=8, low_freq_factor=4, high_freq_factor=4
  )
  message = _refusal(_raw(rope_scaling=scaling))
  assert 'low_freq_factor=4 is not below high_freq_factor=4' in message


def test_rotary_numbers_come_in_pairs():
  raw = _raw('phi3', partial_rotary_factor=0.7)
  assert 'turns 5 of head_dim=8' in _refusal(raw)
  raw = _raw('phi3', partial_rotary_factor=2)
  assert 'turns 16 of head_dim=8' in _refusal(raw)


def test_messages_name_the_files_keys_and_a_default():
  message = _refusal(_raw('qwen3_moe', num_experts=4))
  assert (
    'num_experts_per_tok=8 (the default) is more than num_experts=4: set both'
    in message
  )
  message = _refusal(_raw(num_key_value_heads=3))
  assert 'num_attention_heads=4 is not a multiple of' in message
  assert 'num_key_value_heads=3: set both' in message
  message = _refusal(_raw(eos_token_id=100))
  assert 'eos_token_id=100: must be an id of the vocabulary' in message
  assert '(0 to 99), a list of them or null: fix it' in message
  message = _refusal(_raw(eos_token_id=['x'] * 10_000))
  assert len(message) < 250


def test_nulls_and_old_spellings_that_stand_for_nothing():
  config = from_hf(
    _raw(
      attention_bias=None,
      bos_token_id=None,
      eos_token_id=[],
      head_dim=None,
      layer_types=None,
      pad_token_id=-1,
      rope_parameters=None,
      rope_scaling=None,
      rope_theta=None,
    )
  )
  assert (config.bos_id, config.eos_ids, config.pad_id) == (None, (), None)
  assert config.head_dim == 8 and config.rope.theta == 1e4
  # The defaults of a family are ids of its own vocabulary.
  assert from_hf(_raw('olmo2')).eos_ids == ()
  assert from_hf(_raw('olmo2', vocab_size=50280)).eos_ids == (50279,)


@pytest.mark.parametrize(
  'raw',
  [{'eos_token_id': 'x'}, {'bos_token_id': [1]}, {'pad_token_id': 10}],
)
def test_ids_of_other_files_are_checked(raw):
  [(key, value)] = raw.items()
  with pytest.raises(UserError) as error:
    read_token_ids('generation_config.json', raw, 10)
  assert str(error.value).startswith(
    f'generation_config.json: {key}={value!r}: must be an id'
  )
  assert read_token_ids('g', {'eos_token_id': [1, 9], 'top_k': 3}, 10) == {
    'eos_token_id': [1, 9]
  }
