"""The generate command on a tiny random model, in this process."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

import llm
from llm import config_args
from llm.decode.sampling_params import SamplingParams
from llm.decode.score import score
from llm.errors import UserError

SHORT = 'sampling.max_new_tokens=12'
KEYS = {
  'index', 'sample', 'id', 'prompt', 'text', 'token_ids', 'logprobs',
  'finish_reason', 'prompt_tokens', 'prompt_token_ids', 'timing',
}  # fmt: skip
TIMES = {
  'ttft_s', 'prefill_s', 'decode_s', 'prefill_tokens_per_s',
  'decode_tokens_per_s', 'compile_s',
}  # fmt: skip


def test_one_prompt_streams_its_text_and_the_table(run_task, capsys):
  (row,) = run_task('generate', 'prompt=Hi', SHORT)
  assert set(row) == KEYS and set(row['timing']) == TIMES
  assert row['prompt'] == 'Hi' and row['prompt_tokens'] == 3
  assert len(row['logprobs']) == len(row['token_ids']) <= 12
  assert all(value >= 0 for value in row['timing'].values())
  shown = capsys.readouterr().out
  assert shown.startswith('Hi')
  assert 'time to first token' in shown and 'that this run measured' in shown


def test_rows_equal_the_library_alone(run_task, model_folder, write_rows):
  texts = ['a', 'bcd', 'efghijkl', '']
  path = write_rows(*[{'prompt': t} for t in texts])
  rows = run_task(
    'generate', f'prompts_file={path}', 'batch_size=2', 'sampling.seed=5', SHORT
  )
  model, params, tok = llm.load(model_folder)
  for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
    (want,) = llm.generate(model, params, tok, text, max_new_tokens=12, seed=5)
    assert (row['index'], row['sample']) == (i, 0)
    assert row['token_ids'] == want.token_ids
    assert row['finish_reason'] == want.finish_reason
    np.testing.assert_allclose(row['logprobs'], want.logprobs, atol=1e-5)
    # The scores of the same tokens, from one pass without a cache.
    whole = row['prompt_token_ids'] + row['token_ids']
    (scores,) = score(model, params, [whole])
    np.testing.assert_allclose(
      row['logprobs'], scores[row['prompt_tokens'] - 1 :], atol=1e-4
    )


def test_prompt_forms_and_row_settings(run_task, write_rows):
  ids = [256, 72, 105]
  path = write_rows(
    {'prompt': 'Hi'},
    {'token_ids': ids, 'sampling': {'max_new_tokens': 3}},
    {'messages': [{'role': 'user', 'content': 'Hi'}]},
    '',
    {'prompt': 'Hi', 'sampling': {'temperature': 0, 'logprobs': 2, 'n': 2}},
  )
  rows = run_task(
    'generate',
    f'prompts_file={path}',
    SHORT,
    'sampling.ignore_eos=true',
    'batch_size=2',
  )
  assert [(r['index'], r['sample']) for r in rows] == [
    (0, 0), (1, 0), (2, 0), (3, 0), (3, 1),
  ]  # fmt: skip
  assert rows[0]['prompt_token_ids'] == rows[1]['prompt_token_ids'] == ids
  assert rows[1]['token_ids'] == rows[0]['token_ids'][:3]
  assert rows[2]['prompt'] == '<u>Hi<a>'
  assert rows[2]['prompt_token_ids'] == list(b'<u>Hi<a>')
  greedy = rows[3]
  assert greedy['token_ids'] == rows[4]['token_ids']
  top = [t[0]['token_id'] for t in greedy['top_logprobs']]
  assert top == greedy['token_ids']
  assert all(len(t) == 2 for t in greedy['top_logprobs'])
  assert greedy['logprobs'] == pytest.approx(
    [t[0]['logprob'] for t in greedy['top_logprobs']], abs=1e-5
  )
  assert {'logprobs_processed', 'logprobs_filtered', 'surviving_mass'} <= set(
    greedy
  )
  assert 'top_logprobs' not in rows[0]


def test_sample_i_is_the_answer_of_seed_plus_i(run_task):
  two = run_task(
    'generate', 'prompt=Hi', SHORT, 'sampling.n=2', 'sampling.seed=8'
  )
  one = run_task(
    'generate', 'prompt=Hi', SHORT, 'sampling.seed=9', output='one.jsonl'
  )
  assert [r['sample'] for r in two] == [0, 1]
  assert two[1]['token_ids'] == one[0]['token_ids']
  assert two[0]['token_ids'] != one[0]['token_ids']


def test_a_stop_string_cuts_text_and_tokens(run_task, capsys):
  options = (SHORT, 'prompt=Hi', 'sampling.ignore_eos=true', 'sampling.seed=3')
  whole = run_task('generate', *options)[0]
  at = next(i for i in range(2, 10) if whole['token_ids'][i] < 128)
  # The whole text up to here, so that it cannot be complete before.
  stop = bytes(whole['token_ids'][at : at + 1]).decode()
  at = whole['token_ids'].index(ord(stop))
  capsys.readouterr()
  cut = run_task(
    'generate', *options, f'sampling.stop={(stop,)!r}', output='cut.jsonl'
  )[0]
  assert cut['finish_reason'] == 'stop'
  assert cut['token_ids'] == whole['token_ids'][: at + 1]
  assert cut['logprobs'] == pytest.approx(whole['logprobs'][: at + 1], abs=1e-5)
  assert cut['text'] == whole['text'].split(stop)[0]
  assert stop not in capsys.readouterr().out.split('\n\n')[0][2:]


def test_a_stop_token_ends_the_answer_and_is_no_text(run_task):
  options = (SHORT, 'prompt=Hi', 'sampling.ignore_eos=true', 'sampling.seed=3')
  whole = run_task('generate', *options)[0]
  token = whole['token_ids'][4]
  at = whole['token_ids'].index(token)
  cut = run_task(
    'generate',
    *options,
    f'sampling.stop_token_ids=({token},)',
    output='cut.jsonl',
  )[0]
  assert cut['finish_reason'] == 'stop'
  assert cut['token_ids'] == whole['token_ids'][: at + 1]
  text = bytes(t for t in cut['token_ids'][:-1] if t < 256)
  assert cut['text'] == text.decode(errors='replace')


def test_unset_max_new_tokens_is_what_fits(run_task):
  (row,) = run_task(
    'generate', 'prompt=Hi', 'max_length=10', 'sampling.ignore_eos=true'
  )
  assert len(row['token_ids']) == 7 and row['finish_reason'] == 'length'


def test_logit_bias_from_the_command_line(run_task):
  (row,) = run_task(
    'generate', 'prompt=Hi', SHORT, 'sampling.logit_bias={"65": 1000}'
  )
  assert row['text'] == 'A' * 12


def test_an_interrupted_run_continues(run_task, write_rows, tmp_path):
  path = write_rows(*[{'prompt': t} for t in ('a', 'b', 'c', 'd')])
  options = (f'prompts_file={path}', 'batch_size=2', SHORT)
  whole = run_task('generate', *options)
  out = tmp_path / 'out.jsonl'
  lines = out.read_text().splitlines(True)
  lines[0] = lines[0].replace('"finish_reason"', '"kept": 1, "finish_reason"')
  out.write_text(''.join(lines[:2]) + lines[2][:40])
  again = run_task('generate', *options)
  assert [r['token_ids'] for r in again] == [r['token_ids'] for r in whole]
  assert ['kept' in r for r in again] == [True, False, False, False]
  # Nothing is left to do, not even when the batches are others.
  assert run_task('generate', options[0], 'batch_size=3', SHORT) == again


def test_rows_of_other_settings_are_kept_beside(run_task, tmp_path, capsys):
  first = run_task('generate', 'prompt=Hi', SHORT)
  run_task('generate', 'prompt=Hi', SHORT, 'sampling.seed=1')
  assert 'held rows of other inputs' in capsys.readouterr().err
  kept = (tmp_path / 'out.jsonl.1').read_text()
  assert json.loads(kept) == first[0]


def test_workdir_gets_the_numbers_of_the_table(run_task, tmp_path):
  run_task('generate', 'prompt=Hi', SHORT, workdir=str(tmp_path))
  result = json.loads((tmp_path / 'result.json').read_text())
  assert result['ttft_s'] > 0 and result['decode_tokens_per_s'] > 0


def test_token_ids_need_no_tokenizer(run_task, model_folder, write_rows,
                                     tmp_path):  # fmt: skip
  bare = tmp_path / 'bare'
  bare.mkdir()
  for name in ('config.json', 'model.safetensors'):
    (bare / name).symlink_to(f'{model_folder}/{name}')
  (row,) = run_task(
    'generate',
    f'model.path={bare}',
    f'prompts_file={write_rows({"token_ids": [256, 72]})}',
    SHORT,
  )
  assert row['text'] is None and row['prompt'] is None
  assert len(row['token_ids']) > 0
  with pytest.raises(UserError, match='prompt needs a tokenizer'):
    run_task('generate', f'model.path={bare}', 'prompt=Hi', SHORT)


def test_config_lists_every_sampling_field():
  path = pathlib.Path(__file__).parents[2] / 'configs/generate.py'
  config = config_args.load_config(str(path))
  fields = {f.name: f.default for f in dataclasses.fields(SamplingParams)}
  assert set(config.sampling) == {*fields, 'defaults'}
  for name, default in fields.items():
    if config.sampling[name] is not None:
      assert config.sampling[name] == default, name
