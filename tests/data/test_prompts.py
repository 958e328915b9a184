import itertools
import json

import pytest

from llm.data.prompts import Prompt, digest, load_prompts, prompt_order
from llm.errors import UserError
from llm.text.tokenizer import load_tokenizer

TEMPLATE = (
  '{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}'
  '{% if add_generation_prompt %}<a>{% endif %}'
)


@pytest.fixture
def load(tmp_path):
  tok = load_tokenizer('bytes')
  tok.chat_templates['default'] = TEMPLATE

  def load(*rows, max_length=32, **settings):
    path = tmp_path / 'rows.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    prompts, counts = load_prompts(
      str(path), tok, max_length=max_length, **settings
    )
    return (
      [tok.decode(p.token_ids) for p in prompts],
      counts['overlong'],
      prompts,
    )

  return load


def test_strings_and_messages(load):
  turns = [{'role': 'user', 'content': 'b?'}]
  rows = [{'prompt': 'a', 'answer': 1}, {'prompt': turns}, {'messages': turns}]
  texts, overlong, prompts = load(*rows)
  assert texts == ['a', '<u>b?<a>', '<u>b?<a>'] and overlong == 0
  assert [p.row for p in prompts] == rows


def test_long_prompts_are_left_out_and_counted(load):
  texts, overlong, _ = load({'prompt': 'a' * 90}, {'prompt': 'b'})
  assert texts == ['b'] and overlong == 1
  with pytest.raises(UserError, match='all 1 prompts are longer than data.max'):
    load({'prompt': 'a' * 90})


def test_rows_are_refused_by_number(load):
  good = {'prompt': 'a'}
  turns = [
    {'role': 'user', 'content': 'b?'},
    {'role': 'assistant', 'content': 'c'},
  ]
  for bad, wanted in [
    ({'asked': 'x'}, "row 2: has no prompt (its keys: 'asked')"),
    ({'prompt': 3}, 'row 2: prompt=3: give a string or a list'),
    (
      {'messages': turns},
      'row 2: the prompt ends with what the assistant says',
    ),
    ({'prompt': []}, 'row 2: '),
  ]:
    with pytest.raises(UserError) as caught:
      load(good, bad)
    assert wanted in str(caught.value)

  def check(row):
    if 'answer' not in row:
      raise UserError('has no answer')

  with pytest.raises(UserError, match='row 1: has no answer'):
    load(good, check=check)


def test_the_order_has_every_prompt_once_an_epoch():
  def take(count, start=0, shuffle=True, seed=1):
    return list(itertools.islice(prompt_order(5, shuffle, seed, start), count))

  assert take(12, shuffle=False) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
  order = take(15)
  epochs = [order[i : i + 5] for i in (0, 5, 10)]
  assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) > 1
  assert take(15, seed=2) != order
  for start in range(10):  # from any place, what is left
    assert take(5, start) == order[start : start + 5]


def test_the_digest_names_tokens_and_rows():
  a, b = Prompt((1, 2), {'answer': 1}), Prompt((1, 3), {'answer': 1})
  c = Prompt((1, 2), {'answer': 2})
  assert len({digest(x) for x in ([a], [b], [c], [a, b], [b, a])}) == 5
  assert digest([a, b]) == digest([a, b])
