"""Encoding, decoding and chat templates against transformers' AutoTokenizer."""

import json
import random

import pytest
import transformers

from llm.text import chat
from llm.text.tokenizer import load_tokenizer
from tests.text import conftest as tiny
from tests.text.test_tokenizer import TEXTS

byte_level_bytes = tiny.byte_level_bytes
fallback_bytes = tiny.fallback_bytes
spm_bytes = tiny.spm_bytes
llama2c_entries = tiny.llama2c_entries
make_folder = tiny.make_folder

LLAMA3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|im_start|>system<|im_end|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Tools:\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system + '<|end_of_text|>' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '<|im_end|>\\n\\n' }}
    {{- message['content'] | trim + '<|end_of_text|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant<|im_end|>\\n\\n' }}
{%- endif %}
"""
CHATML = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {{- message.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""  # noqa: E501
GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{% set first = messages[0]['content'] + '\\n\\n' %}{% set loop_messages = messages[1:] %}
{% else %}{% set first = '' %}{% set loop_messages = messages %}{% endif %}
{% for message in loop_messages %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('roles must alternate') }}
  {% endif %}
  {% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<s>' + role }}
{{ (first if loop.first else '') + message['content'] | trim }}</s>
{% endfor %}
{% if add_generation_prompt %}{{ '<s>model\\n' }}{% endif %}"""  # noqa: E501
MISTRAL = """\
{%- set ns = namespace(index=0) %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{%- continue %}{%- endif %}
    {%- if (message.role == 'user') != (ns.index % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant') }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + message.content + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}"""
CHATS = [
  [{'role': 'user', 'content': ' the cat  '}],
  [
    {'role': 'system', 'content': 'sat on a mat\n'},
    {'role': 'user', 'content': 'naïve 你好?'},
    {'role': 'assistant', 'content': '<think>a</think>\n\n7 of 9!'},
    {'role': 'user', 'content': '"the" <end> & \'dog\''},
  ],
]
KINDS = ['byte_level', 'fallback', 'spm']


@pytest.fixture(params=KINDS)
def folder(request, make_folder):
  """A tokenizer folder of each kind, without a chat template."""
  kind = request.param
  data = request.getfixturevalue(f'{kind}_bytes')
  name = 'tokenizer.model' if kind == 'spm' else 'tokenizer.json'
  bos, eos = '<s>', '</s>'
  if kind == 'byte_level':
    bos, eos = '<|begin_of_text|>', '<|end_of_text|>'
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': bos,
    'eos_token': eos,
    'pad_token': '<pad>',  # not in the vocabulary: appended
  }
  if kind == 'spm':
    config |= {'tokenizer_class': 'LlamaTokenizer', 'add_bos_token': True}
  return make_folder({name: data, 'tokenizer_config.json': config})


def test_encode_and_decode(folder):
  tok = load_tokenizer(folder)
  reference = transformers.AutoTokenizer.from_pretrained(folder)
  assert tok.vocab_size == len(reference)
  assert tok.bos_id == reference.bos_token_id
  assert tok.eos_ids == (reference.eos_token_id,)
  assert tok.pad_id == reference.pad_token_id == len(reference) - 1
  bos, rng = reference.bos_token, random.Random(0)
  texts = [text for text in TEXTS if not text.startswith(' ')]
  texts += [bos * 2 + 'the cat', f'cat{bos} on</s> a', 'x<pad> y <tool call>z']
  for _ in range(100):
    texts.append('x' + ''.join(rng.choices('the cat,é🙂\n 你', k=20)))
  for text in texts:
    ids = tok.encode(text, bos=False)
    assert ids == reference.encode(text, add_special_tokens=False), text
    if not text.startswith(bos):
      assert tok.encode(text) == reference.encode(text), text
    for skip in (True, False):
      assert tok.decode(ids, skip) == reference.decode(
        ids, skip_special_tokens=skip
      )


@pytest.mark.parametrize('add', [{}, {'tools': [{'name': 'é', 'a': None}]}])
@pytest.mark.parametrize('prompt', [True, False])
@pytest.mark.parametrize('template', [LLAMA3, CHATML, GEMMA, MISTRAL])
def test_chat_templates(folder, template, prompt, add):
  (folder / 'chat_template.jinja').write_text(template)
  tok = load_tokenizer(folder)
  reference = transformers.AutoTokenizer.from_pretrained(folder)
  for messages in CHATS:
    for extra in (add, add | {'enable_thinking': False}):
      expected = reference.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompt, **extra
      )
      assert chat.render(tok, messages, prompt, **extra) == expected
      ids = reference.apply_chat_template(
        messages, add_generation_prompt=prompt, return_dict=False, **extra
      )
      assert chat.encode(tok, messages, prompt, **extra) == ids
      assert ids.count(tok.bos_id) <= 1 or template is GEMMA


