"""The score command on a tiny random model, in this process."""

import jax
import numpy as np
import pytest

import llm
from llm.decode.prefill import pad_rows
from llm.errors import UserError


def test_scores_are_those_of_the_full_forward(
  run_task, model_folder, write_rows
):
  path = write_rows(
    {'token_ids': [256, 72, 105, 33]},
    {'prompt': 'Hi', 'completion': '!'},
    {'token_ids': [5]},
    {'prompt': '', 'completion': 'été'},
  )
  rows = run_task('score', f'input={path}', 'batch_size=4')
  assert [r['index'] for r in rows] == [0, 1, 2, 3]
  assert rows[0]['token_ids'] == rows[1]['token_ids'] == [256, 72, 105, 33]
  assert [r['prompt_tokens'] for r in rows] == [0, 3, 0, 1]
  assert rows[2]['logprobs'] == [None]
  model, params, _ = llm.load(model_folder)
  tokens, _ = pad_rows([r['token_ids'] for r in rows], 8, 4)
  logits, _ = jax.jit(model.apply)({'params': params}, tokens)
  for row, logits in zip(rows, np.asarray(logits, np.float64), strict=True):
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    following = row['token_ids'][1:]
    want = logprobs[np.arange(len(following)), following]
    assert row['logprobs'][0] is None
    np.testing.assert_allclose(row['logprobs'][1:], want, atol=1e-5)


def test_an_interrupted_run_continues(run_task, write_rows, tmp_path):
  path = write_rows(*[{'token_ids': [256, i, 70]} for i in range(4)])
  whole = run_task('score', f'input={path}')
  out = tmp_path / 'out.jsonl'
  lines = out.read_text().splitlines(True)
  out.write_text(lines[0] + lines[1] + lines[2][:20])
  again = run_task('score', f'input={path}')
  assert [r['token_ids'] for r in again] == [r['token_ids'] for r in whole]
  for got, want in zip(again, whole, strict=True):
    assert got['logprobs'][1:] == pytest.approx(want['logprobs'][1:], abs=1e-5)


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ('{', 'line 2: not valid JSON'),
    ({'token_ids': []}, 'line 2: there is no token to score'),
    ({'token_ids': [259]}, r'line 2: token_ids\[0\]=259: .* 0 to 258'),
    ({'token_ids': [1.0]}, 'line 2: token_ids=.*list of integers'),
    ({'token_ids': [1] * 97}, '97 tokens are more than model.max_length=96'),
    ({'prompt': 'a'}, 'line 2: has prompt: give either'),
    ({'prompt': 'a', 'completion': 3}, 'completion=3: give a string'),
    ({'prompt': 'a', 'completions': 'b'}, 'did you mean completion'),
    ({'token_ids': [1], 'prompt': 'a', 'completion': 'b'}, 'give either'),
  ],
)
def test_bad_rows_are_named_before_work_starts(
  run_task, write_rows, tmp_path, row, message
):
  path = write_rows({'token_ids': [1, 2]}, row)
  with pytest.raises(UserError, match=message):
    run_task('score', f'input={path}')
  assert not (tmp_path / 'out.jsonl').exists()
