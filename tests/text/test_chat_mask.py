"""The loss mask covers what the assistant says, up to its end mark."""

import pytest

from llm.errors import UserError
from llm.text import chat, chat_mask
from llm.text.tokenizer import load_tokenizer

CHATML = (
  '{% for message in messages %}'
  "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
  '{% endfor %}'
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
LLAMA3 = (
  '{{ bos_token }}{% for m in messages %}'
  "{{ '<|im_start|>' + m.role + '<|im_end|>\n\n' + m.content | trim }}"
  '<|end_of_text|>{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\n\n' }}"
  '{% endif %}'
)
LLAMA2 = (
  "{% for m in messages %}{% if m.role == 'user' %}"
  "{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
  "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
  "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token }}"
  "{{ '\n' }}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}"
  '{% endif %}{% endfor %}'
)
# Ends a message by plain text, and knows nothing of generation prompts.
PLAIN = (
  "{% for m in messages %}{{ m.role + ': ' + m.content + ' [END]\n' }}"
  '{% endfor %}'
)
NO_END = (
  "{% for m in messages %}{{ '\n' + m.role + ': ' + m.content }}{% endfor %}"
)
# Phi-3's: another end mark where the conversation ends.
LAST = CHATML.split('{% if')[0] + '{{ eos_token }}'
TAGGED = (
  "{% for m in messages %}{% if m.role == 'assistant' %}<a>{% generation %}"
  '{{ m.content }}!{% endgeneration %}\n\n{% else %}<u>{{ m.content }}\n'
  '{% endif %}{% endfor %}'
)
# What the templates say around 'assistant' must not be taken for the answers.
CHAT = [
  {'role': 'user', 'content': 'a'},
  {'role': 'assistant', 'content': 'a'},
  {'role': 'user', 'content': 'the cat'},
  {'role': 'assistant', 'content': ' sat on a\nmat '},
]


@pytest.fixture
def make_tok(make_folder, byte_level_bytes):
  def make(template):
    config = {
      'bos_token': '<|begin_of_text|>',
      'eos_token': '<|end_of_text|>',
      'chat_template': template,
    }
    return load_tokenizer(
      make_folder(
        {'tokenizer.json': byte_level_bytes, 'tokenizer_config.json': config}
      )
    )

  return make


def learned(tok, messages, **options):
  """The masked runs of tokens, as text."""
  ids, mask = chat_mask.encode_with_mask(tok, messages, **options)
  assert ids == chat.encode(tok, messages, False)
  runs, last = [], False
  for id, on in zip(ids, mask):
    if on and not last:
      runs.append([])
    if on:
      runs[-1].append(id)
    last = on
  return [tok.decode(run, skip_special=False) for run in runs]


@pytest.mark.parametrize(
  'template, expected',
  [
    (CHATML, ['a<|im_end|>', ' sat on a\nmat <|im_end|>']),
    (LLAMA3, ['a<|end_of_text|>', 'sat on a\nmat<|end_of_text|>']),
    # The model has to write the space (the newline) before its answer itself.
    (LLAMA2, [' a <|end_of_text|>', '  sat on a\nmat  <|end_of_text|>']),
    (ZEPHYR, ['\na<|end_of_text|>', '\n sat on a\nmat <|end_of_text|>']),
    # Nothing says that the first of the two spaces is not the template's.
    (PLAIN, [' a [END]', ' sat on a\nmat  [END]']),
    (LAST, ['a<|im_end|>', ' sat on a\nmat <|im_end|>']),
    (TAGGED, ['a!', ' sat on a\nmat !']),
  ],
)
def test_what_is_learned(make_tok, template, expected):
  assert learned(make_tok(template), CHAT) == expected


def test_without_any_end_mark(make_tok):
  with pytest.raises(UserError, match=r'messages\[1\].* nothing that ends'):
    learned(make_tok(NO_END), CHAT[:2])


@pytest.mark.parametrize('template', (CHATML, LLAMA3, TAGGED))
def test_a_conversation_that_goes_on(make_tok, template):
  tok = make_tok(template)
  whole = learned(tok, CHAT)
  assert learned(tok, CHAT[:3]) == whole[:1]
  assert learned(tok, CHAT[:1]) == []


# Qwen3's, shortened: thoughts are kept in the last message only.
THINKING = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
  "{% if m.role == 'assistant' and loop.last %}<think>\n"
  "{{ m.content.split('</think>')[0].split('<think>')[-1].strip()"
  " if '</think>' in m.content }}\n</think>\n\n"
  "{% endif %}{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
  '{% endfor %}'
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def test_a_template_that_writes_thoughts_anew(make_tok):
  tok = make_tok(THINKING)
  # The empty thoughts are what the model writes after the generation prompt.
  assert learned(tok, CHAT) == [
    'a<|im_end|>',
    '<think>\n\n</think>\n\n sat on a\nmat <|im_end|>',
  ]
  thought = CHAT[:3] + [
    {'role': 'assistant', 'content': '<think>\nthe mat</think>\nsat'}
  ]
  assert learned(tok, thought) == [
    'a<|im_end|>',
    '<think>\nthe mat\n</think>\n\nsat<|im_end|>',
  ]
  # The thoughts of an earlier message would be dropped.
  with pytest.raises(UserError, match=r'messages\[3\].* leaves out content'):
    learned(tok, thought + CHAT[:1])


