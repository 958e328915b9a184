"""Encoding, special tokens, files and errors of every kind of tokenizer."""

import dataclasses
import json
import random
import struct

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from llm.errors import UserError
from llm.text.tokenizer import find_tokenizer, load_tokenizer
from tests.text import llama2c_oracle

TEXTS = ['the cat', 'naïve café', '  two  spaces ', 'a\n\n🙂 你好\t.', 'x', '']


def test_ids_bos_and_decode(tok):
  for text in TEXTS:
    ids, offsets = tok.encode_with_offsets(text)
    assert tok.encode(text) == ids and len(ids) == len(offsets)
    bare = tok.encode(text, bos=False)
    if tok.lead != 'each':
      assert tok.decode(ids) == text
      assert b''.join(map(tok.token_bytes, bare)).decode().strip() == (
        text.strip()
      )
    if tok._prefix:
      assert ids == [tok.bos_id] + bare
    assert all(0 <= i < tok.vocab_size for i in ids)


def test_bos_is_not_doubled(tok):
  if not tok._prefix or tok.source.endswith('.bin'):
    return  # it adds no BOS, or reads none from the text
  bos = tok.special_tokens['bos_token'] if tok.special_tokens else '<s>'
  ids = tok.encode(bos + 'the cat')
  assert ids.count(tok.bos_id) == 1
  assert ids == tok.encode(bos + 'the cat', bos=False)


def test_offsets_cover_the_text(tok):
  if tok.lead == 'each':
    return  # it changes the text before it reads it
  for text in TEXTS:
    ids, offsets = tok.encode_with_offsets(text, bos=False)
    at = 0
    for id, (begin, end) in zip(ids, offsets):
      assert begin <= at <= max(end, at)  # ordered, without gaps
      whole = tok.decode([id])
      # A space put before the text may share the first character's range.
      if '\ufffd' not in whole and whole.strip():
        assert whole.strip() == text[begin:end].strip()
      at = max(at, end)
    assert at == len(text)


def test_offsets_by_hand(make_folder, llama2c_entries):
  data = llama2c_oracle.pack(llama2c_entries)
  tok = load_tokenizer(make_folder({'v.bin': data}) / 'v.bin')
  ids, offsets = tok.encode_with_offsets('the €a')
  named = [tok.token(i) for i in ids]
  # The euro sign is three byte tokens, each with the range of the character.
  euro = ['<0xE2>', '<0x82>', '<0xAC>']
  assert named == ['<s>', '▁the', '▁', *euro, 'a']
  assert offsets == [(0, 0), (0, 3), (3, 4), (4, 5), (4, 5), (4, 5), (5, 6)]


def test_byte_tokenizer_by_hand():
  tok = load_tokenizer('bytes', vocab_size=259)
  assert (tok.bos_id, tok.eos_ids, tok.pad_id) == (256, (257,), 258)
  assert tok.encode('aé') == [256, 97, 0xC3, 0xA9]
  assert tok.encode('<|eos|>a', bos=False) == [257, 97]
  assert tok.decode([256, 97, 257]) == 'a'
  assert tok.decode([256, 97], skip_special=False) == '<|bos|>a'
  assert tok.token_bytes(0xC3) == b'\xc3' and tok.token_bytes(300) == b''
  with pytest.raises(UserError, match='vocab_size is 258'):
    load_tokenizer('bytes', vocab_size=258)


def test_sentencepiece_ids_are_the_librarys(make_folder, spm_bytes):
  tok = load_tokenizer(make_folder({'tokenizer.model': spm_bytes}))
  library = sentencepiece.SentencePieceProcessor(model_proto=spm_bytes)
  for text in TEXTS:
    assert tok.encode(text, bos=False) == library.encode(text)


def test_llama2c_file_encodes_as_llama2c(make_folder, llama2c_entries):
  data = llama2c_oracle.pack(llama2c_entries)
  tok = load_tokenizer(make_folder({'v.bin': data}) / 'v.bin')
  assert [tok.token(i) for i in tok.encode('the cat')] == [
    '<s>',
    '▁the',
    '▁cat',
  ]
  rng = random.Random(0)
  for _ in range(300):
    text = ''.join(rng.choices('the catlnsd  é—🙂<s>\n', k=rng.randrange(25)))
    ids = tok.encode(text, bos=False)
    assert ids == llama2c_oracle.encode(llama2c_entries, text), text


def test_llama2c_file_reads_the_models_share(make_folder, llama2c_entries):
  data = llama2c_oracle.pack(llama2c_entries)
  path = make_folder({'v.bin': data}) / 'v.bin'
  size = len(llama2c_entries)
  assert load_tokenizer(path).vocab_size == size
  assert load_tokenizer(path, vocab_size=size - 2).vocab_size == size - 2
  with pytest.raises(UserError, match=f'holds {size} tokens.*{size + 1}'):
    load_tokenizer(path, vocab_size=size + 1)


