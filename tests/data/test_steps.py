"""Answers in labelled steps, by hand."""

import json

import numpy as np
import pytest

from llm.data.steps import load_steps
from llm.errors import UserError
from llm.text import chat
from llm.text.tokenizer import load_tokenizer
from tests.data.conftest import CHATML

BOS = 256
GOOD = {'prompt': 'q:', 'completions': ['ab', 'c'], 'labels': [True, False]}


@pytest.fixture(scope='module')
def tok():
  return load_tokenizer('bytes')


@pytest.fixture
def load(tmp_path, tok):
  """load(row, …, **options) -> (answers, held out)."""

  def load(*rows, tok=tok, **options):
    path = tmp_path / 'steps.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n')
    return load_steps(str(path), tok, **({'max_length': 64} | options))

  return load


def test_by_hand(load):
  answers, _ = load(GOOD, {**GOOD, 'labels': [0, 1]})
  for example in answers.examples:
    np.testing.assert_array_equal(example.tokens, [BOS, *b'q:ab\nc\n'])
    np.testing.assert_array_equal(example.loss_mask, [0, 0, 0, 0, 0, 1, 0, 1])
  labels = np.flatnonzero(answers.labels)
  assert labels.tolist() == [5, 8 + 7] and answers.labels.dtype == np.float32
  assert answers.counts['steps'] == 4
  assert answers.examples.digest != load(GOOD, GOOD)[0].examples.digest


def test_separators(load):
  (answers, _), (none, _) = (load(GOOD, separator=s) for s in ('##', ''))
  np.testing.assert_array_equal(
    answers.examples[0].tokens, [BOS, *b'q:ab##c##']
  )
  assert np.flatnonzero(answers.examples[0].loss_mask).tolist() == [6, 9]
  np.testing.assert_array_equal(none.examples[0].tokens, [BOS, *b'q:abc'])
  assert np.flatnonzero(none.examples[0].loss_mask).tolist() == [4, 5]


def test_a_step_ends_with_a_token(load, with_template):
  """Steps are tokenized apart, so that no token lies across two of them."""
  tok = with_template(CHATML)
  row = {
    'prompt': [{'role': 'user', 'content': 'the dog'}],
    'completions': ['the', ' cat'],
    'labels': [True, True],
  }
  answers, _ = load(row, tok=tok)
  example = answers.examples[0]
  prompt = chat.encode(tok, row['prompt'])
  parts = [tok.encode(p, bos=False) for p in ('the', '\n', ' cat', '\n')]
  np.testing.assert_array_equal(example.tokens, sum(parts, prompt))
  ends = np.flatnonzero(example.loss_mask) + 1
  assert [
    tok.decode(example.tokens[len(prompt) : e].tolist()) for e in ends
  ] == [
    'the\n',
    'the\n cat\n',
  ]


def test_what_is_left_out_is_counted(load):
  answers, _ = load(GOOD, max_length=6)  # the first step alone
  assert answers.counts['truncated'] == 1 and answers.counts['steps'] == 1
  assert len(answers.labels) == 6
  answers, _ = load(GOOD | {'prompt': 'q' * 9}, GOOD, max_length=8)
  assert answers.counts['emptied'] == 1 and len(answers) == 1
  answers, _ = load(
    GOOD | {'completions': [], 'labels': []}, GOOD, GOOD, eval_fraction=0.5
  )
  assert answers.counts['empty'] == 1 and len(answers) == 1
  long = GOOD | {'prompt': 'q' * 9}
  answers, _ = load(long, GOOD, max_length=8, overlong='drop')
  assert answers.counts['dropped'] == 1 and len(answers) == 1
  with pytest.raises(UserError, match='no completion is left'):
    load(long, max_length=8)


def test_held_out_labels_follow(load):
  rows = [GOOD | {'prompt': 'q' * i} for i in range(1, 5)]
  answers, held_out = load(*rows, eval_fraction=0.25)
  whole, _ = load(*rows)
  assert len(answers) == 3 and len(held_out) == 1
  np.testing.assert_array_equal(
    np.append(answers.labels, held_out.labels), whole.labels
  )
  assert len(held_out.labels) == len(held_out.examples.tokens)


@pytest.mark.parametrize(
  'row, match',
  [
    ({'prompt': 'q', 'completions': ['a']}, "has no 'labels'"),
    ({'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}, "has no 'completions'"),
    (GOOD | {'labels': [True]}, 'has 2 completions and 1 labels'),
    (GOOD | {'labels': [True, 'no']}, r"labels=\[True, 'no'\]: give a list"),
    (GOOD | {'labels': 1}, 'labels=1: give a list'),
    (GOOD | {'completions': 'ab'}, "completions='ab': give a list"),
    (GOOD | {'completions': ['a', 2]}, 'completions='),
    (GOOD | {'prompt': 3}, 'prompt=3: give a string or a list'),
    (GOOD | {'prompt': [{'role': 'user', 'content': 'q'}]}, 'template'),
  ],
)
def test_bad_rows_are_refused_by_number(load, row, match):
  with pytest.raises(UserError, match=f'row 2: .*{match}'):
    load(GOOD, row)


def test_an_empty_step_without_a_separator(load):
  with pytest.raises(UserError, match='row 1: completions has an empty step'):
    load(GOOD | {'completions': ['a', '']}, separator='')
