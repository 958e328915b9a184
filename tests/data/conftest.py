"""Tokenizers with chat templates, and examples of chosen lengths."""

import numpy as np
import pytest

from llm.data.examples import Example, from_list
from llm.text.tokenizer import load_tokenizer
from tests.text import conftest as tiny

byte_level_bytes = tiny.byte_level_bytes
spm_bytes = tiny.spm_bytes
make_folder = tiny.make_folder

CHATML = (
  '{% for message in messages %}'
  "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
  '{% endfor %}'
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


@pytest.fixture
def with_template(make_folder, byte_level_bytes):
  """with_template(template or None) -> a byte-level BPE tokenizer."""

  def make(template):
    config = {
      'bos_token': '<|begin_of_text|>',
      'eos_token': '<|end_of_text|>',
      'add_bos_token': True,
    }
    if template is not None:
      config['chat_template'] = template
    return load_tokenizer(
      make_folder(
        {'tokenizer.json': byte_level_bytes, 'tokenizer_config.json': config}
      )
    )

  return make


def numbered(lengths):
  """Examples of these lengths; example i has the tokens 1000 i, 1000 i + 1…"""
  return from_list(
    Example(np.arange(n, dtype=np.int32) + 1000 * i, np.arange(n) > 0)
    for i, n in enumerate(lengths)
  )
