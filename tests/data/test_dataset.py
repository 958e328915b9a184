"""Files to examples: counts, holding out, the cache, rows that are refused."""

import json

import numpy as np
import pytest

from llm.data import dataset
from llm.data.dataset import load_examples
from llm.errors import UserError
from llm.text.tokenizer import load_tokenizer
from tests.data.conftest import CHATML


@pytest.fixture(scope='module')
def tok():
  return load_tokenizer('bytes')


def write(path, rows):
  path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
  return path


def texts(tok, examples):
  return [tok.decode(e.tokens.tolist()) for e in examples]


def same(a, b):
  assert a.digest == b.digest and a.counts == b.counts
  for name in ('tokens', 'loss_mask', 'offsets'):
    x, y = getattr(a, name), getattr(b, name)
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def test_counts_of_truncated_rows(tmp_path, tok):
  rows = [
    {'prompt': 'ab', 'completion': 'c'},  # BOS a b c EOS
    {'prompt': 'abc', 'completion': 'de'},  # one token too many
    {'prompt': 'abcdef', 'completion': 'g'},  # nothing to learn remains
    {'text': 'ghijkl'},
  ]
  path = write(tmp_path / 'a.jsonl', rows)
  examples, held_out = load_examples(path, tok, max_length=6)
  assert held_out is None
  assert texts(tok, examples) == ['abc', 'abcde', 'ghijk']
  masks = [''.join(map(str, e.loss_mask.astype(int))) for e in examples]
  assert masks == ['00011', '000011', '011111']
  assert examples.counts == {
    'rows': 4,
    'examples': 3,
    'truncated': 2,
    'dropped': 0,
    'emptied': 1,
    'split': 0,
    'shapes': {'prompt/completion': 3, 'text': 1},
    'unread': {},
  }
  examples, _ = load_examples(path, tok, max_length=6, overlong='drop')
  assert texts(tok, examples) == ['abc']
  assert examples.counts['dropped'] == 3


def test_split_texts(tmp_path, tok):
  path = write(tmp_path / 'a.jsonl', [{'text': 'abcdefg'}, {'text': 'h'}])
  examples, _ = load_examples(path, tok, max_length=4, overlong='split')
  assert texts(tok, examples) == ['abc', 'cdef', 'fg', 'h']
  assert examples.counts['split'] == 1 and examples.counts['rows'] == 2
  assert int(examples.loss_mask.sum()) == 8 + 2


def test_the_last_rows_are_held_out(tmp_path, tok):
  path = write(tmp_path / 'a.jsonl', [{'text': str(i)} for i in range(10)])
  for fraction, train in ((0.3, 7), (0.1, 9), (0.15, 8), (0.9, 1)):
    a, b = load_examples(path, tok, max_length=8, eval_fraction=fraction)
    assert texts(tok, a) == [str(i) for i in range(train)]
    assert texts(tok, b) == [str(i) for i in range(train, 10)]
    assert a.digest != b.digest


def test_the_last_characters_of_a_text_are_held_out(tmp_path, tok):
  path = tmp_path / 'a.txt'
  path.write_text('0123456789' * 2)
  train, held_out = load_examples(
    path, tok, max_length=64, eval_fraction=0.1, overlong='split'
  )
  assert texts(tok, train) == ['012345678901234567']
  assert texts(tok, held_out) == ['89']
  assert train.counts['rows'] == 1 and train.counts['shapes'] == {'text': 1}
  # Several documents are rows.
  train, held_out = load_examples(
    path, tok, max_length=64, eval_fraction=0.5, separator='9'
  )
  assert texts(tok, train) == texts(tok, held_out) == ['012345678']


@pytest.mark.parametrize('fraction', (0.0, 0.4))
def test_the_cache_gives_the_same(tmp_path, tok, monkeypatch, fraction):
  path = write(tmp_path / 'a.jsonl', [{'text': 'x' * i} for i in range(1, 9)])
  options = dict(max_length=6, overlong='split', eval_fraction=fraction)
  plain = load_examples(path, tok, **options)
  cache = tmp_path / 'cache'
  first = load_examples(path, tok, cache_dir=cache, **options)
  monkeypatch.setattr(dataset, '_write', None)  # nothing is tokenized again
  second = load_examples(path, tok, cache_dir=cache, **options)
  assert isinstance(second[0].tokens, np.memmap)
  for loaded in (first, second):
    for got, want in zip(loaded, plain, strict=True):
      if want is not None:
        same(got, want)


