import numpy as np
import pytest

from llm.decode import generate as generate_lib
from llm.decode import rollout
from llm.decode.completion import Completion
from llm.decode.rollout import (
  completion_arrays,
  rows_after_prompts,
  sample_completions,
)
from tests.models import tiny

PROMPTS = [(3, 4, 5), (6, 7, 8, 9, 10)]


@pytest.fixture(scope='module')
def sample():
  model, params = tiny.build(num_layers=1)

  def sample(prompts=PROMPTS, group_size=4, seed=(0, 1), **settings):
    settings = {
      'max_new_tokens': 6, 'temperature': 1.5, 'eos_ids': (2,)
    } | settings  # fmt: skip
    return sample_completions(
      model, params, prompts, group_size=group_size, seed=seed, **settings
    )

  return sample


def ids(answers):
  return [answer.token_ids for answer in answers]


def answer(token_ids, logprobs, reason):
  return Completion(
    token_ids, [9.0] * len(token_ids), logprobs, [], [], [], reason, 0, {}
  )


ANSWERS = [
  answer([7, 8], [-0.5, -0.25], 'stop'),
  answer([9], [-2.0], 'length'),
]


def test_rows_after_prompts_read_what_predicts_the_answer():
  batch = rows_after_prompts([(4, 5, 6), (3,)], ANSWERS)

  def row(*values):
    return list(values) + [0] * (16 - len(values))

  assert {k: v.tolist() for k, v in batch.items()} == {
    'tokens': [row(6, 7), row(3)],
    'targets': [row(7, 8), row(9)],
    'positions': [row(2, 3), row(0)],
    'mask': [row(1, 1), row(1)],
    'old_logprobs': [row(-0.5, -0.25), row(-2.0)],
    'prompt_tokens': [row(4, 5), row()],
    'prompt_lengths': [2, 0],
  }
  kinds = {k: v.dtype for k, v in batch.items()}
  assert kinds.pop('mask') == np.dtype(bool)
  assert kinds.pop('old_logprobs') == np.dtype(np.float32)
  assert set(kinds.values()) == {np.dtype(np.int32)}


def test_arrays_stand_where_tokens_are_predicted():
  batch = completion_arrays([(4, 5), (6,)], ANSWERS)
  width = batch['tokens'].shape[1]
  assert width >= 4

  def row(*values):
    return list(values) + [0] * (width - len(values))

  assert batch['tokens'].tolist() == [row(4, 5, 7, 8), row(6, 9)]
  assert batch['segment_ids'].tolist() == [row(1, 1, 1, 1), row(1, 1)]
  assert batch['positions'].tolist() == [row(0, 1, 2, 3), row(0, 1)]
  assert batch['loss_mask'].tolist() == [row(0, 0, 1, 1), row(0, 1)]
  assert batch['old_logprobs'].tolist() == [row(0, -0.5, -0.25), row(-2.0)]
  kinds = {k: v.dtype for k, v in batch.items()}
  assert kinds == {
    'tokens': np.int32,
    'segment_ids': np.int32,
    'positions': np.int32,
    'loss_mask': bool,
    'old_logprobs': np.float32,
  }


def test_answers_follow_from_the_seed(sample):
  answers = sample()
  assert ids(sample()) == ids(answers)
  assert ids(sample(seed=(0, 2))) != ids(answers)
  # Answers to one prompt differ, and end at the end token or the limit.
  assert len({tuple(a.token_ids) for a in answers[:4]}) > 1
  for a in answers:
    assert 2 not in a.token_ids[:-1] and len(a.token_ids) <= 6
    assert (a.finish_reason == 'stop') == (a.token_ids[-1] == 2)
    assert all(x < 0 for x in a.logprobs_processed)


def test_an_answer_does_not_depend_on_the_prompts_beside_it(sample):
  both = sample()
  beside_another = sample([PROMPTS[0], (11, 12, 13, 14, 15, 16, 17)])
  assert ids(beside_another[:4]) == ids(both[:4])
  assert ids(beside_another[4:]) != ids(both[4:])
  for one, other in zip(beside_another[:4], both[:4], strict=True):
    np.testing.assert_allclose(
      one.logprobs_processed, other.logprobs_processed, atol=1e-5
    )


def test_answers_are_those_of_all_stages(sample, monkeypatch):
  """Stages that are left out of the program would have changed nothing."""
  answers = sample()
  real = generate_lib.generate

  def with_all(*args, order, **kwargs):
    assert order == ('temperature',)
    return real(*args, **kwargs)

  monkeypatch.setattr(rollout, 'generate', with_all)
  full = sample()
  assert ids(full) == ids(answers)
  for one, other in zip(full, answers, strict=True):
    np.testing.assert_allclose(
      one.logprobs_processed, other.logprobs_processed, atol=1e-6
    )


def test_a_group_shares_one_prefill(sample, monkeypatch):
  rows = []
  prefill = generate_lib.prefill

  def counted(params, tokens, lengths, *args, **kwargs):
    rows.append(tokens.shape[0])
    return prefill(params, tokens, lengths, *args, **kwargs)

  monkeypatch.setattr(generate_lib, 'prefill', counted)
  assert len(sample()) == 8
  assert rows == [2]


def test_temperature_zero_is_greedy(sample):
  answers = sample(group_size=4, temperature=0.0)
  assert len({tuple(a.token_ids) for a in answers[:4]}) == 1


def test_chunks_are_even_and_reach_the_longest_answer():
  steps = {n: rollout._chunk_steps(n) for n in (1, 2, 4, 17, 18, 48, 128)}
  assert steps == {1: 1, 2: 1, 4: 3, 17: 16, 18: 9, 48: 16, 128: 16}