def test_added_tokens_of_a_model_file(make_folder, spm_bytes):
  size = 340
  added = {'<|im_start|>': size, '<extra word>': size + 1}
  folder = make_folder(
    {
      'tokenizer.model': spm_bytes,
      'added_tokens.json': added,
      'tokenizer_config.json': {
        'additional_special_tokens': ['<|im_start|>'],
        'pad_token': '<pad>',
      },
    }
  )
  tok = load_tokenizer(folder)
  assert (tok.vocab_size, tok.pad_id) == (size + 3, size + 2)
  ids = tok.encode('the<|im_start|>cat<extra word>')
  assert ids == [
    1,
    *tok.encode('the', bos=False),
    size,
    *tok.encode('<s>cat', bos=False)[1:],  # no leading space inside a text
    size + 1,
  ]
  assert tok.decode(ids) == 'thecat<extra word>'
  assert tok.decode(ids, False) == '<s> the<|im_start|>cat<extra word>'


def test_added_tokens_decoder_and_stripping(make_folder, spm_bytes):
  entry = {'content': '<|end|>', 'special': True, 'rstrip': True}
  config = {'added_tokens_decoder': {'340': entry}}
  tok = load_tokenizer(
    make_folder({'tokenizer.model': spm_bytes, 'tokenizer_config.json': config})
  )
  ids, offsets = tok.encode_with_offsets('the<|end|>  \ncat', bos=False)
  at = ids.index(340)
  assert offsets[at] == (3, 13) and tok.decode(ids) == 'thecat'
  config['added_tokens_decoder'] = {'350': entry}
  with pytest.raises(UserError, match='350.*ends at 339'):
    load_tokenizer(
      make_folder(
        {'tokenizer.model': spm_bytes, 'tokenizer_config.json': config}
      )
    )


@pytest.mark.parametrize('add_bos', [None, True, False])
@pytest.mark.parametrize('add_eos', [None, True, False])
def test_add_bos_and_eos(
  make_folder, byte_level_bytes, spm_bytes, add_bos, add_eos
):
  flags = {'add_bos_token': add_bos, 'add_eos_token': add_eos}
  flags = {k: v for k, v in flags.items() if v is not None}
  for name, data, default in (
    ('tokenizer.json', byte_level_bytes, False),
    ('tokenizer.model', spm_bytes, True),
  ):
    named = {'bos_token': '<|begin_of_text|>', 'eos_token': '<|end_of_text|>'}
    config = flags | (named if name == 'tokenizer.json' else {})
    tok = load_tokenizer(
      make_folder({name: data, 'tokenizer_config.json': config})
    )
    bare = tok.encode('the cat', bos=False)
    before = [tok.bos_id] * (default if add_bos is None else add_bos)
    after = list(tok.eos_ids) * bool(add_eos)
    assert tok.encode('the cat') == before + bare + after


def test_post_processor_gives_bos_once(make_folder, fallback_bytes):
  tok = load_tokenizer(make_folder({'tokenizer.json': fallback_bytes}))
  assert tok.bos_id == 1
  assert tok.encode('an')[0] == 1 and tok.encode('an').count(1) == 1
  assert tok.encode('<s>an').count(1) == 1
  config = {'add_bos_token': False, 'bos_token': '<s>'}
  files = {'tokenizer.json': fallback_bytes, 'tokenizer_config.json': config}
  assert 1 not in load_tokenizer(make_folder(files)).encode('an')


def test_eos_ids(make_folder, byte_level_bytes):
  files = {
    'tokenizer.json': byte_level_bytes,
    'config.json': {'eos_token_id': 5, 'bos_token_id': 4},
    'generation_config.json': {'eos_token_id': [5, 6]},
  }
  tok = load_tokenizer(make_folder(files))
  assert (tok.bos_id, tok.eos_ids) == (4, (5, 6))
  files['tokenizer_config.json'] = {'eos_token': {'content': '<|im_end|>'}}
  tok = load_tokenizer(make_folder(files))
  assert tok.eos_ids == (tok.token_id('<|im_end|>'),)


def test_ids_beyond_the_model_are_refused(make_folder, byte_level_bytes):
  folder = make_folder({'tokenizer.json': byte_level_bytes})
  tok = load_tokenizer(folder, vocab_size=320)
  assert tok.encode('the cat')
  with pytest.raises(UserError, match='<tool call>.*vocab_size is 320'):
    tok.encode('the <tool call>')