def test_the_cache_is_keyed_by_what_matters(tmp_path, with_template):
  cache = tmp_path / 'cache'
  path = write(tmp_path / 'a.jsonl', [{'instruction': 'a', 'output': 'bc'}])
  plain, chat = with_template(None), with_template(CHATML)

  def load(file=path, tok=plain, **options):
    options = dict(max_length=512) | options
    load_examples(file, tok, cache_dir=cache, **options)
    return len(list((cache / 'examples').iterdir()))

  assert load() == 1
  # The same content under another name, and a tokenizer loaded anew.
  copy = tmp_path / 'b.jsonl'
  copy.write_bytes(path.read_bytes())
  assert load(copy) == load(tok=with_template(None)) == 1
  assert load(tok=chat) == 2
  assert load(max_length=511) == 3
  assert load(overlong='drop') == 4
  write(path, [{'instruction': 'a', 'output': 'bd'}])
  assert load() == 5


@pytest.mark.parametrize('name', ('tokens', 'lengths', 'note.json'))
def test_a_damaged_cache_is_made_again(tmp_path, tok, name):
  path = write(tmp_path / 'a.jsonl', [{'text': 'abc'}, {'text': 'de'}])
  options = dict(max_length=9, cache_dir=tmp_path / 'cache')
  first, _ = load_examples(path, tok, **options)
  want = texts(tok, first)
  (folder,) = (tmp_path / 'cache' / 'examples').iterdir()
  damaged = folder / name
  damaged.write_bytes(damaged.read_bytes()[:-3])
  again, _ = load_examples(path, tok, **options)
  assert texts(tok, again) == want
  assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_bad_row_leaves_nothing_in_the_cache(tmp_path, tok):
  path = write(tmp_path / 'a.jsonl', [{'text': 'a'}, {'txt': 'b'}])
  with pytest.raises(UserError, match='a.jsonl, row 2: is of no known shape'):
    load_examples(path, tok, max_length=9, cache_dir=tmp_path / 'cache')
  assert list((tmp_path / 'cache' / 'examples').iterdir()) == []


def test_an_unusable_cache_folder_is_named(tmp_path, tok):
  path = write(tmp_path / 'a.jsonl', [{'text': 'a'}])
  (tmp_path / 'cache').write_text('a file')
  with pytest.raises(UserError, match='LLM_CACHE_DIR'):
    load_examples(path, tok, max_length=9, cache_dir=tmp_path / 'cache')


@pytest.mark.parametrize(
  'rows, options, match',
  [
    ([], {}, 'a.jsonl holds no rows'),
    ([{'text': 'a'}, {'text': ''}], {}, 'a.jsonl, row 2: text is empty'),
    ([{'prompt': 'a', 'completion': ''}], {}, 'row 1: the completion is empty'),
    (
      [{'messages': [{'role': 'user', 'content': 'a'}]}],
      {},
      'row 1: has no assistant message',
    ),
    (
      [{'text': 'a'}, {'prompt': 'abcdefgh', 'completion': 'b'}],
      {'overlong': 'split'},
      'a.jsonl, row 2: has 11 tokens',
    ),
    (
      [{'text': 'abcdefgh'}],
      {'overlong': 'drop'},
      'no row is left of 1: 1 were',
    ),
    ([{'text': 'a'}], {'eval_fraction': 0.5}, 'data.eval_fraction=0.5'),
    ([{'text': 'a'}] * 3, {'eval_fraction': 1.0}, 'data.eval_fraction=1.0'),
    ([{'text': 'a'}] * 3, {'max_length': 1}, 'data.max_length=1'),
    ([{'text': 'a'}] * 3, {'overlong': 'x'}, "data.overlong='x'"),
  ],
)
def test_bad_input_is_refused(tmp_path, tok, rows, options, match):
  path = write(tmp_path / 'a.jsonl', rows)
  with pytest.raises(UserError, match=match):
    load_examples(path, tok, **(dict(max_length=8) | options))


def test_an_answer_that_is_null_is_refused(tmp_path, with_template):
  template = "{% for m in messages %}{{ m.role + ':' + m.content }}{% endfor %}"
  ask = {'role': 'user', 'content': 'a'}
  say = {'role': 'assistant', 'content': None}
  path = write(tmp_path / 'a.jsonl', [{'text': 'a'}, {'messages': [ask, say]}])
  match = r"a.jsonl, row 2: messages\[1\]: .*'content': None.* says nothing"
  with pytest.raises(UserError, match=match):
    load_examples(path, with_template(template), max_length=64)


def test_a_template_that_drops_the_answer_is_refused(tmp_path, with_template):
  template = '{% for m in messages %}{{ m.role }}{% endfor %}'
  ask = {'role': 'user', 'content': 'a'}
  say = {'role': 'assistant', 'content': 'b'}
  path = write(tmp_path / 'a.jsonl', [{'text': 'a'}, {'messages': [ask, say]}])
  match = r'row 2: messages\[1\]: the chat template leaves'
  with pytest.raises(UserError, match=match):
    load_examples(path, with_template(template), max_length=64)
