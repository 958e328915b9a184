"""Each bad input is refused before work starts, by field, value and remedy."""

import json

import pytest

from llm.engine.requests import Limits, read_requests
from llm.errors import UserError
from llm.text.chat_options import ChatOptions
from llm.text.tokenizer import load_tokenizer

BYTES = load_tokenizer('bytes')
LIMITS = Limits(max_length=20, vocab_size=259, eos_ids=(257,))


def read(path, tokenizer=BYTES, limits=LIMITS, **sampling):
  return read_requests(path, tokenizer, sampling, limits)


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ('{"prompt": "a"', 'line 3: not valid JSON'),
    ('[1]', r'line 3: a JSON object is needed, not \[1\]'),
    ({'promt': 'a'}, "line 3: unknown key 'promt'; did you mean prompt"),
    ({}, 'line 3: has no prompt: give exactly one of'),
    ({'prompt': 'a', 'token_ids': [1]}, 'line 3: has prompt and token_ids'),
    ({'prompt': 5}, 'line 3: prompt=5: give a string'),
    ({'messages': []}, r'line 3: messages=\[\]'),
    ({'messages': [{'content': 'a'}]}, 'line 3: .*"role"'),
    ({'token_ids': []}, 'line 3: .*empty'),
    ({'token_ids': 'abc'}, "line 3: token_ids='abc': give a list of integers"),
    ({'token_ids': [True]}, 'line 3: .*list of integers'),
    ({'token_ids': [1, 259]}, r'line 3: token_ids\[1\]=259: .* 0 to 258'),
    ({'token_ids': [-1]}, r'line 3: token_ids\[0\]=-1'),
    ({'prompt': 'a' * 20}, '21 tokens are more than model.max_length=20'),
    ({'prompt': 'a' * 19}, 'must also hold a completion: .* at most 19'),
  ],
)
def test_bad_rows(write_rows, row, message):
  path = write_rows({'prompt': 'a'}, '', row)
  with pytest.raises(UserError, match=message):
    read(path)


@pytest.mark.parametrize(
  ('sampling', 'message'),
  [
    ({'temprature': 1}, "sampling.temprature is unknown: .*'temperature'"),
    ({'temperature': -0.5}, r'sampling.temperature = -0\.5'),
    ({'temperature': 'hot'}, "sampling.temperature = 'hot'"),
    ({'top_p': 0}, r'sampling.top_p = 0: .*\(0, 1\]'),
    ({'top_p': 1.5}, r'sampling.top_p = 1.5: .*\(0, 1\]'),
    ({'top_k': -1}, 'sampling.top_k = -1: .*0 or more'),
    ({'max_new_tokens': 0}, 'sampling.max_new_tokens = 0'),
    (
      {'max_new_tokens': 19},
      '=19 make 21, .* 18 new tokens fit',
    ),
    ({'logit_bias': {'300': 1}}, 'sampling.logit_bias.*300'),
    ({'stop_token_ids': [259]}, 'sampling.stop_token_ids.*259'),
    ({'seed': -1}, 'sampling.seed = -1'),
    ({'n': 0}, 'sampling.n = 0'),
    ([], r'sampling=\[\]: give an object'),
  ],
)
def test_bad_sampling(write_rows, sampling, message):
  path = write_rows({'prompt': 'a'}, {'prompt': 'a', 'sampling': sampling})
  with pytest.raises(UserError, match=f'line 2: .*{message}'):
    read(path)


def test_bad_files(tmp_path, write_rows):
  with pytest.raises(UserError, match='missing.jsonl.* does not exist'):
    read(str(tmp_path / 'missing.jsonl'))
  with pytest.raises(UserError, match='is a folder'):
    read(str(tmp_path))
  with pytest.raises(UserError, match='holds no rows'):
    read(write_rows(''))
  path = tmp_path / 'latin.jsonl'
  path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n')
  with pytest.raises(UserError, match='line 2: not UTF-8 at byte 12'):
    read(str(path))


