"""Preference pairs: every shape of a row, what is left out, and batches."""

import itertools
import json

import numpy as np
import pytest

from llm.data import pairs as lib
from llm.data import pipeline
from llm.data.examples import Example, from_list
from llm.errors import UserError
from llm.text import chat
from llm.text.tokenizer import load_tokenizer
from tests.data.conftest import CHATML

BOS, EOS = 256, 257
GOOD = {'prompt': 'q', 'chosen': 'yes', 'rejected': 'no'}


@pytest.fixture(scope='module')
def tok():
  return load_tokenizer('bytes')


@pytest.fixture
def load(tmp_path, tok):
  """load(row, …, **options) -> (pairs, held out)."""

  def load(*rows, tok=tok, **options):
    path = tmp_path / 'pairs.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n')
    return lib.load_pairs(str(path), tok, **({'max_length': 64} | options))

  return load


def user(text):
  return {'role': 'user', 'content': text}


def assistant(text):
  return {'role': 'assistant', 'content': text}


def test_strings_by_hand(load):
  pairs, held_out = load(GOOD)
  assert held_out is None and len(pairs) == 1 and len(pairs.examples) == 2
  for example, answer in zip(pairs.examples, (b'yes', b'no')):
    np.testing.assert_array_equal(example.tokens, [BOS, *b'q', *answer, EOS])
    want = [False] * 2 + [True] * (len(answer) + 1)
    np.testing.assert_array_equal(example.loss_mask, want)
  assert pairs.margins.dtype == np.float32 and pairs.margins.tolist() == [0.0]


# Each is the same question with the same two answers.
DIALOGUES = {
  'prompt': {
    'prompt': [user('the dog')],
    'chosen': [assistant('ran')],
    'rejected': [assistant('sat')],
  },
  'prompt and one message': {
    'prompt': [user('the dog')],
    'chosen': assistant('ran'),
    'rejected': assistant('sat'),
  },
  'string prompt': {
    'prompt': 'the dog',
    'chosen': [assistant('ran')],
    'rejected': [assistant('sat')],
  },
  'message prompt, string answers': {
    'prompt': [user('the dog')],
    'chosen': 'ran',
    'rejected': 'sat',
  },
  'whole': {
    'chosen': [user('the dog'), assistant('ran')],
    'rejected': [user('the dog'), assistant('sat')],
  },
  'hh': {
    'chosen': '\n\nHuman: the dog\n\nAssistant: ran',
    'rejected': '\n\nHuman: the dog\n\nAssistant: sat',
  },
  'Alpaca': {'instruction': 'the dog', 'chosen': 'ran', 'rejected': 'sat'},
  'ShareGPT': {
    'conversations': [{'from': 'human', 'value': 'the dog'}],
    'chosen': {'from': 'gpt', 'value': 'ran'},
    'rejected': {'from': 'gpt', 'value': 'sat'},
  },
}


@pytest.mark.parametrize('name', DIALOGUES)
def test_dialogues_through_a_template(load, with_template, name):
  tok = with_template(CHATML)
  pairs, _ = load(DIALOGUES[name] | {'source': 'x', 'margin': None}, tok=tok)
  for example, answer in zip(pairs.examples, ('ran', 'sat')):
    ids = chat.encode(tok, [user('the dog'), assistant(answer)], False)
    np.testing.assert_array_equal(example.tokens, ids)
    learned = tok.decode(example.tokens[example.loss_mask].tolist(), False)
    assert learned == f'{answer}<|im_end|>'


def test_only_what_differs_is_learned(load, with_template):
  """Earlier answers of a dialogue are context, in each of the shapes."""
  tok = with_template(CHATML)
  first = [user('a dog'), assistant('sat'), user('and')]
  text = '\n\nHuman: a dog\n\nAssistant: sat\n\nHuman: and\n\nAssistant: '
  for row in (
    {'prompt': first, 'chosen': 'ran', 'rejected': 'no'},
    {
      'chosen': [*first, assistant('ran')],
      'rejected': [*first, assistant('no')],
    },
    {'chosen': text + 'ran', 'rejected': text + 'no'},
  ):
    pairs, _ = load(row, tok=tok)
    for example, answer in zip(pairs.examples, ('ran', 'no')):
      learned = tok.decode(example.tokens[example.loss_mask].tolist(), False)
      assert learned == f'{answer}<|im_end|>'


def test_answers_of_several_turns(load, with_template):
  """Where the dialogues part ways earlier, all turns after that count."""
  tok = with_template(CHATML)
  chosen = [user('a'), assistant('ran'), user('b'), assistant('sat')]
  rejected = [user('a'), assistant('no'), user('c'), assistant('yes')]
  pairs, _ = load({'chosen': chosen, 'rejected': rejected}, tok=tok)
  texts = [
    tok.decode(e.tokens[e.loss_mask].tolist(), False) for e in pairs.examples
  ]
  assert texts == ['ran<|im_end|>sat<|im_end|>', 'no<|im_end|>yes<|im_end|>']


