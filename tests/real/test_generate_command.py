"""The commands on a real checkpoint, as a user starts them."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BEGINS = 'Once upon a time, there was a little girl named Lily.'


@pytest.fixture
def launch(data_dir, tmp_path):
  path = data_dir / 'weights/stories260K/stories260K.bin'

  def run(task, *args):
    command = [
      sys.executable,
      'launch.py',
      f'--config=configs/{task}.py',
      f'--config.model.path={path}',
      f'--config.output={tmp_path / task}.jsonl',
      *(f'--config.{arg}' for arg in args),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / f'{task}.jsonl').read_text().splitlines()
    return done.stdout, [json.loads(line) for line in lines]

  return run


def test_a_story_and_its_scores(launch, tmp_path):
  shown, (row,) = launch('generate', 'prompt=', 'sampling.temperature=0.0')
  assert row['text'].startswith(BEGINS) and BEGINS in shown
  assert row['prompt_tokens'] == 1 and len(row['token_ids']) == 128
  assert row['finish_reason'] == 'length'
  assert 'time to first token' in shown and 'that this run measured' in shown
  whole = row['prompt_token_ids'] + row['token_ids']
  inputs = tmp_path / 'in.jsonl'
  texts = {'prompt': row['prompt'], 'completion': row['text']}
  inputs.write_text(json.dumps({'token_ids': whole}) + '\n' + json.dumps(texts))
  _, (by_ids, by_text) = launch('score', f'input={inputs}')
  assert by_ids['logprobs'][1:] == pytest.approx(row['logprobs'], abs=1e-4)
  # The model writes a text as its tokenizer reads it, but for the last word.
  assert by_text['token_ids'][:100] == whole[:100]


def test_a_stop_string_ends_the_story(launch):
  _, (row,) = launch(
    'generate',
    'prompt=Once upon a time',
    'sampling.temperature=0.0',
    'sampling.stop=("Lily",)',
  )
  assert row['text'] == ', there was a little girl named '
  assert row['finish_reason'] == 'stop' and row['timing']['decode_s'] > 0
