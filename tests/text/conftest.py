"""Tiny tokenizers of every kind, trained here."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tests.text import llama2c_oracle

WORDS = (
  'the cat sat on a mat and the dog ran to the town where Lily lived'
  ' naïve café über straße 42 times, 7 of 9! “Quote” — dash'
).split()


def sentences(count: int = 400) -> list[str]:
  """Fixed sentences over WORDS."""
  size = len(WORDS)
  return [
    ' '.join(WORDS[(n * 7 + k * (n % 5 + 1)) % size] for k in range(8))
    for n in range(count)
  ]


def train_sentencepiece(**options) -> bytes:
  writer = io.BytesIO()
  settings = dict(
    vocab_size=340,
    model_type='bpe',
    byte_fallback=True,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    minloglevel=2,
  )
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences()),
    model_writer=writer,
    **(settings | options),
  )
  return writer.getvalue()


@pytest.fixture(scope='session')
def spm_bytes() -> bytes:
  """BPE with byte fallback, as Llama 2's."""
  return train_sentencepiece()


@pytest.fixture(scope='session')
def unigram_bytes() -> bytes:
  """SentencePiece's defaults: unigram, NFKC, extra spaces removed."""
  return train_sentencepiece(
    model_type='unigram',
    vocab_size=300,
    normalization_rule_name='nmt_nfkc',
    remove_extra_whitespaces=True,
  )


@pytest.fixture(scope='session')
def byte_level_bytes() -> bytes:
  """Byte-level BPE, as GPT-2's, Llama 3's and Qwen's."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.train_from_iterator(
    sentences(),
    trainers.BpeTrainer(
      vocab_size=320,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  tokenizer.add_special_tokens(
    ['<|begin_of_text|>', '<|end_of_text|>', '<|im_start|>', '<|im_end|>']
  )
  tokenizer.add_tokens(['<tool call>'])
  return tokenizer.to_str().encode()


@pytest.fixture(scope='session')
def fallback_bytes() -> bytes:
  """BPE with byte fallback in a tokenizer.json, as Mistral's and Gemma's."""
  names = ['<unk>', '<s>', '</s>'] + [f'<0x{b:02X}>' for b in range(256)]
  names += list('▁abcdehilnorst,é') + ['▁t', 'he', '▁the', 'an', '▁an']
  merges = [('▁', 't'), ('h', 'e'), ('▁t', 'he'), ('a', 'n'), ('▁', 'an')]
  tokenizer = tokenizers.Tokenizer(
    models.BPE(
      vocab={name: n for n, name in enumerate(names)},
      merges=merges,
      unk_token='<unk>',
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 1)]
  )
  tokenizer.add_special_tokens(['<unk>', '<s>', '</s>'])
  return tokenizer.to_str().encode()


@pytest.fixture(scope='session')
def llama2c_entries() -> list[tuple[str, float]]:
  """A vocabulary of llama2.c: specials, bytes, merges, characters."""
  entries = [('<unk>', 0.0), ('\n<s>\n', 0.0), ('\n</s>\n', 0.0)]
  entries += [(f'<0x{byte:02X}>', 0.0) for byte in range(256)]
  grown = [' t', 'he', ' the', ' a', 'at', ' c', ' cat', 'll', 'an']
  grown += [' ', *'abcdehilnorst<>s', 'é', '—']
  grown = list(dict.fromkeys(grown))
  return entries + [(token, -float(n)) for n, token in enumerate(grown)]


@pytest.fixture
def make_folder(tmp_path):
  """make_folder(files) -> a folder; dict values are written as JSON."""

  def make(files: dict):
    folder = tmp_path / f'folder{len(list(tmp_path.iterdir()))}'
    folder.mkdir()
    for name, content in files.items():
      if isinstance(content, str):
        content = content.encode()
      elif not isinstance(content, bytes):
        content = json.dumps(content).encode()
      (folder / name).write_bytes(content)
    return folder

  return make


@pytest.fixture(
  params=['spm', 'unigram', 'byte_level', 'fallback', 'llama2c', 'bytes']
)
def tok(request, make_folder):
  """Each kind of tokenizer in turn."""
  from llm.text.tokenizer import load_tokenizer

  kind = request.param
  if kind == 'bytes':
    return load_tokenizer('bytes')
  if kind == 'llama2c':
    entries = request.getfixturevalue('llama2c_entries')
    data = llama2c_oracle.pack(entries)
    return load_tokenizer(make_folder({'t.bin': data}) / 't.bin')
  name = 'tokenizer.model'
  if kind in ('byte_level', 'fallback'):
    name = 'tokenizer.json'
  data = request.getfixturevalue(f'{kind}_bytes')
  return load_tokenizer(make_folder({name: data}))
