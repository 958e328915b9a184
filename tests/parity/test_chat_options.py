"""System prompt, tools and variables: what transformers renders with them."""

import json

import pytest
import transformers

from llm.text import chat_options
from llm.text.chat_options import ChatOptions
from llm.text.tokenizer import load_tokenizer
from tests.text import conftest as tiny

byte_level_bytes = tiny.byte_level_bytes
make_folder = tiny.make_folder

# Tools in the system turn, and an empty thought where none is wanted, in the
# manner of Qwen3.
TEMPLATE = """\
{%- set own = messages[0].role == 'system' %}
{%- if tools %}
  {{- '<|im_start|>system\\n' }}
  {%- if own %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
  {{- '# Tools\\n' }}
  {%- for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}
  {{- '<|im_end|>\\n' }}
{%- elif own %}
  {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
  {%- if not (loop.first and own) %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {{- '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}
    {{- '<think>\\n\\n</think>\\n\\n' }}
  {%- endif %}
{%- endif %}
"""
USER = [{'role': 'user', 'content': 'the cat'}]
OWN = [{'role': 'system', 'content': 'own'}, *USER]
TOOL = {
  'type': 'function',
  'function': {
    'name': 'weather',
    'description': 'Über <b>Paris</b>',
    'parameters': {
      'type': 'object',
      'properties': {'town': {'type': 'string'}},
      'required': ['town'],
    },
  },
}


@pytest.fixture
def folder(make_folder, byte_level_bytes):
  config = {'eos_token': '<|im_end|>', 'chat_template': TEMPLATE}
  return make_folder(
    {'tokenizer.json': byte_level_bytes, 'tokenizer_config.json': config}
  )


@pytest.mark.parametrize('messages', [USER, OWN])
@pytest.mark.parametrize('system', ['', 'be terse'])
@pytest.mark.parametrize('tools', [[], [TOOL]])
@pytest.mark.parametrize('variables', [{}, {'enable_thinking': False}])
def test_a_prompt_is_that_of_transformers(
  folder, messages, system, tools, variables
):
  ours = load_tokenizer(folder)
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
  options = ChatOptions(
    system,
    chat_options.parse_tools(json.dumps(tools), 'tools'),
    chat_options.parse_variables(repr(variables), 'chat_template_kwargs'),
  )
  whole = messages
  if system and messages is USER:
    whole = [{'role': 'system', 'content': system}, *USER]
  wanted = dict(tools=tools or None, add_generation_prompt=True, **variables)
  assert chat_options.render(
    ours, messages, options
  ) == theirs.apply_chat_template(whole, tokenize=False, **wanted)
  ids = theirs.apply_chat_template(whole, return_dict=False, **wanted)
  assert chat_options.encode(ours, messages, options) == ids
