"""Loss masks against transformers', packing against trl's."""

import numpy as np
import pyarrow
import pytest
import transformers

from llm.data import packing
from llm.text import chat_mask
from llm.text.tokenizer import load_tokenizer
from tests.text import conftest as tiny

byte_level_bytes = tiny.byte_level_bytes
spm_bytes = tiny.spm_bytes
make_folder = tiny.make_folder

CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
  "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
  '{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n'
  '{% endfor %}'
)
# The tags begin inside of a token, for the space before an answer is outside.
SPACED = (
  "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' Answer: ' }}"
  '{%- generation -%}{% set said = m.content | trim %}{{ said + eos_token }}'
  "{%- endgeneration -%}{% else %}{{ 'Question: ' + m.content }}{% endif %}"
  '{% endfor %}'
)
WORDS = [
  'the cat',
  'a',
  'Lily ',
  '\n',
  'dog ran',
  '42',
  '“Quote”',
  'naïve',
  ' ',
]


def conversations(count):
  rng = np.random.default_rng(0)
  for _ in range(count):
    turns = int(rng.integers(1, 7))
    yield [
      {
        'role': ('user', 'assistant')[turn % 2],
        'content': 'x' + ''.join(rng.choice(WORDS, rng.integers(0, 6))),
      }
      for turn in range(turns)
    ]


@pytest.mark.parametrize('template', (CHATML, SPACED))
@pytest.mark.parametrize('kind', ('tokenizer.json', 'tokenizer.model'))
def test_assistant_masks(request, make_folder, template, kind):
  data = 'byte_level_bytes' if kind == 'tokenizer.json' else 'spm_bytes'
  config = {'chat_template': template, 'tokenizer_class': 'LlamaTokenizer'}
  config |= {'bos_token': '<s>', 'eos_token': '</s>', 'legacy': False}
  if kind == 'tokenizer.json':
    config['tokenizer_class'] = 'PreTrainedTokenizerFast'
    config |= {'eos_token': '<|end_of_text|>'}
    config |= {'bos_token': '<|begin_of_text|>'}
  folder = make_folder(
    {kind: request.getfixturevalue(data), 'tokenizer_config.json': config}
  )
  tok = load_tokenizer(folder)
  reference = transformers.AutoTokenizer.from_pretrained(folder)
  learned = 0
  for messages in conversations(60):
    expected = reference.apply_chat_template(
      messages, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = chat_mask.encode_with_mask(tok, messages)
    assert ids == expected['input_ids']
    assert [int(on) for on in mask] == expected['assistant_masks']
    learned += sum(mask)
  assert learned > 300


@pytest.mark.parametrize('capacity', (4, 33, 256))
def test_best_fit(capacity):
  # trl's pack_dataset without the data set around it.
  from trl import data_utils

  rng = np.random.default_rng(capacity)
  lengths = rng.integers(1, capacity + 1, 500)
  rows = pyarrow.table({'ids': [[n] * n for n in lengths.tolist()]})
  packed = data_utils._pack_bfd(rows, capacity, 'truncate')
  mine = packing.best_fit(lengths, capacity)
  assert [[int(lengths[i]) for i in row] for row in mine] == (
    packed['seq_lengths'].to_pylist()
  )
