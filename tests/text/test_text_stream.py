"""The text of an answer as its tokens arrive."""

import pytest

from llm.text.text_stream import start_stream
from llm.text.tokenizer import load_tokenizer

BYTES = load_tokenizer('bytes')
EOS = BYTES.eos_ids[0]


def stream(stops=(), prompt=(256,), continues=True):
  return start_stream(BYTES, prompt, stops, (EOS,), continues)


@pytest.mark.parametrize('size', [1, 2, 3, 100])
def test_text_is_the_same_however_it_arrives(size):
  data = list('naïve €5 END more'.encode())
  answer = stream(['END'])
  shown = []
  for first in range(0, len(data), size):
    shown.append(answer.push(data[first : first + size]))
  shown.append(answer.finish())
  assert ''.join(shown) == answer.text == 'naïve €5 '
  assert answer.stopped
  assert answer.length == len('naïve €5 END'.encode())


def test_text_that_could_begin_a_stop_string_is_withheld():
  answer = stream(['END'])
  assert answer.push(b'xE') == 'x'
  assert answer.push(b'N') == ''
  assert answer.push(b'x') == 'ENx'
  assert answer.push(b'E') == ''
  assert answer.finish() == 'E'
  assert not answer.stopped and answer.text == 'xENxE'


def test_an_end_token_counts_and_is_no_text():
  answer = stream()
  assert answer.push([104, 105, EOS]) == 'hi'
  assert answer.finish() == '' and answer.length == 3


def test_half_a_character_of_the_prompt_is_completed():
  euro = '€'.encode()
  assert stream(prompt=[256, euro[0]]).push(euro[1:]) == '€'
  alone = stream(prompt=[256, euro[0]], continues=False)
  assert alone.push(euro[1:]) + alone.finish() == '\ufffd\ufffd'


def test_without_a_tokenizer_only_tokens_are_counted():
  answer = start_stream(None, [1, 2], (), (EOS,), True)
  assert answer.push([5, 6]) == '' and answer.finish() == ''
  assert answer.length == 2 and answer.text == ''