def test_alpaca_without_a_template(load, tok):
  pairs, _ = load(
    {'instruction': 'Do', 'input': 'it', 'chosen': 'y', 'rejected': 'n'},
    max_length=400,
  )
  text = tok.decode(pairs.examples[1].tokens.tolist())
  assert '### Instruction:\nDo\n\n### Input:\nit' in text
  assert text.endswith('### Response:\nn')


def test_margins(load):
  pairs, held_out = load(
    GOOD | {'margin': 2}, GOOD | {'margin': None}, GOOD | {'margin': -0.5},
    GOOD, eval_fraction=0.5,
  )  # fmt: skip
  assert pairs.margins.tolist() == [2.0, 0.0]
  assert held_out.margins.tolist() == [-0.5, 0.0]
  assert len(pairs.examples) == len(held_out.examples) == 4
  # They are part of the content.
  other, _ = load(GOOD | {'margin': 1.0})
  assert other.examples.digest != load(GOOD)[0].examples.digest


def test_truncated_dropped_emptied(load):
  long = {'prompt': 'q', 'chosen': 'a' * 9, 'rejected': 'b'}
  pairs, _ = load(long, GOOD, max_length=8)
  assert pairs.counts['truncated'] == 1 and len(pairs) == 2
  np.testing.assert_array_equal(
    pairs.examples[0].tokens, [BOS, *b'q', *b'aaaaaa']
  )
  np.testing.assert_array_equal(pairs.examples[1].tokens, [BOS, *b'qb', EOS])
  pairs, _ = load(long, GOOD, max_length=8, overlong='drop')
  assert pairs.counts['dropped'] == 1 and len(pairs) == 1
  # One answer that is cut away takes the pair with it.
  pairs, _ = load({**GOOD, 'prompt': 'q' * 7}, GOOD, max_length=8)
  assert pairs.counts['emptied'] == 1 and len(pairs) == 1
  # Answers that differ only in what is cut off are equal then.
  alike = {'prompt': 'q', 'chosen': 'a' * 9 + 'x', 'rejected': 'a' * 9 + 'y'}
  pairs, _ = load(alike, GOOD, max_length=8)
  assert pairs.counts['equal'] == 1 and len(pairs) == 1


def test_pairs_that_say_nothing_are_counted(load):
  rows = [
    GOOD,
    {**GOOD, 'rejected': ''},
    {**GOOD, 'chosen': ''},
    {**GOOD, 'rejected': 'yes'},
  ]
  pairs, _ = load(*rows)
  assert len(pairs) == 1
  counts = {k: v for k, v in pairs.counts.items() if v}
  assert counts == {'rows': 4, 'pairs': 1, 'empty': 2, 'equal': 1}
  with pytest.raises(UserError, match='no pair is left'):
    load(*rows[1:])


@pytest.mark.parametrize(
  'row, match',
  [
    ({'prompt': 'q', 'chosen': 'a'}, 'no preference row .*prompt.*chosen'),
    ({'prompt': 'q', 'chosen': 'a', 'rejected': None}, 'no preference row'),
    (GOOD | {'margin': 'big'}, "margin='big': give a number"),
    (GOOD | {'margin': float('nan')}, 'margin=nan: give a finite number'),
    (GOOD | {'margin': True}, 'margin=True: give a number'),
    (GOOD | {'margin': 10**400}, 'margin=1000.*: give a finite number'),
    (GOOD | {'margin': -1e39}, 'margin=-1e.39: give a finite number'),
    (GOOD | {'chosen': 3}, 'chosen=3: give a string or a list'),
    (GOOD | {'chosen': []}, r'chosen=\[\]: give a string or a list'),
    (GOOD | {'chosen': [assistant('a')]}, 'of two kinds'),
    ({'chosen': 'a', 'rejected': 'b'}, 'without a prompt beside it'),
    (GOOD | {'prompt': 3}, 'prompt'),
    (
      {'prompt': [user('q')], 'chosen': [user('a')], 'rejected': 'b'},
      'of two kinds',
    ),
    (
      {'prompt': [user('q')], 'chosen': [user('a')], 'rejected': [user('b')]},
      'no assistant message',
    ),
    ({'prompt': [user('q')], 'chosen': 'a', 'rejected': 'b'}, 'template'),
  ],
)
def test_bad_rows_are_refused_by_number(load, row, match):
  with pytest.raises(UserError, match=f'row 2: .*{match}'):
    load(GOOD, row)