def test_saved_folders_load_in_transformers(folder, tmp_path):
  (folder / 'chat_template.jinja').write_text(CHATML)
  tok = load_tokenizer(folder)
  tok.save(tmp_path / 'saved')
  reference = transformers.AutoTokenizer.from_pretrained(tmp_path / 'saved')
  assert (reference.bos_token_id, reference.eos_token_id) == (
    tok.bos_id,
    *tok.eos_ids,
  )
  assert chat.encode(tok, CHATS[1]) == reference.apply_chat_template(
    CHATS[1], add_generation_prompt=True, return_dict=False
  )
  for text in ['the cat sat', 'naïve 🙂 café\n\nand']:
    assert tok.encode(text) == reference.encode(text)


def test_saved_llama2c_and_bytes_load_in_transformers(
  make_folder, llama2c_entries, tmp_path
):
  data = tiny.llama2c_oracle.pack(llama2c_entries)
  path = make_folder({'v.bin': data}) / 'v.bin'
  for name in (path, 'bytes'):
    tok = load_tokenizer(name)
    out = tmp_path / ('bytes' if name == 'bytes' else 'llama2c')
    tok.save(out)
    reference = transformers.AutoTokenizer.from_pretrained(out)
    assert len(reference) == tok.vocab_size
    for text in ['the cat sat', 'naïve 🙂 café\n\nand']:
      assert tok.encode(text) == reference.encode(text)
      ids = tok.encode(text)
      assert tok.decode(ids) == reference.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
  'options',
  [
    {'add_dummy_prefix': False},
    {'normalization_rule_name': 'nmt_nfkc', 'remove_extra_whitespaces': True},
    {'model_type': 'unigram', 'vocab_size': 300},
    {
      'model_type': 'unigram',
      'vocab_size': 300,
      'normalization_rule_name': 'nmt_nfkc',
      'remove_extra_whitespaces': True,
    },
  ],
)
def test_saved_sentencepiece_models_load_in_transformers(
  make_folder, options, tmp_path
):
  data = tiny.train_sentencepiece(**options)
  added = {'<|im_end|>': 340}
  if 'vocab_size' in options:
    added = {'<|im_end|>': 300}
  tok = load_tokenizer(
    make_folder(
      {
        'tokenizer.model': data,
        'added_tokens.json': added,
        'tokenizer_config.json': {'pad_token': '<|im_end|>'},
      }
    )
  )
  tok.save(tmp_path / 'saved')
  reference = transformers.AutoTokenizer.from_pretrained(tmp_path / 'saved')
  again = load_tokenizer(tmp_path / 'saved')
  assert len(reference) == again.vocab_size == tok.vocab_size
  assert again.special_ids == tok.special_ids
  rng = random.Random(0)
  for n in range(200):
    text = 'x' + ''.join(rng.choices('the catmondié🙂你ﬁß  ,.\n\t', k=20))
    if n % 2:
      text = ' '.join(rng.choices([*tiny.WORDS, 'on<|im_end|>a'], k=8))
    ids = tok.encode(text)
    assert ids == reference.encode(text) == again.encode(text)
    assert tok.decode(ids) == again.decode(ids)
    assert tok.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_named_templates(make_folder, byte_level_bytes):
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'chat_template': [
      {'name': 'default', 'template': 'plain'},
      {'name': 'tool_use', 'template': '{{ tools | tojson }}'},
    ],
  }
  folder = make_folder(
    {
      'tokenizer.json': byte_level_bytes,
      'tokenizer_config.json': json.dumps(config),
    }
  )
  tok = load_tokenizer(folder)
  tok.save(folder)
  reference = transformers.AutoTokenizer.from_pretrained(folder)
  for kwargs in ({}, {'tools': [{'a': 1}]}):
    assert chat.render(tok, CHATS[0], **kwargs) == (
      reference.apply_chat_template(CHATS[0], tokenize=False, **kwargs)
    )


@pytest.mark.parametrize('template', [LLAMA3, CHATML, GEMMA, MISTRAL])
def test_continue_final_message(folder, template):
  (folder / 'chat_template.jinja').write_text(template)
  tok = load_tokenizer(folder)
  reference = transformers.AutoTokenizer.from_pretrained(folder)
  for content in ('7 of 9', '7 of 9, ', ' the'):
    messages = CHATS[0] + [{'role': 'assistant', 'content': content}]
    assert chat.render(
      tok, messages, False, continue_final_message=True
    ) == reference.apply_chat_template(
      messages, tokenize=False, continue_final_message=True
    )
