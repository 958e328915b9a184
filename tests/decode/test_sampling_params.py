"""Sampling settings: what is refused and how, and what rows become of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.decode.rows import append, init_history, stack_rows
from llm.decode.sampling_params import SamplingParams, check_ids, expand
from llm.errors import UserError


@pytest.mark.parametrize(
  ('field', 'values', 'remedy'),
  [
    ('temperature', [-0.1, float('nan'), float('inf'), '1', True, 1e-9], '0 ('),
    ('top_k', [-1, 1.5, '5', True, None], '0 or more'),
    ('top_p', [0.0, -0.5, 1.01, float('nan')], '(0, 1]'),
    ('min_p', [-0.1, 1.1], '[0, 1]'),
    ('typical_p', [0.0, 2.0], '(0, 1]'),
    ('epsilon', [1.0, -0.1], '[0, 1)'),
    ('eta', [1.0, -0.1], '[0, 1)'),
    ('repetition_penalty', [0.0, -1.0], '0.0001 or more'),
    ('presence_penalty', [float('inf'), 'much', 10**400], 'finite'),
    ('frequency_penalty', [float('nan'), [1], 1e10], 'at most 1e+09'),
    ('no_repeat_ngram', [-1, 2.0], '0 or more'),
    ('seed', [-1, 2**32, 0.5], '2**32'),
    ('n', [0], '1 or more'),
    ('max_new_tokens', [0, -1], '1 or more'),
    ('min_new_tokens', [-1, 129], 'm'),
    ('logprobs', [-1, True], '0 or more'),
    ('logit_bias', [{'a': 1}, {1: 'x'}, {-1: 1}, {2: float('-inf')}, [1]], ''),
    ('allowed_ids', [3, [-1], ['a'], '12'], 'ids'),
    ('forbidden_ids', [[1.5]], 'ids'),
    ('stop', ['', [1], 5, ['']], 'string'),
    ('stop_token_ids', [[-1]], 'ids'),
    ('ignore_eos', [1, 'yes'], 'true or false'),
    ('dry_multiplier', [-1.0], '0 or more'),
    ('dry_base', [0.5], '1 or more'),
    ('dry_allowed_length', [-1], '0 or more'),
    ('dry_breakers', [[-2]], 'ids'),
    ('xtc_probability', [1.5], '[0, 1]'),
    ('xtc_threshold', [0.0, 0.6], '(0, 0.5]'),
  ],
)
def test_wrong_values_are_refused_by_name(field, values, remedy):
  for value in values:
    with pytest.raises(UserError) as error:
      SamplingParams.from_dict({field: value})
    message = str(error.value)
    assert message.startswith(f'sampling.{field}'), message
    assert remedy in message


def test_every_field_is_checked_and_documented():
  assert len(dataclasses.fields(SamplingParams)) == 28
  for field in dataclasses.fields(SamplingParams):
    with pytest.raises(UserError):
      SamplingParams(**{field.name: object()})
    assert f'    {field.name}: ' in SamplingParams.__doc__


def test_from_dict_overrides_a_base_and_reads_json():
  base = SamplingParams(temperature=0.5, top_k=7)
  out = SamplingParams.from_dict(
    {'top_p': 1, 'logit_bias': {'5': -3}, 'stop': '\n', 'allowed_ids': [5, 6]},
    base,
  )
  assert (out.temperature, out.top_k, out.top_p) == (0.5, 7, 1.0)
  assert isinstance(out.top_p, float)
  assert out.logit_bias == {5: -3.0}
  assert (out.stop, out.allowed_ids) == (('\n',), (5, 6))
  assert SamplingParams.from_dict({}) == SamplingParams()


def test_unknown_keys_name_the_nearest_field():
  with pytest.raises(UserError, match="sampling.temprature .* 'temperature'"):
    SamplingParams.from_dict({'temprature': 1.0})
  with pytest.raises(UserError, match='known fields are max_new_tokens'):
    SamplingParams.from_dict({'zzz': 1.0})
  with pytest.raises(UserError, match='must be an object'):
    SamplingParams.from_dict([1])


def test_what_depends_on_the_model():
  check_ids(SamplingParams(allowed_ids=(9,)), 10)
  for field in ('allowed_ids', 'forbidden_ids', 'stop_token_ids'):
    with pytest.raises(UserError, match=f'sampling.{field} = 10: .* below 10'):
      check_ids(SamplingParams(**{field: (10,)}), 10)
  with pytest.raises(UserError, match='sampling.logit_bias = 12'):
    check_ids(SamplingParams(logit_bias={12: 1.0}), 10)
  with pytest.raises(UserError, match='logprobs = 11'):
    check_ids(SamplingParams(logprobs=11), 10)
  with pytest.raises(UserError, match='leave at least one'):
    check_ids(SamplingParams(forbidden_ids=range(10)), 10)
  with pytest.raises(UserError, match='forbids all of them'):
    SamplingParams(allowed_ids=(1,), forbidden_ids=(1, 2))
  with pytest.raises(UserError, match='at most 16 .* these are 17'):
    check_ids(SamplingParams(stop_token_ids=range(16)), 99, eos_ids=(50,))


def test_expand_gives_each_sample_a_seed_of_its_own():
  rows = expand(SamplingParams(n=3, seed=2**32 - 1, top_k=4))
  assert [(row.n, row.seed, row.top_k) for row in rows] == [
    (1, 2**32 - 1, 4),
    (1, 0, 4),
    (1, 1, 4),
  ]


def test_stack_rows():
  rows = stack_rows(
    [
      SamplingParams(top_p=0.8, top_k=10**12, dry_breakers=(1,)),
      SamplingParams(allowed_ids=(1, 2), logit_bias={2: 0.5}, ignore_eos=True),
      SamplingParams(forbidden_ids=(0, 3), stop_token_ids=(1, 4), seed=7),
    ],
    vocab_size=5,
    eos_ids=(4,),
  )
  inf = np.inf
  np.testing.assert_array_equal(
    rows.bias,
    [[0.0] * 5, [-inf, 0.0, 0.5, -inf, -inf], [-inf, 0.0, 0.0, -inf, 0.0]],
  )
  assert rows.biased.tolist() == [False, True, True]
  assert rows.top_k.tolist() == [2**30, 0, 0]
  assert rows.top_p_cut[0] == np.float32(0.2)
  assert rows.top_p_cut[1] == 0.0
  assert [[i for i in row if i >= 0] for row in rows.stop_ids.tolist()] == [
    [4],
    [],
    [4, 1],
  ]
  assert rows.dry_breakers.tolist()[0] == [False, True, False, False, False]
  root = jax.random.key(0, impl='threefry2x32')
  assert rows.key[2] == jax.random.fold_in(root, 7)


def test_history_counts_the_output_and_not_the_padding():
  history = init_history(
    jnp.array([[1, 2, 0], [3, 3, 3]]), jnp.array([2, 3]), 5, capacity=4
  )
  assert history.prompt_seen.tolist() == [
    [False, True, True, False, False],
    [False, False, False, True, False],
  ]
  history = append(history, jnp.array([4, 1]), jnp.array([True, False]))
  history = append(history, jnp.array([4, 2]), jnp.array([True, True]))
  # A row that is full keeps its tokens.
  history = append(history, jnp.array([1, 2]), jnp.array([False, True]))
  assert history.tokens.tolist() == [[1, 2, 4, 4], [3, 3, 3, 2]]
  assert history.length.tolist() == [4, 5]
  assert history.prompt_length.tolist() == [2, 3]
  assert history.output_counts.tolist() == [[0, 0, 0, 0, 2], [0, 0, 2, 0, 0]]
  with pytest.raises(ValueError, match='capacity = 2: must hold the 3'):
    init_history(jnp.zeros((1, 3), jnp.int32), jnp.array([3]), 5, capacity=2)