@pytest.mark.parametrize(
  'options, match',
  [
    ({'max_length': 1}, 'data.max_length=1'),
    ({'overlong': 'split'}, "data.overlong='split'"),
    ({'overlong': 'cut'}, "data.overlong='cut'"),
    ({'eval_fraction': 1.0}, 'data.eval_fraction=1.0'),
    ({'eval_fraction': 0.9}, 'data.eval_fraction=0.9: of 2 pairs it leaves 0'),
  ],
)
def test_bad_options(load, options, match):
  with pytest.raises(UserError, match=match):
    load(GOOD, GOOD, **options)


# Batches of pairs: groups of two examples that share a row.
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(2, 17, (13, 2))


def numbered(lengths=LENGTHS):
  """Example i has the tokens 100 i, 100 i + 1, …"""
  return from_list(
    Example(np.arange(n, dtype=np.int32) + 100 * i, np.arange(n) > 0)
    for i, n in enumerate(np.ravel(lengths))
  )


def source(**options):
  defaults = dict(
    batch_size=3, max_length=16, packing=True, shuffle=True, seed=3, group=2
  )
  return pipeline.make_source(numbered(), **(defaults | options))


def members(batch):
  """The examples of each row, checked against `examples` and the tokens."""
  out = []
  for row, ids in enumerate(batch['examples']):
    found = ids[ids >= 0].tolist()
    assert (ids[len(found) :] == -1).all()
    assert batch['segment_ids'][row].max() == len(found)
    for segment, index in enumerate(found, 1):
      part = batch['segment_ids'][row] == segment
      tokens = batch['tokens'][row][part]
      np.testing.assert_array_equal(
        tokens, 100 * index + np.arange(np.ravel(LENGTHS)[index])
      )
      positions = batch['positions'][row][part]
      np.testing.assert_array_equal(positions, np.arange(len(tokens)))
    # Pairs stay together, the chosen answer first.
    assert all(i % 2 == 0 for i in found[::2])
    assert found[1::2] == [i + 1 for i in found[::2]]
    out.append(found)
  return out


@pytest.mark.parametrize(
  'packing, shuffle', list(itertools.product((False, True), repeat=2))
)
def test_every_pair_once_an_epoch(packing, shuffle):
  feed = source(packing=packing, shuffle=shuffle)
  batches = [next(feed)[0] for _ in range(feed.rows_per_epoch)]  # 3 epochs
  rows = [row for batch in batches for row in members(batch)]
  orders = [
    [i for row in rows[e * feed.rows_per_epoch :][: feed.rows_per_epoch]
     for i in row]
    for e in range(3)
  ]  # fmt: skip
  for order in orders:
    assert sorted(order) == list(range(26))
    assert (order == list(range(26))) == (not shuffle)
  assert len(set(map(tuple, orders))) == (3 if shuffle else 1)
  assert {b['examples'].dtype for b in batches} == {np.dtype(np.int32)}
  if packing:  # rows of two times max_length
    assert {b['tokens'].shape for b in batches} == {(3, 32)}
    assert max(map(len, rows)) > 2
  else:
    assert {b['examples'].shape for b in batches} == {(3, 2)}


@pytest.mark.parametrize('packing', (False, True))
def test_resume_anywhere(packing):
  feed = source(packing=packing)
  batches, states = [], []
  for _ in range(9):
    states.append(json.loads(json.dumps(feed.get_state())))
    batches.append(next(feed)[0])
  again = source(packing=packing, prefetch=0)
  for at in (8, 0, 5):
    again.set_state(states[at])
    batch = next(again)[0]
    for name in batch:
      np.testing.assert_array_equal(batch[name], batches[at][name])


@pytest.mark.parametrize('packing', (False, True))
def test_evaluation_sees_every_pair_once(packing):
  batches = list(
    pipeline.eval_batches(
      numbered(), batch_size=4, max_length=16, packing=packing, group=2
    )
  )
  rows = [row for batch in batches for row in members(batch)]
  assert sorted(i for row in rows for i in row) == list(range(26))
  assert {len(b['tokens']) for b in batches} == {4}
  assert len({b['examples'].shape for b in batches}) == 1


def test_a_pair_may_be_twice_as_long_as_an_answer():
  examples = numbered([[16, 16]])
  options = dict(batch_size=1, packing=False, shuffle=False, seed=0, group=2)
  batch, _ = next(pipeline.make_source(examples, max_length=16, **options))
  assert batch['tokens'].shape == (1, 32)
  with pytest.raises(UserError, match='data.max_length=15'):
    pipeline.make_source(examples, max_length=15, **options)


def test_names_of_examples_on_demand():
  options = dict(batch_size=2, max_length=16, packing=True)
  for batch in pipeline.eval_batches(numbered(), **options, named=True):
    assert batch['examples'].shape[0] == 2
    for row, ids in enumerate(batch['examples']):
      starts = batch['tokens'][row][batch['positions'][row] == 0]
      found = ids[ids >= 0]
      np.testing.assert_array_equal(starts[: len(found)], 100 * found)
  plain = next(pipeline.eval_batches(numbered(), **options))
  assert 'examples' not in plain