def test_save_and_load_again(tok, tmp_path):
  templates = {'default': '{{ bos_token }}x', 'tool_use': 'y'}
  tok = dataclasses.replace(tok, chat_templates=templates)
  tok.save(tmp_path / 'saved')
  again = load_tokenizer(tmp_path / 'saved')
  for name in ('vocab_size', 'bos_id', 'eos_ids', 'pad_id', 'special_ids'):
    assert getattr(again, name) == getattr(tok, name), name
  assert again.chat_templates == tok.chat_templates
  for text in TEXTS:
    if tok.lead == 'each':  # saved as tokenizer.json, see llm/text/convert.py
      text = text.lstrip()
    assert again.encode(text) == tok.encode(text)


def test_save_drops_a_stale_template(tmp_path):
  (tmp_path / 'chat_template.jinja').write_text('old')
  load_tokenizer('bytes').save(tmp_path)
  assert load_tokenizer(tmp_path).chat_template is None


def llama2c_header(vocab_size: int, magic: bytes = b'') -> bytes:
  sizes = struct.pack('<7i', 64, 172, 5, 8, 4, vocab_size, 512)
  return magic + sizes + bytes(64)


def test_find_tokenizer(make_folder):
  folder = make_folder(
    {
      'a.bin': llama2c_header(512),
      'b.bin': llama2c_header(-77, b'24ka' + struct.pack('<i', 1)),
      'tok512.bin': b'x',
      'tokenizer.bin': b'x',
      'tok77.bin': b'x',
    }
  )
  assert find_tokenizer(folder / 'a.bin') == folder / 'tok512.bin'
  assert find_tokenizer(folder / 'b.bin') == folder / 'tok77.bin'
  (folder / 'tok512.bin').unlink()
  assert find_tokenizer(folder / 'a.bin') == folder / 'tokenizer.bin'
  assert find_tokenizer(folder) is None
  (folder / 'tokenizer.model').write_bytes(b'x')
  assert find_tokenizer(folder) == folder / 'tokenizer.model'


@pytest.mark.parametrize(
  'files, name, match',
  [
    ({}, 'none', r'none does not exist.*give'),
    ({}, '', 'neither tokenizer.json nor tokenizer.model'),
    ({'tokenizer.json': '{"a": 1}'}, '', r'tokenizer\.json: not a tokenizer'),
    ({'tokenizer.json': '{'}, '', r'tokenizer\.json: not a tokenizer'),
    ({'tokenizer.model': 'abc'}, '', r'tokenizer\.model: not a Sentence'),
    ({'t.bin': bytes(7)}, 't.bin', r't\.bin: ends in the middle of token 0'),
    ({'t.bin': bytes(44)}, 't.bin', r't\.bin: ids 3 to 258'),
    ({'t.txt': 'a'}, 't.txt', 'no known kind'),
    (
      {'tokenizer.model': 'abc', 'tokenizer_config.json': '{'},
      '',
      r'tokenizer_config\.json: is not JSON',
    ),
  ],
)
def test_bad_files_are_named(make_folder, files, name, match):
  with pytest.raises(UserError, match=match):
    load_tokenizer(make_folder(files) / name)


@pytest.mark.parametrize(
  'name, content',
  [
    ('config.json', {'eos_token_id': 'x'}),
    ('config.json', {'bos_token_id': [1]}),
    ('generation_config.json', {'eos_token_id': [1, 'b']}),
    ('tokenizer_config.json', {'bos_token': 3}),
    ('tokenizer_config.json', {'add_bos_token': 'no'}),
    ('tokenizer_config.json', {'additional_special_tokens': 3}),
    ('special_tokens_map.json', {'eos_token': ['</s>']}),
  ],
)
def test_bad_values_are_named(make_folder, byte_level_bytes, name, content):
  folder = make_folder({'tokenizer.json': byte_level_bytes, name: content})
  [(key, value)] = content.items()
  with pytest.raises(UserError) as error:
    load_tokenizer(folder)
  assert str(error.value).startswith(f'{folder / name}: {key}={value!r} is not')


def test_a_bos_token_that_the_model_lacks_is_refused(
  make_folder, byte_level_bytes
):
  files = {
    'tokenizer.json': byte_level_bytes,
    'tokenizer_config.json': {'bos_token': '<nope>'},
  }
  size = load_tokenizer(make_folder(files)).vocab_size
  assert load_tokenizer(make_folder(files), size).bos_id == size - 1
  message = f"bos_token='<nope>' has id {size - 1}.*vocab_size is {size - 1}"
  with pytest.raises(UserError, match=message):
    load_tokenizer(make_folder(files), size - 1)


