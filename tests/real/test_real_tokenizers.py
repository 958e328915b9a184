"""Tokenizers of real models on real text."""

import random

import pytest
import sentencepiece
import tokenizers

from llm.text import detokenize
from llm.text.tokenizer import find_tokenizer, load_tokenizer
from tests.text import llama2c_oracle

UNICODE = 'café “naïve” — 你好，世界 🙂👩\u200d🚀 नमस्ते \t\n ก็ e\u0301 <0x41>'


@pytest.fixture(scope='module')
def stories(data_dir) -> list[str]:
  text = (data_dir / 'text/tinystories/tinystories_sample.txt').read_text()
  return [text[at : at + 300] for at in range(0, 60000, 1000)] + [UNICODE]


@pytest.fixture(scope='module')
def llama2_model(data_dir) -> bytes:
  return (data_dir / 'tokenizers/llama2/tokenizer.model').read_bytes()


def stream(tok, ids) -> str:
  state, text = detokenize.start(), ''
  for token in ids:
    state, piece = detokenize.push(tok, state, [token])
    text += piece
  return text + detokenize.flush(tok, state)[1]


def test_tok512_encodes_as_llama2c(data_dir, stories):
  model = data_dir / 'weights/stories260K/stories260K.bin'
  path = find_tokenizer(model)
  assert path.name == 'tok512.bin'
  tok = load_tokenizer(path, vocab_size=512)
  assert (tok.vocab_size, tok.bos_id, tok.eos_ids) == (512, 1, (2,))
  entries = llama2c_oracle.unpack(path.read_bytes())
  for text in stories:
    ids = tok.encode(text)
    assert ids == [1] + llama2c_oracle.encode(entries, text)
    assert tok.decode(ids) == stream(tok, ids) == text


def test_tok512_on_random_text(data_dir):
  path = data_dir / 'weights/stories260K/tok512.bin'
  tok, rng = load_tokenizer(path), random.Random(0)
  entries = llama2c_oracle.unpack(path.read_bytes())
  alphabet = 'the andoswi.,TL \n"’é€🙂你' + 'abc'
  for _ in range(300):
    text = ''.join(rng.choices(alphabet, k=rng.randrange(40)))
    ids = tok.encode(text, bos=False)
    assert ids == llama2c_oracle.encode(entries, text)
    assert stream(tok, ids) == text


def test_llama2_vocabulary_through_the_llama2c_file(
  llama2_model, stories, tmp_path
):
  library = sentencepiece.SentencePieceProcessor(model_proto=llama2_model)
  entries = []
  for id in range(library.get_piece_size()):
    piece = library.id_to_piece(id).replace('▁', ' ')
    piece = f'\n{piece}\n' if id in (1, 2) else piece  # as llama2.c exports
    entries.append((piece, library.get_score(id)))
  (tmp_path / 'tokenizer.bin').write_bytes(llama2c_oracle.pack(entries))
  tok = load_tokenizer(tmp_path / 'tokenizer.bin', vocab_size=32000)
  for text in stories:
    assert tok.encode(text, bos=False) == library.encode(text)


def test_llama2_model(data_dir, llama2_model, stories):
  tok = load_tokenizer(data_dir / 'tokenizers/llama2')
  library = sentencepiece.SentencePieceProcessor(model_proto=llama2_model)
  for text in stories[:-1]:
    ids = tok.encode(text)
    assert ids == [1] + library.encode(text)
    assert tok.decode(ids) == stream(tok, ids) == text
  rng = random.Random(1)
  pool = [*range(3, 300), *rng.choices(range(300, 32000), k=300)]
  for _ in range(200):
    ids = [15043] + rng.choices(pool, k=20)
    assert tok.decode(ids) == stream(tok, ids) == library.decode(ids)


def test_gpt2(data_dir, stories):
  tok = load_tokenizer(data_dir / 'tokenizers/gpt2')
  file = data_dir / 'tokenizers/gpt2/tokenizer.json'
  library = tokenizers.Tokenizer.from_file(str(file))
  assert (tok.vocab_size, tok.bos_id, tok.eos_ids) == (50257, 50256, (50256,))
  for text in stories:
    ids, offsets = tok.encode_with_offsets(text)
    assert ids == library.encode(text).ids
    assert tok.decode(ids, skip_special=False) == text  # has <|endoftext|>
    assert tok.decode(ids) == stream(tok, ids) == library.decode(ids)
    assert offsets[0][0] == 0 and offsets[-1][1] == len(text)
  rng = random.Random(2)
  for _ in range(200):
    ids = [rng.randrange(50260) for _ in range(20)]
    assert tok.decode(ids) == stream(tok, ids) == library.decode(ids)