def test_messages_of_the_prompt_are_context(make_tok):
  for template in (CHATML, TAGGED):
    tok = make_tok(template)
    assert learned(tok, CHAT, learn_from=2) == learned(tok, CHAT)[1:]


def test_a_special_token_in_the_content_is_no_end(make_tok):
  messages = [CHAT[0], {'role': 'assistant', 'content': 'x<|im_end|>y'}]
  assert learned(make_tok(CHATML), messages) == ['x<|im_end|>y<|im_end|>']


def test_keys_without_a_value_do_not_matter(make_tok):
  messages = [m | {'tool_calls': None} for m in CHAT]
  tok = make_tok(CHATML)
  assert learned(tok, messages) == learned(tok, CHAT)


@pytest.mark.parametrize(
  'template, match',
  [
    (
      '{% for m in messages %}{{ m.role }}{% endfor %}',
      r'\[1\].* leaves out content',
    ),
    (
      '{% for m in messages %}{{ m.content + m.content }}{% endfor %}',
      r'messages\[1\].* repeats',
    ),
    (
      "{% for m in messages %}{{ m.content.split('t')[-1] }}{% endfor %}",
      r'messages\[1\].* nothing that ends',
    ),
    (
      "{% for m in messages %}{{ m.content.split('t')[-1] }}<|im_end|>"
      '{% endfor %}',
      r'messages\[3\].* leaves out content',
    ),
    (
      '{% for m in messages %}{{ m.content | upper }}{% endfor %}',
      r'messages\[1\].* changes content',
    ),
    (
      '{{ messages[3].content }}<|im_end|>{{ messages[1].content }}<|im_end|>',
      r'messages\[3\].* moves what',
    ),
    ('{{ messages[1].content }}<|im_end|>', r'messages\[3\].* leaves out'),
    (
      '{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}'
      '{{ m.content }}{% endfor %}',
      r'marks 4 parts of 2 assistant messages',
    ),
    (
      "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
      '{{ m.role }}{% endgeneration %}{% endif %}{{ m.content }}{% endfor %}',
      r'messages\[3\].* leaves out content',
    ),
  ],
)
def test_a_template_that_loses_the_answer_is_refused(make_tok, template, match):
  with pytest.raises(UserError, match=match):
    learned(make_tok(template), CHAT)


def call(name, **arguments):
  return {
    'type': 'function',
    'function': {'name': name, 'arguments': arguments},
  }


def test_what_a_template_leaves_out(make_tok):
  called = CHAT[:1] + [
    {'role': 'assistant', 'content': '', 'tool_calls': [call('f', x=1)]}
  ]
  thought = CHAT[:1] + [CHAT[1] | {'reasoning_content': 'why'}]
  for template in (CHATML, TAGGED):
    with pytest.raises(UserError, match=r'\[1\].* leaves out tool_calls\[0\]'):
      learned(make_tok(template), called)
    with pytest.raises(UserError, match=r'\[1\].* out reasoning_content'):
      learned(make_tok(template), thought)
  two = '{% generation %}{{ messages[1].content }}{% endgeneration %}'
  with pytest.raises(UserError, match=r'marks 2 parts of 1 assistant'):
    learned(make_tok(two + two), CHAT[:2], learn_from=1)


def test_context_that_a_template_leaves_out(make_tok):
  only = (
    "{% for m in messages %}{% if m.role != 'tool' %}{{ m.content }}<|im_end|>"
    '{% endif %}{% endfor %}'
  )
  tool = [CHAT[0], {'role': 'tool', 'content': 'sunny'}, CHAT[1]]
  with pytest.raises(UserError, match=r"\[1\].* leaves out .*role 'tool'"):
    learned(make_tok(only), tool)


def test_tags_that_close_before_the_end_mark(make_tok):
  template = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    '{{ m.content }}{% endgeneration %}<|im_end|>\n{% else %}{{ m.content }}'
    '<|im_end|>{% endif %}{% endfor %}'
  )
  assert learned(make_tok(template), CHAT) == [
    'a<|im_end|>',
    ' sat on a\nmat <|im_end|>',
  ]


@pytest.mark.parametrize('template', (CHATML, LLAMA3, TAGGED))
def test_which_turns_are_learned(make_tok, template):
  tok = make_tok(template)
  first, last = learned(tok, CHAT)
  assert learned(tok, CHAT, learn='last') == [last]
  assert learned(tok, CHAT[:3], learn='last') == [first]
  assert learned(tok, CHAT, weights=[1, 1, 1, 0]) == [first]
  assert learned(tok, CHAT, weights=[1, 1, 1, 0], learn='last') == []
  _, weights = chat_mask.encode_with_mask(tok, CHAT, weights=[0, 0.25, 0, 2])
  whole = chat_mask.encode_with_mask(tok, CHAT)[1]
  assert set(weights) == {0.0, 0.25, 2.0}
  assert [w > 0 for w in weights] == [w > 0 for w in whole]


def test_overlapped():
  offsets = [(0, 0), (0, 2), (2, 3), (3, 5), (5, 5), (5, 6), (6, 9)]
  assert chat_mask.overlapped(offsets, [(1, 2), (4, 6)]) == [
    None, 0, None, 1, None, 1, None
  ]  # fmt: skip
  assert chat_mask.overlapped(offsets, []) == [None] * 7
