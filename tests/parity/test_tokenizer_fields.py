"""Fields of tokenizer_config.json and added tokens, against transformers."""

import pytest
import tokenizers
from tokenizers import normalizers
import transformers

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
