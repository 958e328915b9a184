"""Chat templates: where they come from, what they see, what they refuse."""

import pytest

from llm.errors import UserError
from llm.text import chat
from llm.text.tokenizer import load_tokenizer

CHATML = (
  '{% for message in messages %}'
  "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
  '{% endfor %}'
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
USER = [{'role': 'user', 'content': 'the cat'}]


@pytest.fixture
def with_template(make_folder, byte_level_bytes):
  def make(template, **files):
    named = {'bos_token': '<|begin_of_text|>', 'add_bos_token': True}
    return load_tokenizer(
      make_folder(
        {
          'tokenizer.json': byte_level_bytes,
          'tokenizer_config.json': named | {'chat_template': template},
        }
        | files
      )
    )

  return make


def test_chatml_by_hand(with_template):
  tok = with_template(CHATML)
  text = '<|im_start|>user\nthe cat<|im_end|>\n'
  assert chat.render(tok, USER, False) == text
  assert chat.render(tok, USER) == text + '<|im_start|>assistant\n'
  ids = chat.encode(tok, USER, add_generation_prompt=False)
  start, end = map(tok.token_id, ('<|im_start|>', '<|im_end|>'))
  inner = tok.encode('user\nthe cat', bos=False)
  assert ids == [start, *inner, end, *tok.encode('\n', bos=False)]


def test_bos_comes_from_the_template_alone(with_template):
  tok = with_template('{{ bos_token }}{{ messages[0].content }}')
  assert tok.encode('the')[0] == tok.bos_id  # the tokenizer would add one
  ids = chat.encode(tok, USER)
  assert ids[0] == tok.bos_id and ids.count(tok.bos_id) == 1
  # A rendered text that goes through `encode` does not get a second one.
  assert tok.encode(chat.render(tok, USER)) == ids


def test_where_templates_come_from(with_template):
  assert with_template('config').chat_template == 'config'
  older = {'chat_template.json': {'chat_template': 'json'}}
  assert with_template('config', **older).chat_template == 'json'
  newer = older | {'chat_template.jinja': 'jinja'}
  assert with_template('config', **newer).chat_template == 'jinja'


def test_named_templates(with_template):
  tok = with_template(
    [
      {'name': 'default', 'template': 'plain'},
      {'name': 'tool_use', 'template': '{{ tools | tojson }}'},
    ]
  )
  tools = [{'type': 'function', 'function': {'name': 'naïve<f>'}}]
  assert chat.render(tok, USER) == 'plain'
  assert chat.render(tok, USER, template='tool_use') == 'null'
  assert chat.render(tok, USER, tools=tools) == (
    '[{"type": "function", "function": {"name": "naïve<f>"}}]'
  )
  assert chat.render(tok, USER, template='{{ 1 + 1 }}') == '2'
  with pytest.raises(UserError, match="only the templates \\['default', 't"):
    chat.render(tok, USER, template='defualt')


@pytest.mark.parametrize(
  'template, text',
  [
    # Blocks are trimmed: no newline after one, no indentation before one.
    ('a\n  {% if true %}\nb\n  {% endif %}\nc', 'a\nb\nc'),
    ('{% for m in [1,2,3] %}{% if m == 2 %}{% break %}{% endif %}{{m}}'
     '{% endfor %}', '1'),
    ('{% generation %}{{ messages[0].content }}{% endgeneration %}!',
     'the cat!'),
    ('{{ "%Y" | length }}{{ strftime_now("%%") }}', '2%'),
    ('{{ {"b": "é", "a": [1]} | tojson(indent=1) }}',
     '{\n "b": "é",\n "a": [\n  1\n ]\n}'),
    ('{{ thinking }}', 'on'),
    ('{{ messages[0].tool_calls is defined }}', 'False'),
    ('{% set ns = namespace(n=0) %}{% set ns.n = 2 %}{{ ns.n }}', '2'),
  ],
)  # fmt: skip
def test_environment(with_template, template, text):
  tok = with_template(template)
  messages = [USER[0] | {'tool_calls': None}]
  given = {'thinking': 'on'} if 'thinking' in template else {}
  assert chat.render(tok, messages, **given) == text


@pytest.mark.parametrize(
  'template, match',
  [
    ("{{ raise_exception('roles must alternate') }}", 'roles must alternate'),
    ('{% if %}', r'does not compile.*line 1'),
    ("{{ ''.__class__.__mro__ }}", 'refuses the messages'),
    ('{{ messages.append(1) }}', 'refuses the messages'),
    ('{{ 1 / 0 }}', 'division by zero'),
    ([{'name': 1}], 'chat_template is neither'),
  ],
)
def test_template_errors(with_template, template, match):
  with pytest.raises(UserError, match=match) as caught:
    chat.render(with_template(template), USER)
  assert 'folder' in str(caught.value)  # the file is named


@pytest.mark.parametrize(
  'messages, match',
  [
    ([], 'at least one'),
    ('hi', 'at least one'),
    ([{'content': 'a'}], r'messages\[0\].*role'),
    ([USER[0], 'a'], r'messages\[1\]'),
    (
      [*USER, {'role': 'assistant', 'content': None, 'name': 'A'}],
      r"messages\[1\]: .*'content': None.* says nothing; give its \"content\"",
    ),
    ([{'role': 'user'}], r'messages\[0\]: .* says nothing'),
  ],
)
def test_bad_messages(with_template, messages, match):
  with pytest.raises(UserError, match=match):
    chat.render(with_template(CHATML), messages)


def test_no_template():
  match = 'bytes: .* has none; name a folder with one as tokenizer.path'
  with pytest.raises(UserError, match=match):
    chat.render(load_tokenizer('bytes'), USER)


def test_continue_final_message(with_template):
  tok = with_template(CHATML)
  messages = USER + [{'role': 'assistant', 'content': 'sat on '}]
  text = chat.render(tok, messages, False, continue_final_message=True)
  assert text == (
    '<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\nsat on '
  )
  trimmed = CHATML.replace("['content']", "['content'] | trim")
  short = chat.render(
    tok, messages, False, template=trimmed, continue_final_message=True
  )
  assert short == text.rstrip()
  with pytest.raises(UserError, match='add_generation_prompt'):
    chat.render(tok, messages, continue_final_message=True)
  with pytest.raises(UserError, match='does not write the last message'):
    chat.render(
      tok, USER, False, template='{{ 1 }}', continue_final_message=True
    )
