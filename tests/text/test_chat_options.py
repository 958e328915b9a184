"""System prompt, tools and template variables: fields, files, rows."""

import json

from ml_collections import config_dict
import pytest

from llm.errors import UserError
from llm.text import chat_options
from llm.text.chat_options import ChatOptions
from llm.text.tokenizer import load_tokenizer

# Tools as a list in the first turn and a variable for thinking, as Qwen3 has.
TEMPLATE = (
  '{% if tools %}<t>{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}'
  '{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}'
  '{% if add_generation_prompt %}<a>'
  '{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}'
  '{% endif %}'
)
PLAIN = '{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}'
USER = [{'role': 'user', 'content': 'q'}]
BARE = {'name': 'weather', 'parameters': {'type': 'object'}}
WEATHER = {'type': 'function', 'function': BARE}
CLOCK = {'type': 'function', 'function': {'name': 'clock'}}


def tokenizer(template=TEMPLATE):
  tok = load_tokenizer('bytes')
  if template is not None:
    tok.chat_templates['default'] = template
  return tok


def fields(**values):
  config = config_dict.ConfigDict(dict.fromkeys(chat_options.FIELDS))
  config.update(values)
  return config


@pytest.mark.parametrize(
  'text',
  [
    '{"enable_thinking": false, "date": "May"}',  # JSON
    "{'enable_thinking': False, 'date': 'May'}",  # Python
    ' {"enable_thinking":False,"date":"May",} ',
  ],
)
def test_variables_are_json_or_python(text):
  options = chat_options.read_options(fields(chat_template_kwargs=text))
  assert options.variables == {'enable_thinking': False, 'date': 'May'}
  assert options.given == ('chat_template_kwargs',)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('enable_thinking=False', 'neither JSON nor Python'),
    ('[1]', r'=\[1\]: write'),
    ('', "='': neither JSON nor Python"),
    ('{"a b": 1}', "'a b' is no name"),
    ('{1: 2}', '1 is no name'),
    ('{"tools": []}', "'tools' cannot be set here"),
    ('{"add_generation_prompt": true}', 'cannot be set here: the run sets it'),
    ('{"a": {1, 2}}', 'use values that JSON has'),
    ('{"a": ' + '[' * 9999, 'neither JSON nor Python'),
  ],
)
def test_bad_variables(text, message):
  with pytest.raises(UserError, match=f'^data.chat_template_kwargs.*{message}'):
    chat_options.read_options(fields(chat_template_kwargs=text), 'data.')


@pytest.mark.parametrize(
  'text',
  [
    json.dumps([WEATHER, CLOCK]),
    json.dumps({'tools': [WEATHER, CLOCK]}, indent=2),
    f'{json.dumps(WEATHER)}\r\n\n{json.dumps(CLOCK)}\n',  # JSON lines
    '\ufeff' + json.dumps([BARE, {'name': 'clock'}]),
    json.dumps([json.dumps(WEATHER), CLOCK]),
  ],
)
def test_files_of_tools(tmp_path, text):
  path = tmp_path / 'tools.json'
  path.write_text(text, encoding='utf-8', newline='')
  options = chat_options.read_options(fields(tools=str(path)))
  assert options.tools == (WEATHER, CLOCK)


def test_a_file_of_one_tool(tmp_path):
  path = tmp_path / 'tool.json'
  path.write_text(json.dumps(WEATHER))
  assert chat_options.read_tools(str(path), 'tools') == (WEATHER,)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'is empty'),
    ('[]', 'holds no tools'),
    ('[{"type": "function"', 'not valid JSON'),
    ('"weather"', 'not JSON'),
    ('[1]', r'\[0\]=1: give a JSON schema'),
    ('[{"type": "web_search"}]', r'\[0\]: .* is no function; write'),
    ('[{"type": "function", "function": {"name": ""}}]', 'is no function'),
    ('{"functions": []}', 'is no function'),
    (
      '[{"name": "a", "parameters": ["town"]}]',
      r'\[0\]: .* is no function; write',
    ),
    (json.dumps([WEATHER, CLOCK, BARE]), "two tools are called 'weather'"),
  ],
)
def test_bad_files_of_tools(tmp_path, text, message):
  path = tmp_path / 'tools.json'
  path.write_text(text)
  with pytest.raises(UserError, match=f'^data.tools=.*tools.json.*{message}'):
    chat_options.read_options(fields(tools=str(path)), 'data.')


