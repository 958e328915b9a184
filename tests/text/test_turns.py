"""What is learned of a conversation, with ten chat templates, token by token.

templates/expected.json has the text of each conversation with « and » around
what is learned of it, marked by hand, or what the row is refused for.
"""

import itertools
import json

import pytest

from llm.errors import UserError
from llm.text import chat, chat_mask
from llm.text.chat_options import ChatOptions, check_template
from llm.text.tokenizer import load_tokenizer
from tests.text import chats

EXPECTED = json.loads((chats.FOLDER / 'expected.json').read_text('utf-8'))
CASES = list(itertools.product(chats.SPECIAL, chats.CONVERSATIONS))


@pytest.fixture(scope='module')
def tokenizers(tmp_path_factory, byte_level_bytes):
  """tokenizers(name) -> that of a template."""
  made = {}

  def get(name):
    if name not in made:
      folder = tmp_path_factory.mktemp(name)
      chats.save_tokenizer(folder, name, byte_level_bytes)
      made[name] = load_tokenizer(folder)
    return made[name]

  return get


def marked(tok, ids, weights):
  """The text of the ids with « and » around those of weight above 0."""
  text = ''
  for on, run in itertools.groupby(zip(ids, weights), lambda pair: pair[1] > 0):
    part = tok.decode([id for id, _ in run], skip_special=False)
    text += f'«{part}»' if on else part
  return text


@pytest.mark.parametrize('learn', chat_mask.LEARN)
@pytest.mark.parametrize('name, conversation', CASES)
def test_what_is_learned(tokenizers, name, conversation, learn):
  tok, messages = tokenizers(name), chats.CONVERSATIONS[conversation]
  tools = chats.tools_of(name, messages)
  expected = EXPECTED[name][conversation][learn]
  if expected.startswith('refused: '):
    with pytest.raises(UserError) as caught:
      check_template(tok, ChatOptions(tools=tuple(tools or ())))
      chat_mask.encode_with_mask(tok, messages, learn=learn, tools=tools)
    assert expected.removeprefix('refused: ') in str(caught.value)
    return
  ids, weights = chat_mask.encode_with_mask(
    tok, messages, learn=learn, tools=tools
  )
  assert marked(tok, ids, weights) == expected
  # One tokenization of the whole text; GLM's last turn gets its end besides.
  whole = chat.encode(tok, messages, False, tools=tools)
  assert ids[: len(whole)] == whole
  assert len(ids) == len(whole) + (name == 'glm4')
  # The last token of each turn is special, so that generation can stop there.
  ends = [
    id for id, on, next_ in zip(ids, weights, [*weights[1:], 0]) if on > next_
  ]
  assert ends and set(ends) <= tok.special_ids


def test_every_template_and_conversation_is_expected():
  assert {(n, c) for n in EXPECTED for c in EXPECTED[n]} == set(CASES)
  learned = [
    text
    for cases in EXPECTED.values()
    for case in cases.values()
    for text in case.values()
    if '«' in text
  ]
  assert len(learned) > 90
  for part in ('<tool_call>', '<think>', '<|channel|>', '[TOOL_CALLS]'):
    assert any(f'«{part}' in t or f'«\n{part}' in t for t in learned), part


def test_a_template_that_is_told_not_to_think(tokenizers):
  tok = tokenizers('qwen3')
  messages = chats.CONVERSATIONS['single']
  ids, weights = chat_mask.encode_with_mask(
    tok, messages, variables={'enable_thinking': False}
  )
  # The empty thoughts are of the generation prompt then.
  assert marked(tok, ids, weights).endswith('</think>\n\n«ho<|im_end|>»\n')


def test_weights_of_turns(tokenizers):
  messages = chats.CONVERSATIONS['tool']
  for name in ('chatml', 'llama3', 'mistral', 'glm4', 'deepseek_r1', 'gpt_oss'):
    tok, tools = tokenizers(name), chats.tools_of(name, messages)
    whole = chat_mask.encode_with_mask(tok, messages, tools=tools)
    ids, weights = chat_mask.encode_with_mask(
      tok, messages, tools=tools, weights=[1, 0.25, 1, 0.5]
    )
    assert ids == whole[0]
    runs = [w for w, _ in itertools.groupby(weights) if w]
    assert runs == [0.25, 0.5]
    assert [w > 0 for w in weights] == [w > 0 for w in whole[1]]


@pytest.mark.parametrize(
  'name, text',
  [
    ('gpt_oss', '<|start|>assistant«<|channel|>final<|message|>ho<|return|>»'),
    ('glm4', '<|assistant|>«\n<think></think>\nho<|user|>»'),
    ('llama3', 'assistant<|end_header_id|>\n\n«ho<|eot_id|>»'),
    ('mistral', '<s> «ho</s>»'),
  ],
)
def test_a_conversation_that_the_assistant_begins(tokenizers, name, text):
  tok = tokenizers(name)
  found = chat_mask.encode_with_mask(tok, [chats.says('ho')])
  assert marked(tok, *found).endswith(text)


def test_two_turns_of_the_assistant_in_a_row(tokenizers):
  messages = [chats.user('hi'), chats.says('ho'), chats.says('hm')]
  tok = tokenizers('chatml')
  text = marked(tok, *chat_mask.encode_with_mask(tok, messages))
  assert '«ho<|im_end|>»' in text and '«hm<|im_end|>»' in text
  with pytest.raises(UserError, match=r'messages\[2\]: follows another'):
    chat_mask.encode_with_mask(tokenizers('glm4'), messages)
  # GPT-OSS ends a turn by a mark of its own.
  tok = tokenizers('gpt_oss')
  text = marked(tok, *chat_mask.encode_with_mask(tok, messages))
  assert 'final<|message|>ho<|end|>»<|start|>assistant«' in text
