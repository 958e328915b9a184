"""The conversation in the terminal."""

import builtins

import pytest

from llm.errors import UserError

# Two letters a turn: the prompts of all turns then fit one bucket.
SHORT = ('sampling.max_new_tokens=2', 'sampling.logit_bias={"65": 1000}')


@pytest.fixture
def type_lines(monkeypatch):
  """Answers `input` with these lines, then with the end of input."""

  def install(*lines):
    rest = iter(lines)

    def read(prompt=''):
      try:
        return next(rest)
      except StopIteration:
        raise EOFError from None

    monkeypatch.setattr(builtins, 'input', read)

  return install


def test_turns_follow_each_other_until_reset(run_task, type_lines, capsys):
  type_lines('a', '', '/wat', 'b', '/reset', 'a', '/exit', 'never')
  rows = run_task('generate', 'chat=true', *SHORT)
  first, second, third = rows
  assert first['prompt'] == '<u>a<a>'
  assert second['prompt'] == f'<u>a<a>{first["text"]}<|eos|><u>b<a>'
  assert third['prompt'] == '<u>a<a>'
  assert first['text'] == third['text'] == 'AA'
  assert [r['index'] for r in rows] == [0, 1, 2]
  shown = capsys.readouterr()
  assert 'unknown command /wat' in shown.err
  assert 'a new conversation' in shown.err


def test_a_system_prompt_from_the_command_line(run_task, type_lines, capsys):
  type_lines('a', '/system T', 'b', '/reset', 'c')
  rows = run_task('generate', 'chat=true', 'system=S', *SHORT)
  assert [r['prompt'] for r in rows] == [
    '<s>S<u>a<a>',
    '<s>T<u>a<a>AA<|eos|><u>b<a>',
    '<s>T<u>c<a>',
  ]
  assert "the system prompt is now 'T'" in capsys.readouterr().err


def test_a_conversation_that_is_too_long_goes_on(run_task, type_lines, capsys):
  type_lines('a' * 100, 'b')
  rows = run_task('generate', 'chat=true', *SHORT)
  assert [r['prompt'] for r in rows] == ['<u>b<a>']
  assert 'start anew with /reset' in capsys.readouterr().err


def test_what_a_chat_cannot_do_is_refused(run_task, type_lines):
  type_lines()
  with pytest.raises(UserError, match='needs a tokenizer with a chat template'):
    run_task('generate', 'chat=true', 'tokenizer.path=bytes')
  with pytest.raises(UserError, match='sampling.n=2 with chat=True'):
    run_task('generate', 'chat=true', 'sampling.n=2')
  with pytest.raises(UserError, match="reads no 'enable_thinking'"):
    run_task(
      'generate', 'chat=true', 'chat_template_kwargs={"enable_thinking": 0}'
    )
  with pytest.raises(UserError, match='prompt and chat are set'):
    run_task('generate', 'chat=true', 'prompt=Hi')
