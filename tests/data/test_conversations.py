"""What stands beside a conversation is read in every shape, or refused."""

import itertools
import json

import pytest

from llm.data import pairs, rated, shapes, steps
from llm.data.columns import RowOptions
from llm.errors import UserError
from llm.text.chat_options import ChatOptions

ASK = {'role': 'user', 'content': 'q'}
SAY = {'role': 'assistant', 'content': 'a'}
OTHER = {'role': 'assistant', 'content': 'b'}
SYSTEM = {'role': 'system', 'content': 'be terse'}
BEFORE = [
  {'role': 'user', 'content': 'earlier'},
  {'role': 'assistant', 'content': 'turn'},
]
TOOL = {'type': 'function', 'function': {'name': 'weather', 'parameters': {}}}
HUMAN, GPT = {'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}

PAIR = {'chosen': 'a', 'rejected': 'b'}
ROWS = {
  'messages': {'messages': [ASK, SAY]},
  'conversations': {'conversations': [ASK, SAY]},
  'ShareGPT': {'conversations': [HUMAN, GPT]},
  'prompt and completion': {'prompt': [ASK], 'completion': [SAY]},
  'Alpaca': {'instruction': 'q', 'input': '', 'output': 'a'},
  'Dolly': {'instruction': 'q', 'context': '', 'response': 'a'},
  'question': {'question': 'q', 'answer': 'a'},
}
PAIRS = {
  'pair of messages': {'prompt': [ASK], 'chosen': [SAY], 'rejected': [OTHER]},
  'pair beside messages': {'messages': [ASK], **PAIR},
  'pair of ShareGPT': {'conversations': [HUMAN], **PAIR},
  'pair of Alpaca': {'instruction': 'q', 'input': '', **PAIR},
  'pair of question': {'question': 'q', **PAIR},
  'whole conversations': {'chosen': [ASK, SAY], 'rejected': [ASK, OTHER]},
}
PROMPTS = {
  'prompt': {'prompt': [ASK], 'answer': '1'},
  'prompt messages': {'messages': [ASK], 'answer': '1'},
  'prompt ShareGPT': {'conversations': [HUMAN], 'answer': '1'},
  'prompt question': {'question': 'q', 'answer': '1'},
}


def readers():
  """(name, function of a row) -> its canonical rows, for every shape."""
  read = shapes.canonical_row
  for name, row in ROWS.items():
    yield name, row, lambda row: [read(row, True)]
    kto = {**row, 'label': True}
    yield f'rated {name}', kto, lambda row: [rated.parse_row(row)[0][0]]
  for name, row in PAIRS.items():
    yield name, row, lambda row: pairs.parse_row(row)[0]
  for name, row in PROMPTS.items():
    yield name, row, lambda row: [shapes.canonical_prompt(row, True)]
  step = {'prompt': [ASK], 'completions': ['x'], 'labels': [True]}
  yield 'steps', step, lambda row: [steps.parse_row(row).prompt]


READERS = list(readers())
COLUMNS = [
  ({'system': 'be terse'}, dict(head=[SYSTEM])),
  ({'system_prompt': 'be terse'}, dict(head=[SYSTEM])),
  ({'system': [{'type': 'text', 'text': 'be terse'}]}, dict(head=[SYSTEM])),
  ({'history': [['earlier', 'turn']]}, dict(head=BEFORE)),
  ({'history': BEFORE}, dict(head=BEFORE)),
  (
    {'system': 'be terse', 'history': [['earlier', 'turn']]},
    dict(head=[SYSTEM, *BEFORE]),
  ),
  ({'tools': [TOOL]}, dict(tools=[TOOL])),
  ({'tools': json.dumps([TOOL])}, dict(tools=[TOOL])),
  ({'tools': [TOOL['function']]}, dict(tools=[TOOL])),
  (
    {'chat_template_kwargs': {'enable_thinking': False}},
    dict(variables={'enable_thinking': False}),
  ),
  (
    {'chat_template_kwargs': '{"enable_thinking": false}'},
    dict(variables={'enable_thinking': False}),
  ),
  (
    {'documents': [{'text': 'x'}]},
    dict(variables={'documents': [{'text': 'x'}]}),
  ),
  ({'system': '', 'history': [], 'tools': '', 'images': []}, {}),
  ({'system': None, 'tools': None, 'chat_template_kwargs': None}, {}),
]  # fmt: skip


@pytest.mark.parametrize('name, row, read', READERS, ids=lambda v: str(v)[:24])
def test_every_column_means_the_same_in_every_shape(name, row, read):
  for plain, (column, want) in itertools.product([read(row)], COLUMNS):
    for before, after in zip(plain, read({**row, **column}), strict=True):
      head = want.get('head', [])
      assert after.messages == head + before.messages, column
      assert after.tools == want.get('tools'), column
      assert after.variables == want.get('variables', {}), column
      if before.learn_from:
        assert after.learn_from == before.learn_from + len(head), column
      assert not after.unread


@pytest.mark.parametrize('name, row, read', READERS, ids=lambda v: str(v)[:24])
def test_what_cannot_be_read_is_refused(name, row, read):
  for column, match in [
    ({'tools': 'x'}, 'tools'),
    ({'tools': 7}, 'tools=7'),
    ({'system': 7}, 'system'),
    ({'history': [['x']]}, r'history\[0\]'),
    ({'history': 'x'}, r'history\[0\]'),
    ({'images': ['a.png']}, 'images: only text'),
    ({'chat_template_kwargs': '{'}, 'chat_template_kwargs'),
    ({'chat_template_kwargs': [1]}, 'chat_template_kwargs'),
    ({'system': 'a', 'system_prompt': 'b'}, 'system and system_prompt'),
  ]:
    with pytest.raises(UserError, match=match):
      read({**row, **column})


@pytest.mark.parametrize(
  'read, row',
  [
    (shapes.canonical_row, {'prompt': 'a', 'completion': 'b'}),
    (shapes.canonical_row, {'text': 'a'}),
    (shapes.canonical_prompt, {'prompt': 'a'}),
    (pairs.parse_row, {'prompt': 'q', **PAIR}),
    (rated.parse_row, {'prompt': 'q', 'completion': 'a', 'label': True}),
  ],
)
def test_strings_have_no_place_for_them(read, row):
  for column in (
    {'system': 's'}, {'history': [['x', 'y']]}, {'tools': [TOOL]},
    {'chat_template_kwargs': {'a': 1}}, {'context': 'c'}, {'input': 'i'},
  ):  # fmt: skip
    [name] = column
    if read is shapes.canonical_prompt and name in ('context', 'input'):
      continue  # a reward function may want them
    with pytest.raises(UserError, match=name):
      read({**row, **column}, True)
    ignoring = RowOptions(ignore=(name,))
    assert read({**row, **column}, True, ignoring) == read(row, True)
  for options in (ChatOptions(system='s'), ChatOptions(tools=(TOOL,))):
    with pytest.raises(UserError, match='system|tools'):
      read(row, True, RowOptions(chat=options))


def test_what_the_run_says_is_for_rows_that_say_nothing():
  run = RowOptions(chat=ChatOptions('run', (TOOL,), {'a': 1, 'b': 1}))
  row = {'messages': [ASK, SAY]}
  read = shapes.canonical_row(row, True, run)
  assert read.messages[0] == {'role': 'system', 'content': 'run'}
  assert read.tools == [TOOL] and read.variables == {'a': 1, 'b': 1}
  own = {'system': 'own', 'tools': [], 'chat_template_kwargs': {'b': 2}}
  read = shapes.canonical_row({**row, **own}, True, run)
  assert read.messages[0] == {'role': 'system', 'content': 'own'}
  assert read.tools is None and read.variables == {'a': 1, 'b': 2}
  read = shapes.canonical_row({'messages': [SYSTEM, ASK, SAY]}, True, run)
  assert read.messages == [SYSTEM, ASK, SAY]


def test_two_system_messages():
  row = {'messages': [SYSTEM, ASK, SAY], 'system': 'be terse'}
  assert shapes.canonical_row(row, True).messages == [SYSTEM, ASK, SAY]
  with pytest.raises(UserError, match="system='S2': .*another system message"):
    shapes.canonical_row({**row, 'system': 'S2'}, True)


def test_sharegpt_roles():
  call = {'type': 'function', 'function': {'name': 'f', 'arguments': {'x': 1}}}
  turns = [
    ('system', 's'),
    ('human', 'q'),
    ('function_call', '{"name": "f", "arguments": {"x": 1}}'),
    ('observation', '{"y": 2}'),
    ('gpt', 'a'),
    ('user', 'q2'),
    ('tool_call', '[{"name": "f", "arguments": "{\\"x\\": 1}"}]'),
    ('tool', 'z'),
    ('chatgpt', 'b'),
  ]
  row = {'conversations': [{'from': f, 'value': v} for f, v in turns]}
  said = [
    (m['role'], m.get('tool_calls', m['content']))
    for m in shapes.canonical_row(row, True).messages
  ]
  assert said == [
    ('system', 's'), ('user', 'q'), ('assistant', [call]),
    ('tool', '{"y": 2}'), ('assistant', 'a'), ('user', 'q2'),
    ('assistant', [call]), ('tool', 'z'), ('assistant', 'b'),
  ]  # fmt: skip
  with pytest.raises(UserError, match=r'\[0\].*is not JSON'):
    bad = {'conversations': [{'from': 'function_call', 'value': 'f(x=1)'}]}
    shapes.canonical_row(bad, True)


@pytest.mark.parametrize(
  'keys, weight',
  [
    ({'weight': 0}, 0.0),
    ({'weight': 0.5}, 0.5),
    ({'weight': 1}, 1.0),
    ({'train': False}, 0.0),
    ({'train': True}, 1.0),
    ({'loss': False}, 0.0),
    ({'weight': 0, 'train': False}, 0.0),
    ({'weight': None}, 1.0),
  ],
)
def test_weights_of_turns(keys, weight):
  for row in (
    {'messages': [ASK, SAY | keys]},
    {'conversations': [HUMAN, GPT | keys]},
    {'prompt': [ASK], 'completion': [SAY | keys]},
  ):
    read = shapes.canonical_row(row, True)
    assert read.weights == (1.0, weight) and read.messages == [ASK, SAY]


@pytest.mark.parametrize(
  'turn, match',
  [
    (SAY | {'weight': -1}, 'weight=-1'),
    (SAY | {'weight': 'high'}, "weight='high'"),
    (SAY | {'weight': True}, 'weight=True'),
    (SAY | {'weight': 10**400}, 'weight=1000'),
    (SAY | {'weight': float('nan')}, 'weight=nan'),
    (SAY | {'train': 1}, 'train=1: give true or false'),
    (SAY | {'train': True, 'weight': 0}, 'do not agree'),
    (ASK | {'train': True}, "weight 1.0 and the role 'user'"),
  ],
)
def test_bad_weights(turn, match):
  with pytest.raises(UserError, match=rf'messages\[0\].*{match}'):
    shapes.canonical_row({'messages': [turn, SAY]}, True)


def test_columns_that_are_not_read_are_named():
  row = {'messages': [ASK, SAY], 'id': 7, 'source': 'x', 'empty': None}
  assert shapes.canonical_row(row, True).unread == ('id', 'source')
  ignoring = RowOptions(ignore=('id',))
  assert shapes.canonical_row(row, True, ignoring).unread == ('source',)
  # What the conversation says already is no loss.
  repeated = {**row, 'prompt': 'q', 'instruction': '', 'id': None}
  assert shapes.canonical_row(repeated, True).unread == ('source',)
  with pytest.raises(UserError, match="prompt='r' has no place .*ignore_col"):
    shapes.canonical_row({**row, 'prompt': 'r'}, True)


A, B = [ASK, SAY], [ASK, OTHER]
HH = '\n\nHuman: q\n\nAssistant: {}'


@pytest.mark.parametrize(
  'row',
  [
    {'prompt': 'q', 'chosen': A, 'rejected': B},  # ultrafeedback_binarized
    {'prompt': 'q', 'chosen': A, 'rejected': B, 'messages': A},
    {'prompt': [ASK], 'chosen': A, 'rejected': B},
    {'messages': [ASK], 'chosen': A, 'rejected': B},
    {'messages': A, 'chosen': A, 'rejected': B},
    {'conversations': [HUMAN], 'chosen': A, 'rejected': B},
    {'question': 'q', 'chosen': A, 'rejected': B},
    {'chosen': A, 'rejected': B},
    {'prompt': 'q', 'chosen': HH.format('a'), 'rejected': HH.format('b')},
    {'prompt': HH.format(''), 'chosen': HH.format('a'),
     'rejected': HH.format('b')},
    {'prompt': 'q', 'chosen': [SAY], 'rejected': [OTHER]},
    {'prompt': 'q', 'chosen': SAY, 'rejected': OTHER},
    {'prompt': 'q', 'chosen': A, 'rejected': [OTHER]},
  ],
)  # fmt: skip
def test_a_prompt_is_there_once(row):
  chosen, rejected = pairs.parse_row(row)[0]
  assert (chosen.messages, chosen.learn_from) == ([ASK, SAY], 1)
  assert (rejected.messages, rejected.learn_from) == ([ASK, OTHER], 1)


def test_a_repeated_prompt_with_a_system_message():
  for row in (
    {'prompt': 'q', 'chosen': [SYSTEM, *A], 'rejected': [SYSTEM, *B]},
    {'prompt': [SYSTEM, ASK], 'chosen': A, 'rejected': B},
    {'prompt': [SYSTEM, ASK], 'completion': [SYSTEM, *A], 'label': True},
    {'prompt': [ASK], 'completion': A, 'label': True, 'system': 'be terse'},
  ):
    read = rated.parse_row(row)[0][0]
    assert (read.messages, read.learn_from) == ([SYSTEM, ASK, SAY], 2)


@pytest.mark.parametrize(
  'row, match',
  [
    ({'messages': A, 'chosen': [OTHER], 'rejected': [SAY]}, 'ends with what'),
    ({'prompt': [SYSTEM, ASK], 'chosen': [ASK | SYSTEM, *A],
      'rejected': [SYSTEM | {'content': 'x'}, *B]}, 'different system'),
    ({'prompt': 'other', 'chosen': HH.format('a'), 'rejected': HH.format('b')},
     "prompt='other': .* whole conversations"),
  ],
)  # fmt: skip
def test_prompts_that_do_not_fit(row, match):
  with pytest.raises(UserError, match=match):
    pairs.parse_row(row)
