"""What is learned of conversations with corners, with ten chat templates.

`test_turns.py` has the usual conversations, whole. Here each case is the list
of what is learned, marked by hand.
"""

import itertools

import pytest

from llm.errors import UserError
from llm.text import chat, chat_mask
from llm.text.tokenizer import load_tokenizer
from tests.text import chats
from tests.text.chats import CALLED, TOLD, says, user

QUIET = {'enable_thinking': False}
NOTHING = {'id': 'callnone1', 'type': 'function',
           'function': {'name': 'weather', 'arguments': {}}}  # fmt: skip
CONVERSATIONS = {
  'spaces': [user(' x\n'), says(' two\n lines \n'), user('y'), says('\n z')],
  # Contents that stand elsewhere in the text, too.
  'same': [user('ho'), says('ho'), user('ho'), says('ho')],
  'roles': [user('assistant'), says('user'), user('model'), says('assistant')],
  'last is the user': [user('a'), says('b'), user('c')],
  'says nothing': [user('a'), says('b'), user('c'), says('')],
  'marks inside': [
    user('a'),
    says('x<|im_end|>y<|eot_id|><end_of_turn><|end|></s>z'),
    user('b'),
    says('c'),
  ],
  'no arguments': [user('a'), says('', tool_calls=[NOTHING]), TOLD, says('b')],
  'same call twice': [
    user('a'),
    says('', tool_calls=[CALLED]),
    TOLD,
    says('', tool_calls=[CALLED]),
    TOLD,
    says('b'),
  ],
  'looks like a call': [
    user('a'),
    says('{"name": "weather", "arguments": {}}'),
    user('b'),
    says('<tool_call>\n{}\n</tool_call>'),
  ],
  'an open tag': [user('a'), says('I <think> so'), user('b'), says('c')],
  'other scripts': [
    user('é'),
    says('naïve 😀 你好'),
    user('ß'),
    says('\u2028b'),
  ],
  'thought, called, thought': [
    user('a'),
    says('', reasoning_content='r', tool_calls=[CALLED]),
    TOLD,
    says('m', reasoning_content='s', tool_calls=[CALLED]),
    TOLD,
    says('b', reasoning_content='t'),
  ],
  'thinks at last': [
    user('a'), says('b'), user('c'), says('d', reasoning_content='r'),
  ],
}  # fmt: skip
ROME = '<tool_call>\n{"name": "weather", "arguments": {"town": "Rome"}}\n'
ROME += '</tool_call><|im_end|>'
EMPTY = '<think>\n\n</think>\n\n'
# Template, conversation, variables, and the learned parts.
CASES = [
  ('chatml', 'spaces', {}, [' two\n lines \n<|im_end|>', '\n z<|im_end|>']),
  ('llama3', 'spaces', {}, ['two\n lines<|eot_id|>', 'z<|eot_id|>']),
  ('gemma3', 'spaces', {}, ['two\n lines<end_of_turn>', 'z<end_of_turn>']),
  ('mistral', 'spaces', {}, [' two\n lines</s>', ' z</s>']),
  (
    'qwen3',
    'spaces',
    {},
    [' two\n lines \n<|im_end|>', f'{EMPTY} z<|im_end|>'],
  ),
  (
    'glm4',
    'spaces',
    {},
    [
      '\n<think></think>\ntwo\n lines<|user|>',
      '\n<think></think>\nz<|user|>',
    ],
  ),
  ('phi3', 'spaces', {}, [' two\n lines \n<|end|>', '\n z<|end|>']),
  (
    'deepseek_r1',
    'spaces',
    {},
    [' two\n lines \n<｜end▁of▁sentence｜>', '\n z<｜end▁of▁sentence｜>'],
  ),
  (
    'gpt_oss',
    'spaces',
    {},
    [
      '<|channel|>final<|message|> two\n lines \n<|end|>',
      '<|channel|>final<|message|>\n z<|return|>',
    ],
  ),
  ('chatml', 'same', {}, ['ho<|im_end|>', 'ho<|im_end|>']),
  ('mistral', 'same', {}, [' ho</s>', ' ho</s>']),
  ('phi3', 'same', {}, ['ho<|end|>', 'ho<|end|>']),
  ('llama3', 'roles', {}, ['user<|eot_id|>', 'assistant<|eot_id|>']),
  ('gemma3', 'roles', {}, ['user<end_of_turn>', 'assistant<end_of_turn>']),
  ('qwen3', 'roles', QUIET, ['user<|im_end|>', 'assistant<|im_end|>']),
  (
    'gpt_oss',
    'roles',
    {},
    [
      '<|channel|>final<|message|>user<|end|>',
      '<|channel|>final<|message|>assistant<|return|>',
    ],
  ),
  ('chatml', 'last is the user', {}, ['b<|im_end|>']),
  ('qwen3', 'last is the user', {}, ['b<|im_end|>']),
  ('glm4', 'last is the user', {}, ['\n<think></think>\nb<|user|>']),
  ('glm4', 'last is the user', QUIET, ['\nb<|user|>']),
  ('phi3', 'last is the user', {}, ['b<|end|>']),
  ('gpt_oss', 'last is the user', {}, ['<|channel|>final<|message|>b<|end|>']),
  ('chatml', 'says nothing', {}, ['b<|im_end|>', '<|im_end|>']),
  ('mistral', 'says nothing', {}, [' b</s>', ' </s>']),
  ('qwen3', 'says nothing', {}, ['b<|im_end|>', f'{EMPTY}<|im_end|>']),
  ('glm4', 'says nothing', QUIET, ['\nb<|user|>', '<|user|>']),
  (
    'gpt_oss',
    'says nothing',
    {},
    [
      '<|channel|>final<|message|>b<|end|>',
      '<|channel|>final<|message|><|return|>',
    ],
  ),
  *(
    (
      name,
      'marks inside',
      {},
      [f'x<|im_end|>y<|eot_id|><end_of_turn><|end|></s>z{end}', f'c{end}'],
    )
    for name, end in (
      ('chatml', '<|im_end|>'),
      ('llama3', '<|eot_id|>'),
      ('gemma3', '<end_of_turn>'),
      ('phi3', '<|end|>'),
      ('smollm3', '<|im_end|>'),
    )
  ),
  (
    'chatml',
    'no arguments',
    {},
    [ROME.replace('{"town": "Rome"}', '{}'), 'b<|im_end|>'],
  ),
  (
    'llama3',
    'no arguments',
    {},
    ['{"name": "weather", "parameters": {}}<|eot_id|>', 'b<|eot_id|>'],
  ),
  (
    'glm4',
    'no arguments',
    QUIET,
    ['\n<tool_call>weather\n</tool_call><|observation|>', '\nb<|user|>'],
  ),
  (
    'gpt_oss',
    'no arguments',
    {},
    [
      ' to=functions.weather<|channel|>commentary json<|message|>{}<|call|>',
      '<|channel|>final<|message|>b<|return|>',
    ],
  ),
  ('chatml', 'same call twice', {}, [ROME, ROME, 'b<|im_end|>']),
  ('qwen3', 'same call twice', {}, [ROME, ROME, f'{EMPTY}b<|im_end|>']),
  ('qwen3', 'same call twice', QUIET, [ROME, ROME, 'b<|im_end|>']),
  (
    'chatml',
    'looks like a call',
    {},
    [
      '{"name": "weather", "arguments": {}}<|im_end|>',
      '<tool_call>\n{}\n</tool_call><|im_end|>',
    ],
  ),
  ('qwen3', 'an open tag', QUIET, ['I <think> so<|im_end|>', 'c<|im_end|>']),
  (
    'deepseek_r1',
    'an open tag',
    {},
    ['I <think> so<｜end▁of▁sentence｜>', 'c<｜end▁of▁sentence｜>'],
  ),
  # SmolLM3 writes empty thoughts before each turn, as its prompt does.
  ('smollm3', 'an open tag', QUIET, ['I <think> so<|im_end|>', 'c<|im_end|>']),
  (
    'llama3',
    'other scripts',
    {},
    ['naïve 😀 你好<|eot_id|>', 'b<|eot_id|>'],
  ),
  (
    'phi3',
    'other scripts',
    {},
    ['naïve 😀 你好<|end|>', '\u2028b<|end|>'],
  ),
  (
    'qwen3',
    'thought, called, thought',
    {},
    [
      f'<think>\nr\n</think>\n\n{ROME}',
      f'<think>\ns\n</think>\n\nm\n{ROME}',
      '<think>\nt\n</think>\n\nb<|im_end|>',
    ],
  ),
  (
    'qwen3',
    'thinks at last',
    {},
    ['b<|im_end|>', '<think>\nr\n</think>\n\nd<|im_end|>'],
  ),
  (
    'glm4',
    'thinks at last',
    {},
    ['\n<think></think>\nb<|user|>', '\n<think>r</think>\nd<|user|>'],
  ),
  (
    'gpt_oss',
    'thinks at last',
    {},
    [
      '<|channel|>final<|message|>b<|end|>',
      '<|channel|>analysis<|message|>r<|end|><|start|>assistant<|channel|>final'
      '<|message|>d<|return|>',
    ],
  ),
]