def test_paths_that_are_no_file_of_tools(tmp_path):
  for path, message in (
    (tmp_path, 'is a folder'),
    (tmp_path / 'no.json', 'does not exist: name a JSON file'),
  ):
    with pytest.raises(UserError, match=message):
      chat_options.read_tools(str(path), 'tools')
  latin = tmp_path / 'latin.json'
  latin.write_bytes(b'["\xe9"]')
  with pytest.raises(UserError, match='not UTF-8 at byte 2'):
    chat_options.read_tools(str(latin), 'tools')


def test_all_three_are_rendered():
  options = ChatOptions('be terse', (CLOCK,), {'enable_thinking': False})
  text = chat_options.render(tokenizer(), USER, options)
  assert text == f'<t>{json.dumps(CLOCK)}<s>be terse<u>q<a><no>'
  ids = chat_options.encode(tokenizer(), USER, options)
  assert tokenizer().decode(ids, skip_special=False) == text
  assert chat_options.render(tokenizer(), USER, ChatOptions()) == '<u>q<a>'


def test_a_conversation_keeps_its_own_system_prompt():
  own = [{'role': 'developer', 'content': 'mine'}, *USER]
  options = ChatOptions('be terse')
  assert chat_options.render(tokenizer(), own, options) == '<d>mine<u>q<a>'


def test_a_row_wins_column_by_column():
  run = ChatOptions('run', (CLOCK,), {'a': 1, 'b': 2})

  def merged(**row):
    return chat_options.row_options(row, USER, run)

  assert merged() == run
  assert merged(system=None, tools=None, chat_template_kwargs=None) == run
  assert merged(system='row') == ChatOptions('row', run.tools, run.variables)
  assert merged(system='') == run
  assert merged(tools=[]).tools == ()
  assert merged(tools=json.dumps([BARE])).tools == (WEATHER,)
  assert merged(chat_template_kwargs={'b': 3}).variables == {'a': 1, 'b': 3}
  assert merged(chat_template_kwargs='{"c": null}').variables == {
    'a': 1,
    'b': 2,
    'c': None,
  }


def test_columns_that_are_refused():
  def refused(message, messages=USER, run=ChatOptions(), **row):
    with pytest.raises(UserError, match=message):
      chat_options.row_options(row, messages, run)

  refused(r"system=\['a'\]: give a string", system=['a'])
  refused('tools=5: give a list', tools=5)
  refused('chat_template_kwargs=5: write', chat_template_kwargs=5)
  refused('system: of conversations only', messages=None, system='a')
  refused('tools: of conv', messages=None, run=ChatOptions(tools=(CLOCK,)))
  own = [{'role': 'system', 'content': 'b'}, *USER]
  refused("system='a': the messages begin with another", own, system='a')
  same = chat_options.row_options({'system': 'b'}, own, ChatOptions())
  assert chat_options.render(tokenizer(), own, same) == '<s>b<u>q<a>'


@pytest.mark.parametrize(
  ('options', 'template', 'message'),
  [
    (ChatOptions('a'), None, '^data.system: is written by a chat template'),
    (ChatOptions(tools=(CLOCK,)), PLAIN, '^data.tools: .* does not read tools'),
    (
      ChatOptions(variables={'enable_thinkin': True}),
      TEMPLATE,
      "^data.chat_template_kwargs: .*reads no 'enable_thinkin'",
    ),
  ],
)
def test_what_the_template_does_not_read(options, template, message):
  with pytest.raises(UserError, match=message):
    chat_options.check_template(tokenizer(template), options, 'data.')
  chat_options.check_template(tokenizer(template), ChatOptions())


def test_what_the_template_leaves_out():
  # Reads tools and the role of each message, and writes only some of them.
  deaf = (
    '{% if tools and tools | length > 1 %}{{ tools }}{% endif %}'
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
  )
  for options, message in (
    (ChatOptions('be terse'), "system='be terse': .* leaves it out"),
    (ChatOptions(tools=(CLOCK,)), "does not write 'clock'"),
  ):
    with pytest.raises(UserError, match=message):
      chat_options.render(tokenizer(deaf), USER, options)


def test_an_empty_system_prompt_is_refused():
  with pytest.raises(UserError, match="^data.system=' ': write one, or leave"):
    chat_options.read_options(fields(system=' '), 'data.')
