"""Ten chat templates of different makes, and conversations for them.

The templates in templates/ render as the published ones do that their first
lines name; they are shorter where that changes no structure.
"""

import json
import pathlib

import tokenizers

FOLDER = pathlib.Path(__file__).parent / 'templates'
# Per template: BOS, EOS, and the other special tokens.
SPECIAL = {
  'chatml': (None, '<|im_end|>', ['<|im_start|>', '<|endoftext|>']),
  'llama3': (
    '<|begin_of_text|>',
    '<|eot_id|>',
    ['<|start_header_id|>', '<|end_header_id|>', '<|end_of_text|>'],
  ),
  'gemma3': ('<bos>', '<eos>', ['<start_of_turn>', '<end_of_turn>']),
  'mistral': (
    '<s>',
    '</s>',
    ['[INST]', '[/INST]', '[AVAILABLE_TOOLS]', '[/AVAILABLE_TOOLS]',
     '[TOOL_CALLS]', '[TOOL_RESULTS]', '[/TOOL_RESULTS]'],
  ),
  'qwen3': (None, '<|im_end|>', ['<|im_start|>', '<|endoftext|>']),
  'glm4': (
    None,
    '<|endoftext|>',
    ['[gMASK]', '<sop>', '<|system|>', '<|user|>', '<|assistant|>',
     '<|observation|>'],
  ),
  'phi3': (
    '<s>',
    '<|endoftext|>',
    ['<|end|>', '<|system|>', '<|user|>', '<|assistant|>'],
  ),
  'deepseek_r1': (
    '<｜begin▁of▁sentence｜>',
    '<｜end▁of▁sentence｜>',
    ['<｜tool▁calls▁begin｜>', '<｜tool▁calls▁end｜>',
     '<｜tool▁call▁begin｜>', '<｜tool▁call▁end｜>', '<｜tool▁sep｜>',
     '<｜tool▁outputs▁begin｜>', '<｜tool▁outputs▁end｜>',
     '<｜tool▁output▁begin｜>', '<｜tool▁output▁end｜>'],
  ),
  'smollm3': (None, '<|im_end|>', ['<|im_start|>', '<|end_of_text|>']),
  'gpt_oss': (
    '<|startoftext|>',
    '<|return|>',
    ['<|start|>', '<|end|>', '<|message|>', '<|channel|>', '<|call|>'],
  ),
}  # fmt: skip
# Tokens of the vocabulary that are not special.
ORDINARY = {
  'qwen3': ['<think>', '</think>', '<tool_call>', '</tool_call>'],
  'chatml': ['<tool_call>', '</tool_call>'],
  'glm4': ['<think>', '</think>', '<tool_call>', '</tool_call>'],
  'deepseek_r1': ['<｜User｜>', '<｜Assistant｜>', '<think>', '</think>'],
  'smollm3': ['<think>', '</think>'],
}

TOOL = {
  'type': 'function',
  'function': {
    'name': 'weather',
    'parameters': {
      'type': 'object',
      'properties': {'town': {'type': 'string'}},
    },
  },
}  # fmt: skip


def user(text):
  return {'role': 'user', 'content': text}


def says(text, **more):
  return {'role': 'assistant', 'content': text, **more}


def call(town, id):
  function = {'name': 'weather', 'arguments': {'town': town}}
  return {'id': id, 'type': 'function', 'function': function}


def result(text, id):
  return {'role': 'tool', 'name': 'weather', 'content': text,
          'tool_call_id': id}  # fmt: skip


ASKED = user('Rain in Rome?')
CALLED = call('Rome', 'callrome1')
TOLD = result('sunny', 'callrome1')
CONVERSATIONS = {
  'single': [user('hi'), says('ho')],
  'several': [
    {'role': 'system', 'content': 'Be brief.'},
    user('hi'),
    says('ho'),
    user('and?'),
    says('no.'),
  ],
  'tool': [ASKED, says('', tool_calls=[CALLED]), TOLD, says('Sun.')],
  'text and tool': [
    ASKED, says('I look.', tool_calls=[CALLED]), TOLD, says('Sun.'),
  ],
  'two tools': [
    user('Rain in Rome or Oslo?'),
    says('', tool_calls=[CALLED, call('Oslo', 'calloslo1')]),
    TOLD,
    result('rain', 'calloslo1'),
    says('In Oslo.'),
  ],
  'ends with a call': [ASKED, says('', tool_calls=[CALLED])],
  'thought': [user('2+2?'), says('4', reasoning_content='2 and 2 is 4')],
  'thought before': [
    user('2+2?'),
    says('4', reasoning_content='2 and 2 is 4'),
    user('and 1?'),
    says('5', reasoning_content='4 and 1'),
  ],
  'thought and tool': [
    ASKED,
    says('', reasoning_content='look it up', tool_calls=[CALLED]),
    TOLD,
    says('Sun.', reasoning_content='it is sunny'),
  ],
  'thought in the content': [
    user('2+2?'),
    says('<think>\n2 and 2 is 4\n</think>\n\n4'),
  ],
}  # fmt: skip


def save_tokenizer(folder, name: str, byte_level: bytes) -> None:
  """Writes a folder with a template's tokenizer.

  Args:
    folder: an existing one.
    name: of the template.
    byte_level: a tokenizer.json that the template's tokens are added to.
  """
  bos, eos, others = SPECIAL[name]
  tokenizer = tokenizers.Tokenizer.from_buffer(byte_level)
  special = [token for token in (bos, eos, *others) if token]
  tokenizer.add_special_tokens(
    [tokenizers.AddedToken(t, normalized=False) for t in special]
  )
  tokenizer.add_tokens(
    [tokenizers.AddedToken(t, normalized=False) for t in ORDINARY.get(name, [])]
  )
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'eos_token': eos,
    'chat_template': (FOLDER / f'{name}.jinja').read_text(encoding='utf-8'),
  }
  if bos:
    config['bos_token'] = bos
  (folder / 'tokenizer.json').write_bytes(tokenizer.to_str().encode())
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))


def tools_of(name: str, messages) -> list[dict] | None:
  """The tools that a conversation is rendered with.

  DeepSeek-R1's template writes calls, and no tools.
  """
  called = any('tool_calls' in m for m in messages)
  return [TOOL] if called and name != 'deepseek_r1' else None
