"""Each cell of the table of columns in docs/data.md, against transformers."""

import json
import pathlib

import pytest
import transformers

from llm.data import examples, pairs, rated, shapes, steps
from llm.data.columns import RowOptions
from llm.errors import UserError
from llm.text.tokenizer import load_tokenizer
from tests.parity.test_fuzz_rows import TEMPLATE
from tests.text.conftest import byte_level_bytes  # noqa: F401

DOCS = pathlib.Path(__file__).parents[2] / 'docs' / 'data.md'
ASK = {'role': 'user', 'content': 'q'}
SAY = {'role': 'assistant', 'content': 'a'}
OTHER = {'role': 'assistant', 'content': 'b'}
SYSTEM = {'role': 'system', 'content': 'be terse'}
EARLIER = [
  {'role': 'user', 'content': 'earlier'},
  {'role': 'assistant', 'content': 'turn'},
]
TOOL = {'type': 'function', 'function': {'name': 'weather', 'parameters': {}}}
HUMAN, GPT = {'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}
STRINGS = {'prompt': 'q', 'completion': 'a'}
# Per shape: how it is read, and a row that says q and a.
SHAPES = {
  'messages': ('sft', {'messages': [ASK, SAY]}),
  'conversations': ('sft', {'conversations': [ASK, SAY]}),
  'ShareGPT': ('sft', {'conversations': [HUMAN, GPT]}),
  'prompt and completion, messages': (
    'sft', {'prompt': [ASK], 'completion': [SAY]}),
  'prompt and completion, strings': ('sft', STRINGS),
  'instruction': ('sft', {'instruction': 'q', 'output': 'a'}),
  'instruction, no chat template': (
    'plain', {'instruction': 'q', 'output': 'a'}),
  'question': ('sft', {'question': 'q', 'answer': 'a'}),
  'text': ('sft', {'text': 'q a'}),
  'rated messages': ('rated', {'messages': [ASK, SAY], 'label': True}),
  'rated strings': ('rated', {**STRINGS, 'label': True}),
  'pair, messages': (
    'pairs', {'prompt': [ASK], 'chosen': [SAY], 'rejected': [OTHER]}),
  'pair, whole conversations': (
    'pairs', {'chosen': [ASK, SAY], 'rejected': [ASK, OTHER]}),
  'pair, strings': ('pairs', {'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}),
  'pair beside conversations': (
    'pairs', {'conversations': [HUMAN], 'chosen': GPT, 'rejected': OTHER}),
  'pair with instruction': (
    'pairs', {'instruction': 'q', 'chosen': 'a', 'rejected': 'b'}),
  'prompt, messages': ('prompts', {'prompt': [ASK]}),
  'prompt, string': ('prompts', {'prompt': 'q'}),
  'prompt, question': ('prompts', {'question': 'q'}),
  'steps': (
    'steps', {'prompt': [ASK], 'completions': ['a'], 'labels': [True]}),
}  # fmt: skip
# Per column: a value, and what it makes of the conversation for transformers.
COLUMNS = {
  'system': ('be terse', lambda m, o: ([SYSTEM, *m], o)),
  'history': ([['earlier', 'turn']], lambda m, o: ([*EARLIER, *m], o)),
  'tools': (json.dumps([TOOL]), lambda m, o: (m, o | {'tools': [TOOL]})),
  'documents': (
    [{'text': 'x'}], lambda m, o: (m, o | {'documents': [{'text': 'x'}]})),
  'chat_template_kwargs': (
    {'persona': 'p'}, lambda m, o: (m, o | {'persona': 'p'})),
  'input': ('more', lambda m, o: ([ASK | {'content': 'q\n\nmore'}, *m[1:]], o)),
  'images': (['a.png'], None),
  'others': ('x', None),
}  # fmt: skip


def table():
  """(shape, column, cell) of each cell of the table."""
  lines = DOCS.read_text(encoding='utf-8').split('\n')
  start = next(n for n, line in enumerate(lines) if line.startswith('| shape'))
  split = lambda line: [cell.strip(' `') for cell in line.strip('|').split('|')]
  columns = split(lines[start])[1:]
  for line in lines[start + 2 :]:
    if not line.startswith('|'):
      return
    shape, *cells = split(line)
    for column, cell in zip(columns, cells, strict=True):
      yield shape, column, cell


CELLS = list(table())


@pytest.fixture(scope='module')
def folders(byte_level_bytes, tmp_path_factory):  # noqa: F811
  """Folders of a tokenizer with a chat template and of one without."""

  def make(name, template):
    folder = tmp_path_factory.mktemp(name)
    (folder / 'tokenizer.json').write_bytes(byte_level_bytes)
    config = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'eos_token': '<|end_of_text|>',
    }
    (folder / 'tokenizer_config.json').write_text(json.dumps(config | template))
    return folder

  return {
    True: make('chat', {'chat_template': TEMPLATE}),
    False: make('plain', {}),
  }


def read(kind, tok, row):
  """(token ids of the row, or of its first completion; what was not read)."""
  options, has = RowOptions(), bool(tok.chat_templates)
  if kind in ('sft', 'plain'):
    found = shapes.canonical_row(row, has)
    example = examples.encode_row(tok, found)
  elif kind == 'rated':
    found = rated.parse_row(row, has)[0][0]
    example = pairs.encode_rated(tok, found, options)
  elif kind == 'pairs':
    found = pairs.parse_row(row, has)[0][0]
    example = pairs.encode_rated(tok, found, options)
  elif kind == 'steps':
    found = steps.parse_row(row, has).prompt
    ids = examples.encode_prompt_row(tok, found)
    return ids, examples.unread_columns(tok, [found], options)
  else:
    found = shapes.canonical_prompt(row, has)
    return examples.encode_prompt_row(tok, found), []
  return example.tokens.tolist(), examples.unread_columns(tok, [found], options)


def test_the_table_has_every_cell():
  assert {shape for shape, _, _ in CELLS} == set(SHAPES)
  assert {column for _, column, _ in CELLS} == set(COLUMNS)
  assert len(CELLS) == len(SHAPES) * len(COLUMNS)
  assert {cell for _, _, cell in CELLS} == {
    'written', 'refused', 'named', 'kept'
  }  # fmt: skip


@pytest.mark.parametrize('shape, column, cell', CELLS)
def test_cell(folders, shape, column, cell):
  kind, row = SHAPES[shape]
  value, conversation = COLUMNS[column]
  folder = folders[kind != 'plain']
  tok = load_tokenizer(folder)
  plain = read(kind, tok, row)[0]
  more = {**row, column: value}
  if cell == 'refused':
    with pytest.raises(UserError, match=column):
      read(kind, tok, more)
    return
  ids, unread = read(kind, tok, more)
  if cell in ('named', 'kept'):
    assert ids == plain
    assert unread == ([column] if cell == 'named' else [])
  elif kind == 'plain':
    text = tok.decode(ids)
    assert '### Input:\nmore\n' in text and text.endswith('a')
  else:
    is_prompt = kind in ('prompts', 'steps')
    messages, options = conversation([ASK] if is_prompt else [ASK, SAY], {})
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = theirs.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=is_prompt, **options
    )
    assert tok.decode(ids, skip_special=False) == text
    assert ids == theirs(text, add_special_tokens=False)['input_ids']
    assert not unread
