"""Messages as data sets write them come to one form; others are refused."""

import json

import pytest

from llm.errors import UserError
from llm.text.messages import (
  canonical_calls,
  canonical_messages,
  canonical_tools,
)

CALL = {
  'type': 'function',
  'function': {'name': 'weather', 'arguments': {'town': 'Paris'}},
}
TEXT = '{"town": "Paris"}'


def assistant(**keys):
  return [{'role': 'assistant', **keys}]


@pytest.mark.parametrize(
  'calls',
  [
    [CALL],
    # OpenAI's API, whose arguments are JSON text.
    [{'type': 'function', 'function': {'name': 'weather', 'arguments': TEXT}}],
    [{'name': 'weather', 'arguments': {'town': 'Paris'}}],
    [{'name': 'weather', 'arguments': TEXT, 'id': None}],
    {'name': 'weather', 'arguments': TEXT},
    json.dumps([CALL]),
    [json.dumps(CALL)],
  ],
)
def test_tool_calls(calls):
  [message] = canonical_messages(assistant(content=None, tool_calls=calls))
  assert message == {'role': 'assistant', 'content': '', 'tool_calls': [CALL]}
  if isinstance(calls, dict):
    [older] = canonical_messages(assistant(content='', function_call=calls))
    assert older == message


def test_calls_keep_what_else_they_have():
  [call] = canonical_calls([{'id': 'a1', **CALL}], 'tool_calls')
  assert call == {'id': 'a1', **CALL}
  [call] = canonical_calls([{'name': 'now'}], 'tool_calls')
  assert call['function'] == {'name': 'now', 'arguments': {}}
  [call] = canonical_calls([{'name': 'now', 'arguments': ' '}], 'tool_calls')
  assert call['function']['arguments'] == {}


@pytest.mark.parametrize('empty', (None, [], '', '[]'))
def test_no_calls(empty):
  messages = assistant(content='a', tool_calls=empty)
  assert canonical_messages(messages) == assistant(content='a')


@pytest.mark.parametrize(
  'content, text',
  [
    ([{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}], 'ab'),
    # A Parquet column of parts gives each the keys of all others.
    ([{'type': 'text', 'text': 'a', 'image_url': None}], 'a'),
    ([{'type': 'output_text', 'text': 'a'}], 'a'),
    ({'type': 'text', 'text': 'a'}, 'a'),
    (['a', {'text': 'b'}], 'ab'),
    ([], ''),
  ],
)
def test_text_parts(content, text):
  [message] = canonical_messages([{'role': 'user', 'content': content}])
  assert message == {'role': 'user', 'content': text}


@pytest.mark.parametrize('key', ('reasoning_content', 'reasoning', 'thinking'))
def test_reasoning_has_one_name(key):
  given = assistant(content='4', **{key: 'count'})
  want = assistant(content='4', reasoning_content='count')
  assert canonical_messages(given) == want
  assert canonical_messages(assistant(content='4', **{key: ''})) == assistant(
    content='4'
  )


def test_tools():
  tool = {'type': 'function', 'function': {'name': 'f', 'parameters': {}}}
  bare = tool['function']
  for given in (
    [tool], json.dumps([tool]), [bare], json.dumps([bare]), {'tools': [tool]},
    [json.dumps(tool)],
  ):  # fmt: skip
    assert canonical_tools(given) == [tool]
  for empty in (None, [], '', '[]', 'null'):
    assert canonical_tools(empty) is None


@pytest.mark.parametrize(
  'messages, match',
  [
    ([], r'messages=\[\]: give a list'),
    ('hi', "messages='hi': give a list"),
    ([{'content': 'a'}], r'messages\[0\]: .*"role"'),
    ([{'role': 7, 'content': 'a'}], r'messages\[0\]'),
    ([{'role': 'user', 'content': 7}], r'messages\[0\].content=7'),
    ([{'role': 'user', 'content': [{'type': 'image'}]}], r'content\[0\].*only'),
    ([{'role': 'user', 'content': [7]}], r'content\[0\]=7'),
    (assistant(tool_calls=7), r'tool_calls=7'),
    (assistant(tool_calls=[1]), r'tool_calls\[0\]=1'),
    (assistant(tool_calls=[{'name': 'f', 'arguments': 'x'}]), 'is not JSON'),
    (assistant(tool_calls=[{'name': 'f', 'arguments': '[1]'}]), 'give an obj'),
    (assistant(tool_calls='x'), 'is not JSON'),
    (assistant(content='', reasoning_content=['a']), 'reasoning_content='),
    (assistant(content='', reasoning='a', thinking='b'), 'keep one of them'),
    (assistant(tool_calls=[]), 'says nothing'),
  ],
)  # fmt: skip
def test_bad_messages(messages, match):
  with pytest.raises(UserError, match=match):
    canonical_messages(messages)


@pytest.mark.parametrize('tools', ('x', 7, [7], [{}], {'a': 1}, '7'))
def test_bad_tools(tools):
  with pytest.raises(UserError, match='tools'):
    canonical_tools(tools)
