"""Token ids and loss masks of rows, by hand."""

import numpy as np
import pytest

from llm.data import examples as lib
from llm.data.shapes import Row
from llm.errors import UserError
from llm.text import chat
from llm.text.tokenizer import load_tokenizer
from tests.data.conftest import CHATML

BOS, EOS = 256, 257


@pytest.fixture(scope='module')
def tok():
  return load_tokenizer('bytes')


def encoded(tok, row):
  example = lib.encode_row(tok, row)
  return example.tokens, example.loss_mask


def test_prompt_and_completion_by_hand(tok):
  row = Row('', prompt='ab', completion='c é')
  tokens, mask = encoded(tok, row)
  np.testing.assert_array_equal(tokens, [BOS, *'abc é'.encode(), EOS])
  np.testing.assert_array_equal(mask, [0, 0, 0, 1, 1, 1, 1, 1])
  weights = lib.encode_row(tok, row).loss_weights
  assert tokens.dtype == np.int32 and weights.dtype == np.float32


def test_text_by_hand(tok):
  tokens, mask = encoded(tok, Row('', text='ab'))
  np.testing.assert_array_equal(tokens, [BOS, 97, 98, EOS])
  np.testing.assert_array_equal(mask, [0, 1, 1, 1])


def test_ends_are_not_doubled(tok):
  for row in (
    Row('', prompt='<|bos|>a', completion='b<|eos|>'),
    Row('', text='<|bos|>ab<|eos|>'),
  ):
    np.testing.assert_array_equal(
      lib.encode_row(tok, row).tokens, [BOS, 97, 98, EOS]
    )


def test_a_token_across_the_seam_is_the_completions(with_template):
  # ' the' is one token of the whole text; its space is written by the prompt.
  tok = with_template(None)
  tokens, mask = encoded(tok, Row('', prompt='a ', completion='the cat'))
  whole = tok.encode('a the cat')
  np.testing.assert_array_equal(tokens, [*whole, *tok.eos_ids])
  apart = tok.encode('a ') + tok.encode('the cat', bos=False)
  assert apart != whole  # so the ids of the two parts would be wrong
  assert tok.decode(tokens[mask].tolist()[:-1]) == ' the cat'


def test_the_mask_covers_every_character_of_the_completion(with_template):
  tok = with_template(None)
  rng = np.random.default_rng(0)
  pieces = ['the', ' cat', ' ', '\n', 'é', 'sat on', '🙂', 'a']
  for _ in range(50):
    prompt, completion = (
      ''.join(rng.choice(pieces, rng.integers(1, 5))) for _ in 'ab'
    )
    row = Row('', prompt=prompt, completion=completion)
    tokens, mask = encoded(tok, row)
    np.testing.assert_array_equal(
      tokens, tok.encode(prompt + completion) + [tok.eos_ids[0]]
    )
    learned = b''.join(tok.token_bytes(i) for i in tokens[mask][:-1])
    assert learned.endswith(completion.encode())
    # At most one token more than the completion needs.
    rest = b''.join(tok.token_bytes(i) for i in tokens[mask][1:-1])
    assert not rest.endswith(completion.encode()) or '🙂' in prompt
    assert np.all(np.diff(mask.astype(int)) >= 0)


def test_messages(with_template):
  tok = with_template(CHATML)
  messages = [
    {'role': 'user', 'content': 'the dog'},
    {'role': 'assistant', 'content': 'ran'},
  ]
  tokens, mask = encoded(tok, Row('', messages=messages))
  np.testing.assert_array_equal(tokens, chat.encode(tok, messages, False))
  assert (
    tok.decode(tokens[mask].tolist(), skip_special=False) == 'ran<|im_end|>'
  )


@pytest.mark.parametrize(
  'row, match',
  [
    (Row('', text=''), 'text is empty'),
    (Row('', prompt='a', completion=''), 'completion is empty'),
    (Row('', messages=[{'role': 'user', 'content': 'a'}]), 'no assistant'),
    (
      Row('', messages=[{'role': 'assistant', 'content': 'a'}], learn_from=1),
      'no assistant',
    ),
    (Row('', messages=[{'role': 'assistant', 'content': ''}]), 'only empty'),
    (Row('', messages=[{'role': 'assistant', 'content': 'a'}]), 'template'),
    (Row('', text='\ud800'), 'surrogate'),
  ],
)
def test_rows_that_teach_nothing_are_refused(tok, row, match):
  with pytest.raises(UserError, match=match):
    lib.encode_row(tok, row)


def example(n, mask=None):
  mask = np.arange(n) > 0 if mask is None else np.array(mask, bool)
  return lib.Example(np.arange(n, dtype=np.int32), mask)


def fit(*args, **options):
  return [
    (e.tokens.tolist(), e.loss_mask.astype(int).tolist())
    for e in lib.fit_example(*args, **options)
  ]


def test_overlong_rows_by_hand():
  assert fit(example(3), 3, 'drop') == [([0, 1, 2], [0, 1, 1])]
  assert fit(example(4), 3, 'drop') == []
  assert fit(example(4), 3, 'truncate') == [([0, 1, 2], [0, 1, 1])]
  assert fit(example(4, [0, 0, 0, 1]), 3, 'truncate') == []
  split = [([0, 1, 2], [0, 1, 1]), ([2, 3, 4], [0, 1, 1])]
  assert fit(example(5), 3, 'split') == split
  assert fit(example(6), 3, 'split') == split + [([4, 5], [0, 1])]
  with pytest.raises(UserError, match="has 4 tokens.*data.overlong='split'"):
    fit(example(4), 3, 'split', is_text=False)


@pytest.mark.parametrize('length', (2, 3, 7, 16, 40))
def test_splitting_loses_no_target(length):
  windows = fit(example(33), length, 'split')
  assert all(len(tokens) <= length for tokens, _ in windows)
  targets = [t for tokens, mask in windows for t, m in zip(tokens, mask) if m]
  assert targets == list(range(1, 33))


def test_collected_examples_come_back():
  given = [example(3), example(1), example(5, [0, 0, 1, 0, 1])]
  examples = lib.from_list(given)
  assert len(examples) == 3 and examples.lengths.tolist() == [3, 1, 5]
  part = examples.part(1, 3)
  for got, want in zip([*examples, *part], given + given[1:], strict=True):
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.loss_mask, want.loss_mask)
  assert len(part.tokens) == len(part.loss_mask) == 6
  digests = {e.digest for e in (examples, part, lib.from_list(given[:2]))}
  assert len(digests) == 3
  assert examples.digest == lib.from_list(given).digest


def test_bad_options(tok):
  for options, match in [
    ((1, 'drop'), 'data.max_length=1: use 2'),
    ((8, 'cut'), "data.overlong='cut': use one of truncate, drop, split"),
  ]:
    with pytest.raises(UserError, match=match):
      lib.check_options(*options)
  lib.check_vocabulary(tok, 259)
  with pytest.raises(UserError, match='259 ids .*model.vocab_size=258'):
    lib.check_vocabulary(tok, 258)
