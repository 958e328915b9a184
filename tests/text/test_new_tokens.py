"""Tokens of one's own: new ids, whole in a text, saved."""

import pytest

from llm.errors import UserError
from llm.text.tokenizer import load_tokenizer

NEW = ('<think>', '</think>', 'čaj')


def test_new_tokens(tok, tmp_path):
  if tok.source.endswith('.bin'):
    with pytest.raises(UserError, match='add_tokens: .*no place'):
      tok.with_tokens(NEW)
    return
  more = tok.with_tokens(NEW)
  assert more.vocab_size == tok.vocab_size + 3
  ids = [more.token_id(token) for token in NEW]
  assert ids == list(range(tok.vocab_size, tok.vocab_size + 3))
  text = 'the<think>cat</think> sat'
  found = more.encode(text, bos=False)
  assert [i for i in found if i in ids] == ids[:2]
  # They are shown, also where special tokens are left out.
  assert '<think>' in more.decode(found) and '</think>' in more.decode(found)
  assert not set(ids) & more.special_ids
  # Other texts are what they were, and so is the old tokenizer.
  assert more.encode('the cat sat') == tok.encode('the cat sat')
  assert tok.token_id('<think>') is None
  more.save(tmp_path)
  saved = load_tokenizer(tmp_path)
  assert saved.encode(text) == more.encode(text)
  assert saved.vocab_size == more.vocab_size
  # The same command again adds nothing.
  assert saved.with_tokens(NEW) is saved


@pytest.mark.parametrize('token', ('', ' ', 7, None))
def test_what_is_no_token(tok, token):
  with pytest.raises(UserError, match='tokenizer.add_tokens: '):
    tok.with_tokens((token,))
