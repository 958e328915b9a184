"""What is learned with the published templates, which TRL comes with.

They are the originals of those that are written anew in tests/text/templates,
and TRL's versions of them have the assistant's turns marked by hand.
"""

import itertools
import json
import pathlib

import pytest
import trl

from llm.errors import UserError
from llm.text import chat, chat_mask
from llm.text.tokenizer import load_tokenizer
from tests.text import chats
from tests.text.conftest import byte_level_bytes  # noqa: F401
from tests.text.test_templates import CONVERSATIONS, learned

FOLDER = pathlib.Path(trl.__file__).parent / 'chat_templates'
PUBLISHED = {
  'chatml': 'qwen2_5',
  'llama3': 'llama3_2',
  'gemma3': 'gemma3',
  'qwen3': 'qwen3',
  'glm4': 'glm4moe',
  'phi3': 'phi3',
  'deepseek_r1': 'deepseek_r1_distill',
  'gpt_oss': 'gptoss',
}
# TRL's marks begin with the generation prompt, or with its last characters.
# Llama's is of another version, and Qwen3's writes thoughts into each turn.
MARKED = {
  'chatml': ('qwen2_5_training', '\n'),
  'gemma3': ('gemma3_training', ''),
  'glm4': ('glm4moe_training', ''),
  'phi3': ('phi3_training', ''),
  'deepseek_r1': ('deepseek_r1_distill_training', '<｜Assistant｜>'),
  'gpt_oss': ('gptoss_training', '<|start|>assistant'),
}
ALL = chats.CONVERSATIONS | CONVERSATIONS
EXPECTED = json.loads((chats.FOLDER / 'expected.json').read_text('utf-8'))
# GPT-OSS's needs one.
TOOL = {
  'type': 'function',
  'function': chats.TOOL['function'] | {'description': 'The weather.'},
}


@pytest.fixture(scope='module')
def tokenizers(tmp_path_factory, byte_level_bytes):  # noqa: F811
  """tokenizers(name) -> that of a template."""
  made = {}

  def get(name):
    if name not in made:
      folder = tmp_path_factory.mktemp(name)
      chats.save_tokenizer(folder, name, byte_level_bytes)
      made[name] = load_tokenizer(folder)
    return made[name]

  return get


def tools_of(messages):
  return [TOOL] if any('tool_calls' in m for m in messages) else None


def learned_with(tok, messages, file, learn='all'):
  """The learned parts, None where the row is refused."""
  template = (FOLDER / f'{file}.jinja').read_text('utf-8')
  options = dict(template=template, tools=tools_of(messages), learn=learn)
  try:
    return learned(tok, *chat_mask.encode_with_mask(tok, messages, **options))
  except UserError:
    return None


@pytest.mark.parametrize('learn', chat_mask.LEARN)
@pytest.mark.parametrize(
  'name, conversation', list(itertools.product(PUBLISHED, chats.CONVERSATIONS))
)
def test_as_with_the_templates_written_anew(
  tokenizers, name, conversation, learn
):
  messages = chats.CONVERSATIONS[conversation]
  text = EXPECTED[name][conversation][learn]
  expected = [part.split('»')[0] for part in text.split('«')[1:]] or None
  if name == 'deepseek_r1' and tools_of(messages):
    expected = None  # the published one writes no call beside a content
  found = learned_with(tokenizers(name), messages, PUBLISHED[name], learn)
  assert found == expected


@pytest.mark.parametrize('name', MARKED)
def test_as_trl_marks_it(tokenizers, name):
  tok, compared = tokenizers(name), 0
  file, prompt = MARKED[name]
  template = (FOLDER / f'{file}.jinja').read_text('utf-8')
  for messages in ALL.values():
    found = learned_with(tok, messages, PUBLISHED[name])
    if found is None:
      continue  # TRL leaves out what such a template does not write
    text, spans = chat.render_with_generation(
      tok, messages, template=template, tools=tools_of(messages)
    )
    # The newline after an end mark, and what Phi-3 puts behind a conversation,
    # are not learned here.
    marked = [text[start:stop].removesuffix('\n') for start, stop in spans]
    marked = [part for part in marked if part != '<|endoftext|>']
    assert all(part.startswith(prompt) for part in marked)
    assert found == [part.removeprefix(prompt) for part in marked]
    compared += 1
  assert compared >= 11
