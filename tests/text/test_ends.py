"""What ends a completion: tokens of templates, EOS of prompts, stop strings."""

import json

import pytest

from llm.text import chat, text_stream
from llm.text.tokenizer import load_tokenizer
from llm.text.turn_end import turn_end
from tests.text.test_chat_mask import CHATML, LLAMA2, LLAMA3, PLAIN


@pytest.fixture
def make(make_folder, byte_level_bytes):
  def make(template=None, **config):
    config = {'bos_token': '<|begin_of_text|>', 'eos_token': '<|end_of_text|>',
              **config}  # fmt: skip
    if template:
      config['chat_template'] = template
    return load_tokenizer(
      make_folder(
        {'tokenizer.json': byte_level_bytes, 'tokenizer_config.json': config}
      )
    )

  return make


@pytest.mark.parametrize(
  'template, token',
  [
    (CHATML, '<|im_end|>'),
    (LLAMA3, '<|end_of_text|>'),
    (LLAMA2, '<|end_of_text|>'),
    (PLAIN, None),  # ends with plain text, at which nothing stops
    ('{{ raise_exception("no") }}', None),
    (None, None),
  ],
)
def test_the_end_of_a_turn(make, template, token):
  tok = make(template)
  assert turn_end(tok) == (token and tok.token_id(token))


@pytest.mark.parametrize(
  'config',
  [
    {'add_bos_token': True, 'add_eos_token': True},
    {'add_eos_token': True},
    {'add_bos_token': True},
    {},
  ],
)
def test_a_prompt_has_no_eos_behind_it(make, config):
  tok = make(**config)
  ids = tok.encode_prompt('the cat')
  bos = [tok.bos_id] * bool(config.get('add_bos_token'))
  assert ids == bos + tok.encode('the cat', bos=False)
  # What the user writes is what the model reads.
  assert tok.encode_prompt('the<|end_of_text|>')[-1] == tok.eos_ids[0]


def test_another_eos(make, tmp_path):
  tok = make(add_eos_token=True)
  end = tok.token_id('<|im_end|>')
  other = tok.with_eos(end)
  assert other.eos_ids == (end, *tok.eos_ids)
  assert other.encode('a')[-1] == end and tok.encode('a')[-1] != end
  other.save(tmp_path)
  saved = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  assert saved['eos_token'] == '<|im_end|>'
  assert load_tokenizer(tmp_path).eos_ids == (end,)
  assert tok.special_tokens['eos_token'] == '<|end_of_text|>'


def test_an_eos_that_is_written_is_not_doubled(make):
  tok = make(add_bos_token=True, add_eos_token=True)
  bos, [eos] = tok.bos_id, tok.eos_ids
  text = 'the<|end_of_text|>'
  the = tok.token_id('the')
  assert tok.encode(text) == tok.encode('the') == [bos, the, eos]
  assert tok.encode_prompt(text) == [bos, the, eos]
  assert tok.encode_prompt('<|end_of_text|>') == [bos, eos]
  assert tok.encode_with_offsets('the')[1] == [(0, 0), (0, 3), (3, 3)]
  assert tok.encode_with_offsets(text)[1] == [(0, 0), (0, 3), (3, 18)]
  assert tok.encode('') == [bos, eos] and tok.encode_prompt('') == [bos]


@pytest.mark.parametrize(
  'template', [LLAMA2, '\n{{ messages[-1].content + eos_token }}', CHATML]
)
def test_templates_write_the_eos_they_wrote(make, tmp_path, template):
  tok = make(template)
  talk = [
    {'role': 'user', 'content': 'a'},
    {'role': 'assistant', 'content': 'b'},
  ]
  text = chat.render(tok, talk, False)
  other = tok.with_eos(tok.token_id('<|im_end|>'))
  again = other.with_eos(tok.token_id('<|im_start|>'))
  other.save(tmp_path)
  for changed in (other, again, load_tokenizer(tmp_path)):
    assert chat.render(changed, talk, False) == text
  assert load_tokenizer(tmp_path).eos_ids == (tok.token_id('<|im_end|>'),)


def stream(tok, ids, stops, ends=(), by=1):
  """(what was shown piece by piece, the text, tokens, stopped)."""
  made = text_stream.start_stream(tok, [], stops, ends, False)
  shown = [made.push(ids[i : i + by]) for i in range(0, len(ids), by)]
  shown.append(made.finish())
  assert ''.join(shown) == made.text
  return made.text, made.length, made.stopped


@pytest.mark.parametrize('by', (1, 3))
def test_stop_strings_see_special_tokens(make, by):
  tok = make()
  ids = tok.encode('the cat<|im_end|>\nsat on', bos=False)
  end = ids.index(tok.token_id('<|im_end|>'))
  assert stream(tok, ids, [], by=by) == ('the cat\nsat on', len(ids), False)
  # As a stop, across its end, over it, and where it does not occur.
  assert stream(tok, ids, ['<|im_end|>'], by=by) == ('the cat', end + 1, True)
  assert stream(tok, ids, ['|>\n'], by=by) == ('the cat', end + 2, True)
  assert stream(tok, ids, ['t<|im_end|>\ns'], by=by)[0] == 'the ca'
  assert stream(tok, ids, ['<|im_start|>'], by=by)[0] == 'the cat\nsat on'
  # A text that is said across it is no stop: it does not stand there.
  assert stream(tok, ids, ['cat\nsat'], by=by)[0] == 'the cat\nsat on'
  assert stream(tok, ids, ['sat'], by=by)[0] == 'the cat\n'
