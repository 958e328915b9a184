"""What a preview says of a row: its tokens and weights, or why it is out."""

import json

import numpy as np
import pytest

from llm.data.columns import RowOptions
from llm.data.dataset import load_examples
from llm.data.pairs import load_pairs
from llm.data.rated import load_rated
from llm.preview import show
from llm.preview.rows import Reader, see_row
from llm.preview.summary import Summary, turn_ends
from llm.text.tokenizer import load_tokenizer

# Each turn ends with EOS, which is one token of the tokenizer of bytes.
TEMPLATE = (
  '{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}</s>{% endfor %}'
  '{% if add_generation_prompt %}<a>{% endif %}'
)


def tokenizer():
  tok = load_tokenizer('bytes')
  end = tok.token(tok.eos_ids[0])
  tok.chat_templates['default'] = TEMPLATE.replace('</s>', end)
  return tok


TOK = tokenizer()
END = TOK.token(TOK.eos_ids[0])
BOS = TOK.token(TOK.bos_id)


def reader(kind, **settings):
  options = settings.pop('options', RowOptions())
  return Reader(kind, TOK, options, settings.pop('max_length', 64), **settings)


def learned(example):
  ids = example.tokens[example.loss_weights > 0].tolist()
  return TOK.decode(ids, skip_special=False)


def text(example):
  return TOK.decode(example.tokens.tolist(), skip_special=False)


def user(content):
  return {'role': 'user', 'content': content}


def assistant(content, **more):
  return {'role': 'assistant', 'content': content, **more}


CHAT = [user('q'), assistant('a'), user('r'), assistant('b', weight=0.5)]


@pytest.mark.parametrize(
  ('row', 'whole', 'part'),
  [
    ({'prompt': 'ab', 'completion': 'c'}, f'{BOS}abc{END}', f'c{END}'),
    (
      {'messages': CHAT[:2]},
      f'<u>q{END}<a>a{END}',
      f'a{END}',
    ),
    ({'text': 'ab'}, f'{BOS}ab{END}', f'ab{END}'),
  ],
)
def test_texts(row, whole, part):
  seen = see_row(reader('sft'), row)
  assert seen.left_out is None
  example = seen.parts['']
  assert (text(example), learned(example)) == (whole, part)
  written = show.seen_object(TOK, seen)
  assert list(written) == ['token_ids', 'loss_weights', 'text']
  assert written['text'] == whole
  assert sum(written['loss_weights']) == len(TOK.encode(part, bos=False))


def test_weights_of_turns():
  seen = see_row(reader('sft'), {'messages': CHAT, 'id': 7})
  weights = seen.parts[''].loss_weights
  assert sorted(set(weights.tolist())) == [0.0, 0.5, 1.0]
  assert np.count_nonzero(weights == 0.5) == 2  # b and its end
  assert seen.unread == ('id',)


def test_pairs():
  row = {'prompt': 'q', 'chosen': 'good', 'rejected': 'bad', 'margin': 2}
  for kind in ('preference', 'reward'):
    seen = see_row(reader(kind), row)
    assert {name: learned(part) for name, part in seen.parts.items()} == {
      'chosen': f'good{END}',
      'rejected': f'bad{END}',
    }
    written = show.seen_object(TOK, seen)
    assert set(written) == {'chosen', 'rejected', 'margin'}
    assert written['chosen']['text'] == f'{BOS}qgood{END}'


def test_rated_completions():
  row = {'prompt': 'q', 'completion': 'a', 'label': False}
  written = show.seen_object(TOK, see_row(reader('kto'), row))
  assert written['label'] is False and written['text'] == f'{BOS}qa{END}'
  pair = {'prompt': 'q', 'chosen': 'a', 'rejected': ''}
  seen = see_row(reader('kto'), pair)
  assert list(seen.parts) == ['chosen']
  assert show.seen_object(TOK, seen)['rejected'] == {
    'left_out': 'a completion is empty'
  }


def test_steps():
  row = {'prompt': 'q', 'completions': ['x', 'y'], 'labels': [True, False]}
  seen = see_row(reader('reward'), row)
  assert text(seen.parts['']) == f'{BOS}qx\ny\n'
  assert learned(seen.parts['']) == '\n\n'
  assert seen.extra == {'labels': [True, False]} and seen.group == 1


def test_prompts():
  row = {'prompt': [user('q')], 'answer': '1'}
  seen = see_row(reader('rl'), row)
  assert show.seen_object(TOK, seen, weights=False) == {
    'token_ids': TOK.encode(f'<u>q{END}<a>', bos=False),
    'text': f'<u>q{END}<a>',
  }


