"""Ten chat templates: texts and ids as transformers renders them."""

import itertools

import pytest
import transformers

from llm.errors import UserError
from llm.text import chat
from llm.text.tokenizer import load_tokenizer
from tests.text import chats
from tests.text.conftest import byte_level_bytes  # noqa: F401

CASES = list(itertools.product(chats.SPECIAL, chats.CONVERSATIONS))
# What the templates read besides.
VARIABLES = {
  'qwen3': {'enable_thinking': False},
  'glm4': {'enable_thinking': False},
  'smollm3': {'enable_thinking': False},
  'gpt_oss': {'reasoning_effort': 'high'},
}


@pytest.fixture(scope='module')
def both(tmp_path_factory, byte_level_bytes):  # noqa: F811
  """both(name) -> our tokenizer and that of transformers."""
  made = {}

  def get(name):
    if name not in made:
      folder = tmp_path_factory.mktemp(name)
      chats.save_tokenizer(folder, name, byte_level_bytes)
      theirs = transformers.AutoTokenizer.from_pretrained(folder)
      made[name] = load_tokenizer(folder), theirs
    return made[name]

  return get


@pytest.mark.parametrize('name, conversation', CASES)
def test_texts_and_ids(both, name, conversation):
  tok, theirs = both(name)
  messages = chats.CONVERSATIONS[conversation]
  # GPT-OSS has another name for the reasoning.
  given = messages
  if name == 'gpt_oss':
    key = {'reasoning_content': 'thinking'}
    given = [{key.get(k, k): v for k, v in m.items()} for m in messages]
  tools = chats.tools_of(name, messages)
  for prompt, more in itertools.product(
    (False, True), ({}, VARIABLES.get(name, {}))
  ):
    options = dict(tools=tools, **more)
    try:
      text = theirs.apply_chat_template(
        given, tokenize=False, add_generation_prompt=prompt, **options
      )
    except Exception as error:  # a template can raise anything
      with pytest.raises(UserError, match=str(error)[:20]):
        chat.render(tok, messages, prompt, **options)
      continue
    assert chat.render(tok, messages, prompt, **options) == text
    ids = theirs(text, add_special_tokens=False)['input_ids']
    assert chat.encode(tok, messages, prompt, **options) == ids
