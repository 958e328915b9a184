"""Fields of tokenizer_config.json and added tokens, against transformers."""

import itertools
import json

import pytest
import tokenizers
from tokenizers import normalizers
import transformers
from transformers.models.auto import tokenization_auto

from llm.checkpoints.hf.families import FAMILIES
from llm.text import prefix
from llm.text.tokenizer import load_tokenizer
from tests.text import conftest as tiny

byte_level_bytes = tiny.byte_level_bytes
fallback_bytes = tiny.fallback_bytes
spm_bytes = tiny.spm_bytes
make_folder = tiny.make_folder


STRINGS = (
  'overheard the cat',
  'the<|im_end|> cat',
  "don't  stop",
  'čaj und đem',
  'the Öl 東京 sat',
  '',
)
LLAMA = dict(bos_token='<s>', eos_token='</s>', unk_token='<unk>',
             add_bos_token=True, add_eos_token=False)  # fmt: skip


def same(folder, texts=STRINGS):
  ours = load_tokenizer(folder)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  for text in texts:
    assert ours.encode(text) == theirs(text)['input_ids'], text
  return ours, theirs


@pytest.mark.parametrize('given', (None, True, False))
@pytest.mark.parametrize(
  'name, data, kind',
  [
    ('tokenizer.model', 'spm_bytes', 'LlamaTokenizer'),
    ('tokenizer.model', 'spm_bytes', 'LlamaTokenizerFast'),
    ('tokenizer.json', 'fallback_bytes', 'LlamaTokenizer'),
    ('tokenizer.json', 'fallback_bytes', 'PreTrainedTokenizerFast'),
    ('tokenizer.json', 'byte_level_bytes', 'PreTrainedTokenizerFast'),
    ('tokenizer.json', 'byte_level_bytes', 'GPT2Tokenizer'),
  ],
)
def test_add_prefix_space(request, make_folder, name, data, kind, given):
  config = {'tokenizer_class': kind}
  if data != 'byte_level_bytes':
    config |= LLAMA
  else:
    config |= {'eos_token': '<|end_of_text|>'}
  if given is not None:
    config['add_prefix_space'] = given
  folder = make_folder(
    {name: request.getfixturevalue(data), 'tokenizer_config.json': config}
  )
  ours, theirs = same(folder)
  for text in STRINGS[:3]:
    ids = ours.encode(text)
    if kind == 'GPT2Tokenizer' or data != 'byte_level_bytes':
      assert ours.decode(ids).strip() == theirs.decode(
        ids, skip_special_tokens=True
      ).strip()  # fmt: skip


@pytest.mark.parametrize('legacy', (None, True, False))
def test_legacy(make_folder, spm_bytes, legacy):
  config = LLAMA | {'tokenizer_class': 'LlamaTokenizer', 'legacy': legacy}
  same(
    make_folder(
      {'tokenizer.model': spm_bytes, 'tokenizer_config.json': config}
    ),
    [*STRINGS, 'the</s>cat', 'a</s> b'],
  )


@pytest.mark.parametrize('split', (None, True, False))
@pytest.mark.parametrize(
  'name, data',
  [
    ('tokenizer.json', 'byte_level_bytes'),
    ('tokenizer.json', 'fallback_bytes'),
    ('tokenizer.model', 'spm_bytes'),
  ],
)
def test_split_special_tokens(request, make_folder, name, data, split):
  config = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  config |= {} if data == 'byte_level_bytes' else LLAMA
  if name == 'tokenizer.model':
    config['tokenizer_class'] = 'LlamaTokenizer'
  if split is not None:
    config['split_special_tokens'] = split
  folder = make_folder(
    {name: request.getfixturevalue(data), 'tokenizer_config.json': config}
  )
  same(folder, ['a<|im_end|>', 'the</s>cat', '<tool call>a'])


def test_added_tokens_outside_the_byte_alphabet(make_folder, byte_level_bytes):
  words = ['čaj', 'đem', 'Öl', '東京', '🙂', 'Ġa', 'naïve']
  tokenizer = tokenizers.Tokenizer.from_buffer(byte_level_bytes)
  tokenizer.add_tokens(
    [tokenizers.AddedToken(word, normalized=False) for word in words]
  )
  config = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  ours, _ = same(
    make_folder(
      {
        'tokenizer.json': tokenizer.to_str().encode(),
        'tokenizer_config.json': config,
      }
    ),
    [*words, ' '.join(words)],
  )
  # The tokenizers library gives other letters for some; here all come back.
  for text in [*words, ' '.join(words)]:
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
  'name, data', [('tokenizer.json', 'byte_level_bytes'),
                 ('tokenizer.json', 'fallback_bytes'),
                 ('tokenizer.model', 'spm_bytes')],
)  # fmt: skip
def test_new_tokens_in_transformers(request, make_folder, tmp_path, name, data):
  config = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  if data != 'byte_level_bytes':
    config |= LLAMA
  if name == 'tokenizer.model':
    config['tokenizer_class'] = 'LlamaTokenizer'
  folder = make_folder(
    {name: request.getfixturevalue(data), 'tokenizer_config.json': config}
  )
  tok = load_tokenizer(folder).with_tokens(('<think>', '</think>', 'čaj'))
  tok.save(tmp_path / 'saved')
  ours, theirs = same(
    tmp_path / 'saved', ['a<think>the cat</think>', 'čaj', 'the cat']
  )
  assert len(theirs) == ours.vocab_size == tok.vocab_size