@pytest.mark.parametrize(
  ('kind', 'row', 'counted', 'why'),
  [
    ('sft', {'prompt': 'a'}, 'refused', 'is of no known shape'),
    ('sft', {'messages': [user('q')]}, 'refused', 'no assistant message'),
    (
      'preference',
      {'prompt': 'q', 'chosen': 'a', 'rejected': ''},
      'empty',
      'a completion is empty',
    ),
    (
      'preference',
      {'prompt': 'q', 'chosen': 'a', 'rejected': 'a'},
      'equal',
      'chosen and rejected are the same tokens',
    ),
    (
      'preference',
      {'prompt': 'q' * 80, 'chosen': 'a', 'rejected': 'b'},
      'emptied',
      'has 83 tokens, and nothing to learn is among the first',
    ),
    ('kto', {'prompt': 'q', 'completion': 'a'}, 'refused', 'no rated compl'),
    ('reward', {'completions': ['a']}, 'refused', "has no 'labels'"),
    (
      'rl',
      {'prompt': 'q' * 70},
      'overlong',
      'has 71 tokens, more than data.max_length=64',
    ),
    ('rl', {'messages': CHAT}, 'refused', 'ends with what the assistant says'),
  ],
)
def test_rows_that_are_left_out(kind, row, counted, why):
  seen = see_row(reader(kind), row)
  assert seen.counted == counted and why in seen.left_out
  assert show.seen_object(TOK, seen) == {'left_out': seen.left_out}


def test_long_rows():
  row = {'prompt': 'q', 'completion': 'c' * 80}
  cut = see_row(reader('sft'), row)
  assert (len(cut.parts[''].tokens), cut.length, cut.cut) == (64, 83, True)
  drop = see_row(reader('sft', overlong='drop'), row)
  assert drop.left_out == 'has 83 tokens, more than data.max_length=64'
  # Three windows share a token each; the text is shown whole.
  split = see_row(reader('sft', overlong='split'), {'text': 'c' * 140})
  assert split.lengths == (64, 64, 16)
  assert len(split.parts[''].tokens) == split.length == 142
  assert not split.cut and split.left_out is None


def test_it_is_what_training_reads(tmp_path):
  rows = [
    {'messages': CHAT},
    {'prompt': 'q' * 20, 'completion': 'c' * 50},
    {'prompt': 'q' * 90, 'completion': 'c'},
    {'instruction': 'i', 'output': 'o'},
  ]
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  examples, _ = load_examples(str(path), TOK, max_length=64)
  seen = [see_row(reader('sft'), row) for row in rows]
  kept = [s.parts[''] for s in seen if s.left_out is None]
  assert len(kept) == len(examples) == 3
  for one, other in zip(kept, examples.part(0, 3)):
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.loss_weights, other.loss_weights)


def test_pairs_are_what_training_reads(tmp_path):
  rows = [
    {'prompt': 'q', 'chosen': 'a', 'rejected': 'b' * 90},
    {'prompt': 'q', 'chosen': 'a', 'rejected': 'a'},
    {'chosen': CHAT[:2], 'rejected': [user('q'), assistant('c')]},
  ]
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  for kind, load in (('preference', load_pairs), ('kto', load_rated)):
    data, _ = load(str(path), TOK, max_length=64)
    seen = [see_row(reader(kind), row) for row in rows]
    parts = [part for s in seen for part in s.parts.values()]
    assert len(parts) == len(data.examples) == 4
    for i, part in enumerate(parts):
      np.testing.assert_array_equal(part.tokens, data.examples[i].tokens)
      np.testing.assert_array_equal(
        part.loss_weights, data.examples[i].loss_weights
      )


def test_the_numbers_of_a_file():
  of = reader('sft', max_length=16)
  summary = Summary(16)
  rows = [
    {'prompt': 'ab', 'completion': 'c', 'id': 1},  # 5 tokens, 2 learned
    {'prompt': 'abc', 'completion': 'def'},  # 8 tokens, 4 learned
    {'prompt': 'a', 'completion': ''},
    {'prompt': 'a', 'completion': 'b' * 20},  # 23 tokens, cut to 16
  ]
  for number, row in enumerate(rows, 1):
    summary.add(see_row(of, row), str(number))
  assert summary.record() == {
    'rows': 4,
    'kept': 3,
    'left_out': {'refused': 1},
    'truncated': 1,
    'unread': {'id': 1},
    'tokens': 29,
    'learned_tokens': 2 + 4 + 14,
    'longest': [
      {'row': '4', 'tokens': 23},
      {'row': '2', 'tokens': 8},
      {'row': '1', 'tokens': 5},
    ],
    'packed_efficiency': 29 / 32,  # 16, and 8 with 5
    'padded_efficiency': 29 / 48,
    'turn_ends': {str(TOK.eos_ids[0]): 2, str(ord('b')): 1},
  }
  lines = dict(summary.table(TOK))
  assert lines['ends of turns'] == f'{END} (id {TOK.eos_ids[0]}) 2×, ' + (
    'no special token 1×'
  )
  assert lines['longest'].startswith('23 tokens (row 4), 8 tokens (row 2)')
  assert 'nothing is learned' in lines['  row 3']


def test_an_empty_file_has_numbers_too():
  summary = Summary(16)
  summary.add(see_row(reader('sft'), {'x': 1}), '1')
  record = summary.record()
  assert record['packed_efficiency'] is None and record['tokens'] == 0
  assert dict(summary.table(TOK))['rows'] == '1, of which 0 are kept'


def test_where_turns_end():
  example = see_row(reader('sft'), {'messages': CHAT}).parts['']
  assert turn_ends(example) == [TOK.eos_ids[0]] * 2
