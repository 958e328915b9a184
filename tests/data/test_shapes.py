"""Every known shape comes to one form; others are refused."""

import pytest

from llm.data.shapes import canonical_row
from llm.errors import UserError

ASK = {'role': 'user', 'content': 'q'}
SAY = {'role': 'assistant', 'content': 'a'}
SYSTEM = {'role': 'system', 'content': 's'}


@pytest.mark.parametrize(
  'value, messages, learn_from',
  [
    ({'messages': [ASK, SAY], 'id': 7, 'text': None}, [ASK, SAY], 0),
    ({'conversations': [{'from': 'human', 'value': 'q'},
                        {'from': 'gpt', 'value': 'a'}], 'system': 's'},
     [SYSTEM, ASK, SAY], 0),
    ({'conversations': [ASK, SAY]}, [ASK, SAY], 0),
    ({'prompt': [ASK, SAY, ASK], 'completion': [SAY]}, [ASK, SAY, ASK, SAY], 3),
    ({'instruction': 'q', 'input': '', 'output': 'a', 'text': 'x'}, [ASK, SAY],
     0),
    ({'instruction': 'q', 'output': 'a', 'system': 's'}, [SYSTEM, ASK, SAY], 0),
    ({'instruction': 'do', 'input': 'it', 'output': 'a'},
     [{'role': 'user', 'content': 'do\n\nit'}, SAY], 0),
  ],
)  # fmt: skip
def test_messages(value, messages, learn_from):
  row = canonical_row(value, has_template=True)
  assert (row.messages, row.learn_from) == (messages, learn_from)
  assert row.prompt is row.text is None


def test_tools_are_kept():
  row = canonical_row({'messages': [ASK, SAY], 'tools': [{'n': 1}]}, True)
  assert row.tools == [{'n': 1}]


@pytest.mark.parametrize('name', ('completion', 'response'))
def test_prompt_and_completion(name):
  row = canonical_row({'prompt': 'a ', name: ' b', 'topic': 1}, True)
  assert (row.prompt, row.completion) == ('a ', ' b')
  assert row.messages is row.text is None


def test_text():
  assert canonical_row({'text': 'a'}, True).text == 'a'


def test_alpaca_without_a_chat_template_is_stanfords_prompt():
  row = canonical_row({'instruction': 'Add.', 'output': '3'}, False)
  assert (row.prompt, row.completion) == (
    'Below is an instruction that describes a task. Write a response that'
    ' appropriately completes the request.\n\n### Instruction:\nAdd.\n\n'
    '### Response:\n',
    '3',
  )
  row = canonical_row(
    {'instruction': 'Add {x}.', 'input': '1 2', 'output': '3'}, False
  )
  assert row.prompt == (
    'Below is an instruction that describes a task, paired with an input that'
    ' provides further context. Write a response that appropriately completes'
    ' the request.\n\n### Instruction:\nAdd {x}.\n\n### Input:\n1 2\n\n'
    '### Response:\n'
  )


@pytest.mark.parametrize(
  'value, match',
  [
    ({'asked': 1, 'answer': 2}, "no known shape .*'asked', 'answer'"),
    ({'question': 1, 'answer': 'a'}, 'question=1: give a string'),
    ({}, 'no known shape .its keys: none'),
    ({'prompt': 'a'}, "no known shape .its keys: 'prompt'"),
    ({'prompt': 'a', 'completion': None}, 'no known shape'),
    ({'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}, 'no known shape'),
    ({'messages': [ASK], 'prompt': 'a', 'completion': 'b'}, 'two shapes, mess'),
    ({'messages': []}, 'messages=.*at least one'),
    ({'messages': 'hi'}, "messages='hi'"),
    ({'messages': [ASK, {'content': 'a'}]}, r'messages\[1\]'),
    ({'prompt': [ASK], 'completion': 'a'}, 'two strings or two lists'),
    ({'prompt': 'a', 'completion': 7}, 'completion=7: give a string'),
    ({'text': ['a']}, r"text=\['a'\]: give a string"),
    ({'conversations': [{'from': 'bing', 'value': 'a'}]}, "from='bing'"),
    ({'conversations': [{'from': 'gpt'}]}, r'conversations\[0\]'),
    ({'conversations': [{'from': 'gpt', 'value': 1}]}, r'\[0\].content=1'),
    ({'conversations': {}}, 'give a list of turns'),
    ({'instruction': 'a', 'output': 'b', 'system': 's'}, 'system: '),
    ({'instruction': 'a', 'output': 'b', 'history': [['x', 'y']]}, 'history: '),
    ({'instruction': 'a', 'output': 1}, 'output=1'),
  ],
)  # fmt: skip
def test_bad_rows(value, match):
  with pytest.raises(UserError, match=match):
    canonical_row(value, has_template=False)
