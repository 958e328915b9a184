"""Rated answers: every shape of a row, and prompts with others' answers."""

import json

import numpy as np
import pytest

from llm.data.examples import Example, from_list
from llm.data.rated import load_rated, mismatched
from llm.errors import UserError
from llm.text import chat
from llm.text.tokenizer import load_tokenizer
from tests.data.conftest import CHATML

BOS, EOS = 256, 257
GOOD = {'prompt': 'q', 'completion': 'yes', 'label': True}


@pytest.fixture(scope='module')
def tok():
  return load_tokenizer('bytes')


@pytest.fixture
def load(tmp_path, tok):
  """load(row, …, **options) -> (answers, held out)."""

  def load(*rows, tok=tok, **options):
    path = tmp_path / 'rated.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n')
    return load_rated(str(path), tok, **({'max_length': 64} | options))

  return load


def test_strings_by_hand(load):
  rated, held_out = load(
    GOOD, {'prompt': 'q', 'response': 'no', 'label': False}
  )
  assert held_out is None and rated.desirable.tolist() == [True, False]
  for example, answer in zip(rated.examples, (b'yes', b'no')):
    np.testing.assert_array_equal(example.tokens, [BOS, *b'q', *answer, EOS])
    want = [False] * 2 + [True] * (len(answer) + 1)
    np.testing.assert_array_equal(example.loss_mask, want)
  assert rated.examples.digest != load(GOOD)[0].examples.digest
  # The ratings are part of the content.
  bad = load(GOOD | {'label': False})[0]
  assert bad.examples.digest != load(GOOD)[0].examples.digest


def test_conversations_are_rated_by_their_last_message(load, with_template):
  tok = with_template(CHATML)
  roles = ('user', 'assistant', 'user', 'assistant')
  texts = ('the', 'cat', 'and', 'ran')
  names = {'user': 'human', 'assistant': 'gpt'}
  messages = [{'role': r, 'content': t} for r, t in zip(roles, texts)]
  turns = [{'from': names[r], 'value': t} for r, t in zip(roles, texts)]
  prompt, completion = messages[:-1], messages[-1:]
  rated, _ = load(
    {'messages': messages, 'label': True},
    {'messages': messages, 'kto_tag': False},
    {'conversations': turns, 'kto_tag': True},
    {'prompt': prompt, 'completion': completion, 'label': False},
    tok=tok,
  )
  assert rated.desirable.tolist() == [True, False, True, False]
  ids = chat.encode(tok, messages, False)
  for example in rated.examples:
    np.testing.assert_array_equal(example.tokens, ids)
    learned = tok.decode(example.tokens[example.loss_mask].tolist(), False)
    assert learned == 'ran<|im_end|>'


def test_pairs_become_two_answers(load):
  pair = {'prompt': 'q', 'chosen': 'yes', 'rejected': 'no', 'label': None}
  rated, _ = load(pair, GOOD)
  assert rated.desirable.tolist() == [True, False, True]
  texts = [bytes(e.tokens[1:-1].tolist()) for e in rated.examples]
  assert texts == [b'qyes', b'qno', b'qyes']
  rated, _ = load(pair | {'rejected': ''}, pair | {'rejected': 'yes'}, pair)
  counts = {k: v for k, v in rated.counts.items() if v}
  assert counts == {'rows': 3, 'completions': 3, 'empty': 1, 'equal': 1}
  assert rated.desirable.tolist() == [True, True, False]


def test_what_is_left_out_is_counted(load):
  long = GOOD | {'completion': 'a' * 9}
  rated, _ = load(long, GOOD, max_length=8)
  assert rated.counts['truncated'] == 1 and len(rated) == 2
  rated, _ = load(long, GOOD, max_length=8, overlong='drop')
  assert rated.counts['dropped'] == 1 and len(rated) == 1
  rated, _ = load(GOOD | {'prompt': 'q' * 9}, GOOD, max_length=8)
  assert rated.counts['emptied'] == 1 and len(rated) == 1
  with pytest.raises(UserError, match='no completion is left'):
    load(GOOD | {'completion': ''})


def test_held_out(load):
  rows = [GOOD | {'label': i % 3 == 0} for i in range(10)]
  rated, held_out = load(*rows, eval_fraction=0.3)
  assert rated.desirable.tolist() == [i % 3 == 0 for i in range(7)]
  assert held_out.desirable.tolist() == [False, False, True]
  assert len(held_out.examples) == 3


@pytest.mark.parametrize(
  'row, match',
  [
    ({'prompt': 'q', 'completion': 'a'}, 'no rated completion .*completion'),
    (GOOD | {'kto_tag': True}, 'has label and kto_tag'),
    (GOOD | {'label': 1}, r'label=1: give true \(good\) or false'),
    (GOOD | {'label': 'good'}, "label='good'"),
    ({'question': 'q', 'label': True}, 'of no known shape'),
    (GOOD | {'completion': 3}, 'completion'),
    ({'prompt': 'q', 'chosen': 'a'}, 'no preference row'),
    (
      {'messages': [{'role': 'user', 'content': 'a'}], 'label': True},
      "the last message is rated, and its role is 'user'",
    ),
  ],
)
def test_bad_rows_are_refused_by_number(load, row, match):
  with pytest.raises(UserError, match=f'row 2: .*{match}'):
    load(GOOD, row)


def test_prompts_with_the_next_answer_by_hand():
  def example(prompt, answer):
    tokens = np.array(prompt + answer, np.int32)
    return Example(tokens, np.arange(len(tokens)) >= len(prompt))

  examples = from_list(
    [
      example([1, 2], [3]),
      example([9], [9]),  # not in the batch
      example([4], [5, 6, 7]),
      example([8, 8, 8, 8], [9]),
      example([8, 8, 8, 8], [7]),
    ]
  )
  found = mismatched(examples, np.array([2, 0, 3, 4]), 4)
  tokens = [e.tokens.tolist() for e in found]
  assert tokens == [[4, 3], [1, 2, 9], [8, 8, 8, 8], [8, 8, 8, 8]]
  masks = [e.loss_mask.astype(int).tolist() for e in found]
  # The third has the same prompt as its neighbour, the last one no room.
  assert masks == [[0, 1], [0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
  (first, second) = mismatched(examples, np.array([0, 2]), 4)
  assert first.tokens.tolist() == [1, 2, 5, 6]  # cut off
  assert second.tokens.tolist() == [4, 3]
