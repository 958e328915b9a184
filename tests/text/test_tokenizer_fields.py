"""Fields of tokenizer_config.json, by hand; the oracle is in tests/parity."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, processors

from llm.errors import UserError
from llm.text import text_stream
from llm.text.tokenizer import load_tokenizer

EOS = '<|end_of_text|>'


@pytest.fixture
def load(make_folder, byte_level_bytes):
  """load(config, edit) -> a byte-level tokenizer; `edit` changes its file."""

  def load(config=None, edit=lambda tokenizer: None):
    tokenizer = Tokenizer.from_buffer(byte_level_bytes)
    edit(tokenizer)
    return load_tokenizer(
      make_folder(
        {
          'tokenizer.json': tokenizer.to_str(),
          'tokenizer_config.json': {'eos_token': EOS} | (config or {}),
        }
      )
    )

  return load


def tokens(tok, text):
  return [tok.token(id) for id in tok.encode(text, bos=False)]


def test_a_named_token_keeps_its_flags(load):
  strips = AddedToken('<mask>', lstrip=True, rstrip=True, special=True)
  tok = load({'mask_token': '<mask>'}, lambda t: t.add_tokens([strips]))
  assert tokens(tok, 'the <mask> cat') == ['the', '<mask>', 'c', 'at']
  # Written as an object in tokenizer_config.json alone.
  given = {'content': '<mask>', 'lstrip': True}
  tok = load({'mask_token': given})
  assert tokens(tok, 'the <mask> cat') == ['the', '<mask>', 'Ġcat']
  # tokenizer_config.json wins over the flags of tokenizer.json.
  id = str(tok.token_id('<mask>'))
  plain = AddedToken('<mask>', special=True)
  config = {'added_tokens_decoder': {id: given | {'special': True}}}
  tok = load(config, lambda t: t.add_tokens([plain]))
  assert tokens(tok, 'the <mask> cat') == ['the', '<mask>', 'Ġcat']


@pytest.mark.parametrize(
  'config, begin, behind',
  [
    # (tokens of a text, of what stands behind '</s>')
    ({}, ['▁the'], ['the']),
    ({'legacy': True}, ['▁the'], ['▁the']),
    ({'add_prefix_space': False}, ['the'], ['the']),
    ({'tokenizer_class': 'PreTrainedTokenizerFast'}, ['▁the'], ['▁the']),
    ({'model_type': 'mistral'}, ['▁the'], ['▁the']),
    ({'model_type': 'mistral', 'add_prefix_space': False}, ['▁the'], ['▁the']),
  ],
)
def test_the_class_of_llama(make_folder, fallback_bytes, config, begin, behind):
  config = {'tokenizer_class': 'LlamaTokenizer'} | config
  tok = load_tokenizer(
    make_folder(
      {
        'tokenizer.json': fallback_bytes,
        'config.json': {'model_type': config.pop('model_type', 'llama')},
        'tokenizer_config.json': config,
      }
    )
  )
  text = lambda pieces: ''.join(pieces)
  assert text(tokens(tok, 'the')) == text(begin)
  assert text(tokens(tok, 'the</s>the')) == text([*begin, '</s>', *behind])


@pytest.mark.parametrize(
  'name, value',
  [
    ('sp_model_kwargs', {'enable_sampling': True, 'alpha': 0.1}),
    ('fix_mistral_regex', True),
    ('do_lower_case', True),
  ],
)
def test_fields_that_would_change_ids(load, name, value):
  with pytest.raises(UserError, match=rf'tokenizer_config.json: {name}=.*not'):
    load({name: value})
  for off in (None, False, {}, {'enable_sampling': False}):
    load({name: off})


@pytest.mark.parametrize(
  'config',
  [
    {'model_max_length': 10**30, 'padding_side': 'left', 'errors': 'replace'},
    {'clean_up_tokenization_spaces': True, 'spaces_between_special_tokens': 1},
    {'truncation_side': 'left', 'auto_map': {}, 'use_fast': True},
  ],
)
def test_fields_that_change_no_ids(load, config):
  text = ' the cat , sat .\n'
  tok = load(config)
  assert tok.encode(text) == load().encode(text)
  assert tok.decode(tok.encode(text)) == text


def test_another_split_than_add_prefix_space_can_set(load):
  from tokenizers import pre_tokenizers

  def digits(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
      [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]
    )

  config = {'tokenizer_class': 'GPT2Tokenizer', 'add_prefix_space': False}
  assert tokens(load(config, digits), '42') == ['4', '2']
  with pytest.raises(UserError, match='add_prefix_space=true is not supported'):
    load(config | {'add_prefix_space': True}, digits)


def test_another_eos_in_a_file_that_puts_one_behind_a_text(load, tmp_path):
  def closes(tokenizer):
    end = (EOS, tokenizer.token_to_id(EOS))
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f'$A {EOS}', special_tokens=[end]
    )

  tok = load(edit=closes)
  assert tok.encode('a')[-1] == tok.eos_ids[0]
  assert tok.encode_prompt('a') == tok.encode('a', bos=False)
  end = tok.token_id('<|im_end|>')
  tok.with_eos(end).save(tmp_path)
  saved = load_tokenizer(tmp_path)
  assert saved.encode('a') == [*tok.encode('a', bos=False), end]
  assert saved.eos_ids == (end,)
  written = Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
  assert written.encode('a').ids[-1] == end


def test_new_tokens_where_ids_have_gaps(make_folder, byte_level_bytes):
  value = json.loads(byte_level_bytes)
  next_id = 1 + max(entry['id'] for entry in value['added_tokens'])
  vocab = value['model']['vocab']
  last = max(vocab, key=vocab.get)
  vocab[last] = next_id + 1  # the library goes on behind the added tokens
  tok = load_tokenizer(make_folder({'tokenizer.json': value}))
  one = tok.with_tokens(('<a>',))
  assert one.token_id('<a>') == next_id and one.token(next_id + 1) == last
  with pytest.raises(UserError, match="add_tokens: '<b>' would get id"):
    tok.with_tokens(('<a>', '<b>'))


def test_a_special_token_that_is_half_a_character(make_folder, fallback_bytes):
  value = json.loads(fallback_bytes)
  id = value['model']['vocab']['<0xC3>']
  flags = ('single_word', 'lstrip', 'rstrip', 'normalized')
  value['added_tokens'].append(
    {'id': id, 'content': '<0xC3>', 'special': True}
    | dict.fromkeys(flags, False)
  )
  tok = load_tokenizer(make_folder({'tokenizer.json': value}))
  stream = text_stream.start_stream(tok, [], ['x'], (), False)
  assert stream.push([id]) + stream.finish() == ''
