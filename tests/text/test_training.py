"""A trained SentencePiece model: its ids, its pieces and what it refuses."""

import pytest

from llm.errors import UserError
from llm.text import chat
from llm.text.tokenizer import load_tokenizer
from llm.text.training import save_sentencepiece, train_sentencepiece

TEXTS = ['the cat sat on the mat', 'the hat of the cat is 42'] * 20


@pytest.fixture(scope='module')
def tok(tmp_path_factory):
  path = tmp_path_factory.mktemp('spm') / 'tokenizer.model'
  path.write_bytes(train_sentencepiece(TEXTS, 290))
  return load_tokenizer(path)


def test_layout_is_that_of_llama(tok):
  assert tok.vocab_size == 290
  assert [tok.token(i) for i in range(3)] == ['<unk>', '<s>', '</s>']
  assert [tok.token(i) for i in (3, 258)] == ['<0x00>', '<0xFF>']
  assert (tok.bos_id, tok.eos_ids) == (1, (2,))


def test_frequent_words_are_merged_and_digits_are_not(tok):
  ids = tok.encode('the 42', bos=False)
  assert [tok.token(i) for i in ids] == ['▁the', '▁', '4', '2']


@pytest.mark.parametrize('text', ('  two  spaces ', 'Übung\n\t猫 42', ''))
def test_any_text_comes_back(tok, text):
  assert tok.decode(tok.encode(text)) == text


def test_same_texts_same_model(tok):
  assert train_sentencepiece(TEXTS, 290) == train_sentencepiece(TEXTS, 290)


@pytest.mark.parametrize(
  ('size', 'remedy'), ((100, 'at least 273'), (5000, 'at most 303'))
)
def test_a_size_that_cannot_be_is_refused(size, remedy):
  message = f'tokenizer.vocab_size={size}: these texts need {remedy}'
  with pytest.raises(UserError, match=message):
    train_sentencepiece(TEXTS, size)


def test_a_saved_folder_has_the_template(tmp_path):
  template = '{{ bos_token }}{{ messages[0].content }}{{ eos_token }}'
  model = train_sentencepiece(TEXTS, 290)
  save_sentencepiece(tmp_path / 'tok', model, template)
  tok = load_tokenizer(tmp_path / 'tok')
  ids = chat.encode(tok, [{'role': 'user', 'content': 'the cat'}])
  assert (ids[0], tok.decode(ids), ids[-1]) == (1, 'the cat', 2)
  save_sentencepiece(tmp_path / 'plain', model)
  assert not load_tokenizer(tmp_path / 'plain').chat_templates
