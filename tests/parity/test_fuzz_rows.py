"""Rows of any shape: nothing is lost in silence, nothing ends in a traceback.

Each string of a row is a word of its own. After a row was read, each of its
words is in the text that is learned from, or stands in a column (or a key of a
message) that is named as not read; or the row was refused.
"""

import itertools
import json

import hypothesis
from hypothesis import strategies as st
import pytest

from llm.data import examples, pairs, rated, shapes, steps
from llm.data.columns import RowOptions
from llm.errors import UserError
from llm.text.tokenizer import load_tokenizer
from tests.text.conftest import byte_level_bytes, make_folder  # noqa: F401

EXAMPLES = 5000
# Writes all that a row may have.
TEMPLATE = (
  '{%- if tools %}<|im_start|>tools {{ tools | tojson }}<|im_end|>{% endif %}'
  '{%- if documents %}{{ documents | tojson }}{% endif %}'
  '{%- if persona %}{{ persona }}{% endif %}'
  '{%- for m in messages %}<|im_start|>{{ m.role }}\n'
  '{%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>'
  '{% endif %}{{ m.content }}'
  '{%- for c in m.tool_calls or [] %}<tool>{{ c | tojson }}</tool>{% endfor %}'
  '<|im_end|>\n{% endfor %}'
  '{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
KINDS = ('sft', 'pairs', 'rated', 'prompts', 'steps')
NAMES = (
  *('messages', 'conversations', 'conversation', 'prompt', 'completion'),
  *('response', 'instruction', 'input', 'output', 'context', 'question'),
  *('answer', 'query', 'text', 'chosen', 'rejected', 'label', 'kto_tag'),
  *('margin', 'completions', 'labels', 'system', 'system_prompt', 'history'),
  *('tools', 'documents', 'chat_template_kwargs', 'images', 'id', 'source'),
  *('functions', 'weight'),
)
ROLES = ('system', 'user', 'assistant', 'tool', 'developer', 'function')
SENDERS = ('system', 'human', 'gpt', 'tool', 'function_call', 'observation')


@pytest.fixture(scope='module')
def tokenizers(byte_level_bytes, tmp_path_factory):  # noqa: F811
  """One with the chat template and one without."""

  def make(name, template):
    folder = tmp_path_factory.mktemp(name)
    (folder / 'tokenizer.json').write_bytes(byte_level_bytes)
    config = {'eos_token': '<|end_of_text|>'} | template
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    return load_tokenizer(folder)

  return [make('a', {'chat_template': TEMPLATE}), make('b', {})]


# A string of its own takes the place of each None when a row is finished.
word = st.none()
anything = st.recursive(
  word | st.booleans() | st.integers() | st.floats() | st.just(''),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
  ),
  max_leaves=6,
)
call = st.fixed_dictionaries(
  {'name': word, 'arguments': st.dictionaries(st.just('x'), word, max_size=1)}
)
content = word | st.lists(
  st.fixed_dictionaries({'type': st.just('text'), 'text': word}), max_size=2
)


def some(columns, most=2):
  """A dict of a few of these columns."""
  pairs = [st.tuples(st.just(name), of) for name, of in columns.items()]
  return st.lists(st.one_of(pairs), max_size=most).map(dict)


def with_some(base, columns, most=2):
  """The base with a few of these columns."""
  return st.tuples(some(columns, most), st.fixed_dictionaries(base)).map(
    lambda parts: {**parts[0], **parts[1]}
  )


extra = {
  'reasoning_content': word,
  'thinking': word,
  'tool_calls': st.lists(call, max_size=2),
  'weight': st.sampled_from([0, 1, 0.5]),
  'train': st.booleans(),
  'name': word,
  'id': word,
}
message = with_some(
  {'role': st.sampled_from(ROLES), 'content': content}, extra, 1
)
turn = with_some(
  {'from': st.sampled_from(SENDERS), 'value': word | call.map(json.dumps)},
  {'weight': extra['weight'], 'id': word},
  1,
)
wild = st.lists(message, max_size=4) | st.lists(turn, max_size=4)
ask = st.fixed_dictionaries({'role': st.just('user'), 'content': content})
reply = with_some({'role': st.just('assistant'), 'content': content}, extra, 1)
human = st.fixed_dictionaries({'from': st.just('human'), 'value': word})
gpt = with_some({'from': st.just('gpt'), 'value': word}, {'id': word}, 1)


def dialogue(*turns):
  several = st.lists(st.tuples(*turns), min_size=1, max_size=2)
  return several.map(lambda rounds: list(itertools.chain.from_iterable(rounds)))