def test_an_empty_prompt_needs_bos(write_rows):
  path = write_rows({'prompt': ''})
  assert read(path)[0].tokens == (BYTES.bos_id,)
  no_bos = load_tokenizer('bytes')
  no_bos._prefix = ()
  with pytest.raises(UserError, match='empty and the tokenizer has no BOS'):
    read(path, no_bos)


def test_a_smaller_max_length_is_named(write_rows):
  limits = Limits(max_length=4, vocab_size=259, name='max_length')
  with pytest.raises(UserError, match='more than max_length=4'):
    read(write_rows({'prompt': 'abcdef'}), limits=limits)


def test_rows_override_the_run(write_rows):
  path = write_rows({'prompt': 'a', 'sampling': {'top_k': 3}}, {'prompt': 'b'})
  one, two = read(path, top_k=5, seed=2)
  assert (one.sampling.top_k, one.sampling.seed) == (3, 2)
  assert (two.sampling.top_k, two.sampling.seed) == (5, 2)
  assert one.sampling.max_new_tokens == 18  # what fits beside BOS and 'a'
  assert (one.index, two.index, one.continues) == (0, 1, True)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
  path = tmp_path / 'bom.jsonl'
  path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}')
  assert [r.prompt for r in read(str(path))] == ['a', 'b']


TEMPLATE = (
  '{% for t in tools or () %}<{{ t.function.name }}>{% endfor %}'
  '{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}'
  '<a>{{ mood }}'
)
LONG = Limits(max_length=60, vocab_size=259, eos_ids=(257,))


def read_chats(path, options=ChatOptions()):
  tokenizer = load_tokenizer('bytes')
  tokenizer.chat_templates['default'] = TEMPLATE
  found = read_requests(path, tokenizer, {}, LONG, options)
  assert all(
    tokenizer.decode(r.tokens, skip_special=False) == r.prompt for r in found
  )
  return [r.prompt for r in found]


def test_messages_are_rendered_with_the_columns_of_a_row(write_rows):
  asked = [{'role': 'user', 'content': 'q'}]
  tool = {'type': 'function', 'function': {'name': 'clock'}}
  path = write_rows(
    {'messages': asked},
    {'messages': asked, 'system': 'S', 'chat_template_kwargs': {'mood': 'M'}},
    {'messages': asked, 'tools': json.dumps([tool])},
    {'messages': asked, 'tools': [], 'system': None},
  )
  assert read_chats(path) == ['<u>q<a>', '<s>S<u>q<a>M', '<clock><u>q<a>'] + [
    '<u>q<a>'
  ]
  run = ChatOptions('R', (tool,), {'mood': 'N'})
  assert read_chats(path, run) == [
    '<clock><s>R<u>q<a>N',
    '<clock><s>S<u>q<a>M',
    '<clock><s>R<u>q<a>N',
    '<s>R<u>q<a>N',
  ]


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'prompt': 'a', 'system': 'S'}, 'system: of conversations only'),
    ({'token_ids': [1], 'tools': [{'name': 'f'}]}, 'tools: of conversations'),
    ({'messages': [], 'tool': []}, "unknown key 'tool'; did you mean tools"),
    (
      {'messages': [{'role': 'user', 'content': 'a'}], 'tools': [{}]},
      r'tools\[0\]={}: give a JSON schema',
    ),
    (
      {
        'messages': [{'role': 'user', 'content': 'a'}],
        'chat_template_kwargs': {'moood': 1},
      },
      "chat_template_kwargs: .*reads no 'moood'",
    ),
    ({'messages': 'hi', 'system': 'S'}, "messages='hi': give a list"),
  ],
)
def test_bad_columns_are_named_by_line(write_rows, row, message):
  path = write_rows({'messages': [{'role': 'user', 'content': 'q'}]}, row)
  with pytest.raises(UserError, match=f'line 2: .*{message}'):
    read_chats(path)


def test_a_plain_row_of_a_run_with_a_system_prompt_is_refused(write_rows):
  with pytest.raises(UserError, match='line 1: system: of conversations only'):
    read_chats(write_rows({'prompt': 'a'}), ChatOptions('S'))