def test_an_unknown_decoder_is_refused(make_folder, byte_level_bytes):
  tokenizer = json.loads(byte_level_bytes)
  tokenizer['decoder'] = {'type': 'CTC', 'pad_token': '<pad>'} | {
    'word_delimiter_token': '|',
    'cleanup': True,
  }
  with pytest.raises(UserError, match="'CTC'.*not supported"):
    load_tokenizer(make_folder({'tokenizer.json': tokenizer}))


def test_bad_text_is_refused(tok):
  with pytest.raises(UserError, match='character 1 is half of a surrogate'):
    tok.encode('a\ud800')
  with pytest.raises(UserError, match='not a string'):
    tok.encode(7)


def word_tokenizer(decoder) -> bytes:
  """Whole words, without a post-processor; the letter 'a' is no token."""
  vocab = {'<unk>': 0, '▁the': 1, '▁cat': 2, '▁▁sat': 3, '▁é': 4}
  tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token='<unk>'))
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  tokenizer.decoder = decoder
  tokenizer.post_processor = processors.TemplateProcessing(
    single='<s> $A </s>', special_tokens=[('<s>', 5), ('</s>', 6)]
  )
  tokenizer.add_special_tokens(['<s>', '</s>'])
  return tokenizer.to_str().encode()


def test_metaspace_decoder(make_folder):
  data = word_tokenizer(decoders.Metaspace())
  tok = load_tokenizer(make_folder({'tokenizer.json': data}))
  library = tokenizers.Tokenizer.from_buffer(data)
  assert tok.encode('the cat') == [5, 1, 2, 6]
  assert tok.decode([5, 1, 2, 3, 6]) == 'the cat  sat'
  for ids in ([3, 1], [5, 3, 3], [4], [], [0, 1], [5]):
    assert tok.decode(ids) == library.decode(ids)


def test_no_decoder_joins_words(make_folder):
  data = word_tokenizer(decoders.Metaspace())
  bare = json.dumps(json.loads(data) | {'decoder': None}).encode()
  tok = load_tokenizer(make_folder({'tokenizer.json': bare}))
  library = tokenizers.Tokenizer.from_buffer(bare)
  assert tok.decode([5, 1, 2, 6]) == '▁the ▁cat'
  for ids in ([3, 1], [5, 3, 3], [4], [], [0, 1], [5]):
    assert tok.decode(ids) == library.decode(ids)


def test_named_tokens_that_the_vocabulary_lacks(make_folder, byte_level_bytes):
  config = {'pad_token': '<pad>', 'bos_token': '<one>', 'my_token': '<two>'}
  config['extra_special_tokens'] = ['<three>']
  tok = load_tokenizer(
    make_folder(
      {'tokenizer.json': byte_level_bytes, 'tokenizer_config.json': config}
    )
  )
  names = ['<one>', '<pad>', '<two>', '<three>']
  size = tok.vocab_size
  assert [tok.token_id(n) for n in names] == list(range(size - 4, size))
  assert tok.encode(''.join(names)) == list(range(size - 4, size))
  assert tok.decode(range(size - 4, size)) == ''


def test_offsets_where_normalization_makes_more_characters(
  make_folder, unigram_bytes
):
  tok = load_tokenizer(make_folder({'tokenizer.model': unigram_bytes}))
  ids, offsets = tok.encode_with_offsets('㎯a', bos=False)
  # One character becomes "rad∕s2", partly in byte tokens without extent.
  assert tok.decode(ids) == 'rad∕s2a'
  assert all(0 <= begin <= end <= 2 for begin, end in offsets)
  assert offsets[-1] == (1, 2)


def test_long_text_of_byte_tokens_is_not_quadratic(
  make_folder, llama2c_entries
):
  data = llama2c_oracle.pack(llama2c_entries)
  tok = load_tokenizer(make_folder({'v.bin': data}) / 'v.bin')
  text = '你好' * 20000  # 120,000 byte tokens; quadratic work takes minutes
  ids, offsets = tok.encode_with_offsets(text, bos=False)
  assert len(ids) == 120001 and offsets[-1] == (39999, 40000)
  assert tok.decode(ids) == text


def test_llama2c_file_without_the_space_is_refused(
  make_folder, llama2c_entries
):
  entries = [(t if t != ' ' else '@', score) for t, score in llama2c_entries]
  folder = make_folder({'v.bin': llama2c_oracle.pack(entries)})
  with pytest.raises(UserError, match=r'v\.bin: no token is the single space'):
    load_tokenizer(folder / 'v.bin')
  entries[270] = entries[269]  # the same token twice
  entries[-1] = (' ', -99.0)
  folder = make_folder({'v.bin': llama2c_oracle.pack(entries)})
  with pytest.raises(UserError, match=r'v\.bin: not a SentencePiece model'):
    load_tokenizer(folder / 'v.bin')
