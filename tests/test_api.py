"""`llm.load`, `llm.generate` and `llm.score` on a folder written here."""

import jax
import numpy as np
import pytest

import llm
from llm.checkpoints.hf.save import save_hf
from llm.errors import UserError
from llm.text.tokenizer import load_tokenizer
from tests.models import tiny


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  folder = tmp_path_factory.mktemp('model')
  tokenizer = load_tokenizer('bytes')
  model, params = tiny.build(vocab_size=tokenizer.vocab_size)
  save_hf(str(folder), model.config, params, tokenizer=tokenizer)
  got = llm.load(str(folder))
  jax.tree.map(np.testing.assert_array_equal, got[1], params)
  return got


def test_generate_gives_text_for_each_prompt_and_sample(loaded):
  answers = llm.generate(
    *loaded, ['ab', 'cd'], n=2, max_new_tokens=5, seed=3, ignore_eos=True
  )
  assert len(answers) == 4
  # Four rows again: they run the program that is there.
  again = llm.generate(
    *loaded, 'cd', n=4, max_new_tokens=5, seed=4, ignore_eos=True
  )
  assert answers[3].token_ids == again[0].token_ids
  assert answers[3].text == again[0].text
  assert llm.generate(*loaded, []) == []


def test_generate_takes_conversations(loaded):
  model, params, _ = loaded
  tokenizer = load_tokenizer('bytes')
  tokenizer.chat_templates['default'] = (
    '{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}{{ x }}'
  )
  options = {'max_new_tokens': 5, 'ignore_eos': True, 'temperature': 0.0}
  asked = [{'role': 'user', 'content': 'q'}]
  chat = {'system': 'S', 'chat_template_kwargs': {'x': '!'}}
  [answer] = llm.generate(model, params, tokenizer, asked, **options, **chat)
  rendered = tokenizer.encode('<s>S<u>q!', bos=False)
  assert answer.prompt_tokens == len(rendered)
  both = llm.generate(model, params, tokenizer, [asked, asked], **options)
  assert [a.prompt_tokens for a in both] == [len('<u>q')] * 2
  with pytest.raises(UserError, match=r'prompts\[1\]: system: of'):
    llm.generate(model, params, tokenizer, [asked, 'q'], system='S')
  with pytest.raises(UserError, match='tools=5: give a list'):
    llm.generate(model, params, tokenizer, asked, tools=5)


def test_generate_ends_at_a_stop_string(loaded):
  options = {
    'n': 4, 'max_new_tokens': 40, 'temperature': 1.5, 'ignore_eos': True,
  }  # fmt: skip
  free, *_ = llm.generate(*loaded, 'ab', **options)
  stop = next(c for c in free.text[3:] if c.isprintable() and c != '\ufffd')
  cut, *_ = llm.generate(*loaded, 'ab', stop=[stop], **options)
  assert cut.text == free.text[: free.text.index(stop)]
  assert cut.finish_reason == 'stop'
  assert cut.token_ids == free.token_ids[: len(cut.token_ids)]


def test_score_equals_the_kept_logprobs(loaded):
  model, params, tokenizer = loaded
  answer, *_ = llm.generate(
    *loaded, 'ab', n=4, max_new_tokens=6, ignore_eos=True
  )
  tokens = tokenizer.encode('ab') + answer.token_ids
  from llm.decode.score import score

  [logprobs] = score(model, params, [tokens])
  np.testing.assert_allclose(
    logprobs[-len(answer.token_ids) :], answer.logprobs, rtol=0, atol=1e-5
  )
  assert len(llm.score(*loaded, 'abc')[0]) == len(tokenizer.encode('abc')) - 1


def test_wrong_settings_are_named(loaded):
  with pytest.raises(UserError, match="did you mean 'temperature'"):
    llm.generate(*loaded, 'ab', temprature=0.5)
  with pytest.raises(UserError, match='does not exist: give a Hugging Face'):
    llm.load('/no/such/model')
  with pytest.raises(UserError, match="dtype='int8': use one of"):
    llm.load('/no/such/model', dtype='int8')