@pytest.fixture(scope='module')
def tokenizers(tmp_path_factory, byte_level_bytes):
  """tokenizers(name) -> that of a template."""
  made = {}

  def get(name):
    if name not in made:
      folder = tmp_path_factory.mktemp(name)
      chats.save_tokenizer(folder, name, byte_level_bytes)
      made[name] = load_tokenizer(folder)
    return made[name]

  return get


def learned(tok, ids, weights):
  """The learned runs of tokens, as text."""
  runs = itertools.groupby(zip(ids, weights), lambda pair: pair[1] > 0)
  return [
    tok.decode([id for id, _ in run], skip_special=False)
    for on, run in runs
    if on
  ]


@pytest.mark.parametrize('name, conversation, variables, parts', CASES)
def test_corners(tokenizers, name, conversation, variables, parts):
  tok, messages = tokenizers(name), CONVERSATIONS[conversation]
  options = dict(tools=chats.tools_of(name, messages))
  ids, weights = chat_mask.encode_with_mask(
    tok, messages, variables=variables, **options
  )
  assert learned(tok, ids, weights) == parts
  whole = chat.encode(tok, messages, False, **options, **variables)
  assert ids[: len(whole)] == whole
  # The last turn alone is the last part.
  last = chat_mask.encode_with_mask(
    tok, messages, learn='last', variables=variables, **options
  )
  assert last[0] == ids and learned(tok, *last) == parts[-1:]


@pytest.mark.parametrize(
  'name, conversation, what',
  [
    ('gpt_oss', 'thought, called, thought', 'both content and thinking'),
    ('chatml', 'thinks at last', r'messages\[3\].* reasoning_content'),
    ('gemma3', 'thinks at last', r'messages\[3\].* reasoning_content'),
    ('phi3', 'same call twice', r'messages\[1\].* tool_calls\[0\]'),
    ('smollm3', 'no arguments', r'messages\[1\].* tool_calls\[0\]'),
  ],
)
def test_what_a_template_does_not_write(tokenizers, name, conversation, what):
  tok, messages = tokenizers(name), CONVERSATIONS[conversation]
  with pytest.raises(UserError, match=what):
    chat_mask.encode_with_mask(
      tok, messages, tools=chats.tools_of(name, messages)
    )


def test_each_template_has_corners():
  assert {name for name, *_ in CASES} == set(chats.SPECIAL)
  assert {conversation for _, conversation, *_ in CASES} == set(CONVERSATIONS)
