"""Bad input from the command line: status 2, one line, output kept."""

import json
import pathlib
import shutil
import sys

import pytest

from llm import command

ROOT = pathlib.Path(__file__).parents[2]
GENERATE = '--config=configs/generate.py'
SCORE = '--config=configs/score.py'


@pytest.fixture
def refuse(monkeypatch, capsys):
  """Runs the command line; returns the one line that it refuses with."""
  monkeypatch.chdir(ROOT)

  def run(*args):
    monkeypatch.setattr(sys, 'argv', ['launch.py', *args])
    capsys.readouterr()
    assert command.main(sys.argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ''
    assert shown.err.startswith('error: ') and shown.err.count('\n') == 1
    return shown.err

  return run


@pytest.fixture
def copy(model_folder, tmp_path):
  return pathlib.Path(shutil.copytree(model_folder, tmp_path / 'model'))


def test_fields_that_are_missing_or_wrong(refuse, model_folder, tmp_path):
  model = f'--config.model.path={model_folder}'
  prompt = '--config.prompt=Hi'
  for args, wanted in {
    (prompt,): 'model.path is not set',
    ('--config.model.path=/no/where', prompt): "'/no/where' does not exist",
    (model,): 'nothing is set: set exactly one of --config.prompt',
    (model, prompt, '--config.prompts_file=x'): 'prompt and prompts_file are',
    (model, '--config.prompts_file=x'): 'output is not',
    (model, '--config.prompts_file=x', '--config.output=x'): 'itself',
    (model, prompt, '--config.dtype=int8'): "dtype='int8': use one of float32",
    (model, prompt, '--config.batch_size=0'): 'batch_size=0: use 1 or more',
    (model, prompt, '--config.chunk_steps=0'): 'chunk_steps=0',
    (model, prompt, '--config.max_length=97'): 'max_length=97: use 1 to 96',
    (model, prompt, '--config.sampling.temperature=-1.0'): 'temperature = -1.0',
    (model, prompt, '--config.sampling.top_p=0.0'): 'sampling.top_p = 0.0',
    (model, prompt, '--config.sampling.top_k=-1'): 'sampling.top_k = -1',
    (model, prompt, '--config.sampling.logit_bias={'): 'sampling.logit_bias=',
    (model, prompt, f'--config.output={tmp_path}'): 'is a folder',
    (model, prompt, '--config.tokenizer.path=/no'): '/no does not exist',
    (model, '--config.prompt=' + 'a' * 200): 'shorten the row to at most 96',
    (model, prompt, '--config.sampling.max_new_tokens=94'): '93 new tokens fit',
  }.items():
    assert wanted in refuse(GENERATE, *args)
  assert 'input is not set' in refuse(SCORE, model)


def test_folders_that_hold_no_model(refuse, copy):
  args = (GENERATE, f'--config.model.path={copy}', '--config.prompt=Hi')
  weights = copy / 'model.safetensors'
  data = weights.read_bytes()
  weights.write_bytes(data[:-100])
  assert 'truncated' in refuse(*args)
  weights.write_bytes(b'\xff' * 50)
  assert 'model.safetensors' in refuse(*args)
  weights.write_bytes(data)
  config = json.loads((copy / 'config.json').read_text())
  wrong = config | {'intermediate_size': 48}
  (copy / 'config.json').write_text(json.dumps(wrong))
  assert 'mlp.down_proj.weight' in refuse(*args)
  weights.unlink()
  assert 'model.safetensors' in refuse(*args)
  (copy / 'config.json').write_text('{')
  assert 'config.json' in refuse(*args)
  (copy / 'config.json').unlink()
  assert 'config.json' in refuse(*args)


def test_a_bad_row_leaves_the_output_of_earlier_rows(
  refuse, run_task, model_folder, write_rows, tmp_path
):
  options = ('sampling.max_new_tokens=12', 'batch_size=2')
  good = [{'prompt': 'a'}, {'prompt': 'b'}]
  path = write_rows(*good)
  rows = run_task('generate', f'prompts_file={path}', *options)
  before = (tmp_path / 'out.jsonl').read_text()
  write_rows(*good, {'prompt': 'c', 'sampling': {'top_p': 2}})
  message = refuse(
    GENERATE,
    f'--config.model.path={model_folder}',
    f'--config.prompts_file={path}',
    f'--config.output={tmp_path / "out.jsonl"}',
    *(f'--config.{option}' for option in options),
  )
  assert 'line 3: sampling.top_p = 2' in message
  assert (tmp_path / 'out.jsonl').read_text() == before
  # Once it is fixed, the run resumes after the rows that are there.
  write_rows(*good, {'prompt': 'c'})
  again = run_task('generate', f'prompts_file={path}', *options)
  assert again[:2] == rows and again[2]['prompt'] == 'c'