whole = dialogue(ask, reply)
asked = st.lists(ask, min_size=1, max_size=2)
replies = st.lists(reply, min_size=1, max_size=2)
tool = st.fixed_dictionaries({'name': word, 'description': word})
besides = {
  'system': content,
  'history': st.lists(st.tuples(word, word).map(list), max_size=2),
  'tools': st.lists(tool, max_size=2),
  'documents': st.lists(st.dictionaries(st.just('text'), word), max_size=1),
  'chat_template_kwargs': st.fixed_dictionaries({'persona': word}),
  'id': word,
  'source': anything,
  'input': word,
  'context': word,
  'prompt': word,
  'messages': whole,
}
texts = [
  {'messages': whole},
  {'conversations': dialogue(human, gpt)},
  {'conversations': wild},
  {'prompt': word, 'completion': word},
  {'prompt': asked, 'completion': replies},
  {'instruction': word, 'output': word},
  {'question': word, 'answer': word},
]
both = [{'chosen': of, 'rejected': of} for of in (word, reply)]
pairs_ = [
  {'chosen': whole, 'rejected': whole},
  *(
    {**source, **two}
    for two in both
    for source in (
      {'prompt': word},
      {'prompt': asked},
      {'conversations': asked},
      {'instruction': word},
    )
  ),
]
labelled = {
  'completions': st.lists(word, max_size=3),
  'labels': st.lists(st.booleans(), max_size=3),
}
SHAPES = {
  'sft': [*texts, {'text': word}],
  'pairs': pairs_,
  'rated': [*pairs_, *({**row, 'label': st.booleans()} for row in texts)],
  'prompts': [{'prompt': word}, {'prompt': asked}, {'question': word}],
  'steps': [{'prompt': word, **labelled}, {'prompt': asked, **labelled}],
}


def rows(kind):
  """Mostly rows of the kind's shapes; the others have anything anywhere."""
  sound = st.one_of(*(with_some(shape, besides) for shape in SHAPES[kind]))
  mixed = st.dictionaries(
    st.sampled_from(NAMES), anything | wild, min_size=1, max_size=5
  )
  return st.one_of(sound, sound, sound, mixed)


def finish(value, counter):
  """The value with a word of its own in the place of each None."""
  if value is None:
    return f'w{next(counter)}w'
  if isinstance(value, dict):
    return {k: finish(v, counter) for k, v in value.items()}
  if isinstance(value, list):
    return [finish(v, counter) for v in value]
  return value


def words(value):
  """Every word in a value."""
  if isinstance(value, str) and value.startswith('w') and value.endswith('w'):
    yield value
  elif isinstance(value, dict):
    for part in value.values():
      yield from words(part)
  elif isinstance(value, list):
    for part in value:
      yield from words(part)


def read(kind, tok, row):
  """(all token ids that the row gives, what was not read)."""
  has, options = bool(tok.chat_templates), RowOptions()
  if kind == 'sft':
    found = [shapes.canonical_row(row, has)]
    encoded = [examples.encode_row(tok, found[0])]
  elif kind == 'pairs':
    found = pairs.parse_row(row, has)[0]
    encoded = [pairs.encode_rated(tok, each, options) for each in found]
  elif kind == 'rated':
    found = [each for each, _ in rated.parse_row(row, has)]
    encoded = [pairs.encode_rated(tok, each, options) for each in found]
  elif kind == 'steps':
    step = steps.parse_row(row, has)
    found = [step.prompt]
    encoded = [steps._encode(tok, step, '\n')[0]] if step.steps else []
  else:  # the row goes to reward functions as a whole
    found = shapes.canonical_prompt(row, has)
    return [examples.encode_prompt_row(tok, found)], list(row)
  unread = examples.unread_columns(tok, found, options)
  return [example.tokens.tolist() for example in encoded], unread


def check(kind, tok, row):
  try:
    found, unread = read(kind, tok, row)
  except UserError as error:
    assert str(error)
    return
  if not found:
    return  # a row without a step, which is counted as empty
  text = ''.join(tok.decode(ids, skip_special=False) for ids in found)
  keys = {name.removeprefix('messages.') for name in unread}

  def missing(value):
    if isinstance(value, dict):
      for key, part in value.items():
        if key not in keys:
          yield from missing(part)
    elif isinstance(value, list):
      for part in value:
        yield from missing(part)
    else:
      yield from (w for w in words(value) if w not in text)

  assert not list(missing(row)), (kind, row, text, unread)


@pytest.mark.parametrize('kind', KINDS)
def test_no_row_loses_anything_in_silence(tokenizers, kind):
  @hypothesis.settings(
    max_examples=EXAMPLES // len(KINDS),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(rows(kind), st.sampled_from([0, 0, 1]))
  def run(row, which):
    row = finish(row, itertools.count())
    check(kind, tokenizers[which], row)

  run()


def test_the_check_notices_a_loss(tokenizers, monkeypatch):
  row = {'messages': [{'role': 'user', 'content': 'w0w'},
                      {'role': 'assistant', 'content': 'w1w'}],
         'system': 'w2w', 'id': 'w3w'}  # fmt: skip
  check('sft', tokenizers[0], row)
  whole = shapes.with_shared
  monkeypatch.setattr(shapes, 'with_shared', lambda turns, shared: turns)
  with pytest.raises(AssertionError, match='w2w'):
    check('sft', tokenizers[0], row)
  monkeypatch.setattr(shapes, 'with_shared', whole)
  monkeypatch.setattr(examples, 'unread_columns', lambda *args: [])
  with pytest.raises(AssertionError, match='w3w'):
    check('sft', tokenizers[0], row)