NORMALIZERS = [
  normalizers.NFC(),
  normalizers.NFKC(),
  normalizers.Lowercase(),
  normalizers.Replace('a', 'e'),
  normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
]


@pytest.mark.parametrize('step', NORMALIZERS, ids=lambda s: type(s).__name__)
def test_normalizers(make_folder, byte_level_bytes, step):
  tokenizer = tokenizers.Tokenizer.from_buffer(byte_level_bytes)
  tokenizer.normalizer = step
  same(
    make_folder(
      {
        'tokenizer.json': tokenizer.to_str().encode(),
        'tokenizer_config.json': {'tokenizer_class': 'PreTrainedTokenizerFast'},
      }
    ),
    [*STRINGS, 'nai\u0308ve CAFE\u0301 ﬁne'],
  )


BESIDE_SPECIAL = (
  'the</s>cat', 'the </s>cat', 'the</s> cat', '</s>cat', 'cat</s>', ' the',
  'the<s>cat <s>sat', '\n</s>\nthe',
)  # fmt: skip


@pytest.fixture(scope='session')
def llama_bytes(spm_bytes) -> bytes:
  """A tokenizer.json as Llama 2's: the normalizer marks spaces."""
  from llm.text import convert

  value = json.loads(convert.to_tokenizer_json(spm_bytes, {}, [('<s>', 1)], []))
  value['normalizer'] = {
    'type': 'Sequence',
    'normalizers': [
      {'type': 'Prepend', 'prepend': '\u2581'},
      {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '\u2581'},
    ],
  }
  value['pre_tokenizer'] = None
  flags = dict.fromkeys(
    ('single_word', 'lstrip', 'rstrip', 'normalized'), False
  )
  value['added_tokens'] = [
    {'id': id, 'content': token, 'special': True} | flags
    for id, token in enumerate(('<unk>', '<s>', '</s>'))
  ]
  return json.dumps(value).encode()


@pytest.mark.parametrize('kind', ('LlamaTokenizerFast', None))
@pytest.mark.parametrize('model_type', ('llama', 'mistral', 'phi3', None))
def test_the_class_of_llama(make_folder, llama_bytes, kind, model_type):
  for n, (legacy, space) in enumerate(
    itertools.product((None, True, False), repeat=2)
  ):
    config = LLAMA | {'tokenizer_class': kind}
    config |= {'legacy': legacy, 'add_prefix_space': space}
    config = {k: v for k, v in config.items() if v is not None or n == 0}
    files = {'tokenizer.json': llama_bytes, 'tokenizer_config.json': config}
    if model_type is not None:
      files['config.json'] = {'model_type': model_type}
    ours, theirs = same(make_folder(files), BESIDE_SPECIAL)
    ids = ours.encode('the</s> cat')
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_kinds_of_models_that_go_by_the_file():
  names = tokenization_auto.TOKENIZER_MAPPING_NAMES
  by_file = {
    kind for kind in FAMILIES if names.get(kind) == 'TokenizersBackend'
  }
  assert by_file <= prefix._BY_FILE
  assert {names[kind] for kind in prefix._BY_FILE} == {'TokenizersBackend'}


FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized')


@pytest.mark.parametrize('flag', FLAGS)
@pytest.mark.parametrize('where', ('json', 'decoder', 'both', 'named', 'map'))
def test_flags_of_special_tokens(make_folder, byte_level_bytes, flag, where):
  """Such as Phi-3's <|assistant|> and RoBERTa's <mask>."""
  token = dict.fromkeys(FLAGS, False) | {flag: True, 'content': '<mask>'}
  tokenizer = tokenizers.Tokenizer.from_buffer(byte_level_bytes)
  id = tokenizer.get_vocab_size()
  if where in ('json', 'both'):
    known = token if where == 'json' else {'content': '<mask>'}
    tokenizer.add_tokens([tokenizers.AddedToken(**known, special=True)])
  config = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  files = {
    'tokenizer.json': tokenizer.to_str().encode(),
    'tokenizer_config.json': config,
  }
  if where == 'json':
    config['mask_token'] = '<mask>'
    config['additional_special_tokens'] = ['<mask>']
  elif where in ('decoder', 'both'):
    config['added_tokens_decoder'] = {str(id): token | {'special': True}}
    config['mask_token'] = '<mask>'
  elif where == 'named':
    config['mask_token'] = {'__type': 'AddedToken', **token}
  else:
    files['special_tokens_map.json'] = {'mask_token': token}
  texts = [
    'the <mask> cat',
    'the<mask>cat',
    '<mask> sat',
    'a <mask>',
    'a<mask>',
  ]
  same(make_folder(files), texts)


def test_a_template_that_writes_another_eos(make_folder, byte_level_bytes):
  template = '\n{{ messages[0].content }}<|im_end|>{{ eos_token }}'
  config = {'chat_template': template, 'eos_token': '<|end_of_text|>'}
  config['tokenizer_class'] = 'PreTrainedTokenizerFast'
  tok = load_tokenizer(
    make_folder(
      {'tokenizer.json': byte_level_bytes, 'tokenizer_config.json': config}
    )
  )
  folder = make_folder({})
  tok.with_eos(tok.token_id('<|im_end|>')).save(folder)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  talk = [{'role': 'user', 'content': 'a'}]
  text = theirs.apply_chat_template(talk, tokenize=False)
  assert text == '\na<|im_end|><|end_of_text|>'
  assert theirs.eos_token == '<|im_end|>'
