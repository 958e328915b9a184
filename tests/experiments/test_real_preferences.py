"""Real preferences: thirds, shuffled labels, a whole run, and its numbers."""

import json
import pathlib

import numpy as np
import pytest

from experiments.real_preferences import analyze, measure
from experiments.real_preferences import rows as rows_lib
from llm import config_args
from llm.data.pairs import load_pairs
from llm.errors import UserError
from llm.runs import report
from llm.text.tokenizer import load_tokenizer

FOLDER = pathlib.Path(analyze.FOLDER)


def _instruction(i):
  return {
    'instruction': f'Name number {i // 2}.',
    'input': '',
    'chosen': f'It is {i}, please.',
    'rejected': f'It is {i}, fool.',
    'output': 'not read',
  }


def _dialogue(i):
  start = f'\n\nHuman: What is {i // 2}?\n\nAssistant: A number.'
  start += '\n\nHuman: Which one?\n\nAssistant:'
  return {'chosen': f'{start} The {i}th.', 'rejected': f'{start} Go away {i}.'}


@pytest.mark.parametrize('make', [_instruction, _dialogue])
def test_each_pair_is_held_out_once(make):
  rows = [make(i) for i in range(40)]
  parts = [rows_lib.split(rows, seed) for seed in (3, 4, 5)]
  held_out = [row for _, part in parts for row in part]
  key = lambda row: json.dumps(row)
  assert sorted(held_out, key=key) == sorted(rows, key=key)
  for train, out in parts:
    assert len(train) + len(out) == 40 and len(out) in (12, 14)
    names = {rows_lib.first_prompt(row) for row in train}
    assert not names & {rows_lib.first_prompt(row) for row in out}
  assert parts[0][1] != rows_lib.split(rows, 0)[1]  # other thirds


def test_half_of_the_labels_are_exchanged():
  rows = [_instruction(i) for i in range(10)]
  mixed = rows_lib.shuffled(rows, 0)
  swapped = [
    (a['chosen'], a['rejected']) == (b['rejected'], b['chosen'])
    for a, b in zip(rows, mixed)
  ]
  same = [a == b for a, b in zip(rows, mixed)]
  assert sum(swapped) == sum(same) == 5
  assert rows_lib.shuffled(rows, 1) != mixed


def test_dialogues_are_the_chosen_answers():
  empty = _dialogue(0)
  empty['chosen'] = empty['chosen'].removesuffix(' The 0th.')
  found = list(rows_lib.dialogues([_instruction(1), empty, _dialogue(2)]))
  assert [row.get('output') for row in found] == ['It is 1, please.', None]
  assert found[1]['prompt'][-1]['content'].strip() == 'Which one?'
  assert found[1]['completion'][0]['content'].strip() == 'The 2th.'


def test_what_became_of_the_pairs(tmp_path):
  answers = [('long', 'no'), ('no', 'long'), ('yes', 'yes'), ('one', 'two')]
  rows = [{'prompt': 'a', 'chosen': c, 'rejected': r} for c, r in answers]
  path = tmp_path / 'pairs.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  pairs, _ = load_pairs(str(path), load_tokenizer('bytes'), max_length=16)
  found = measure.describe_pairs(pairs)
  assert (found['rows'], found['pairs'], found['equal']) == (4, 3, 1)
  assert found['longer'] == 0.5  # right, wrong, and a tie


def test_a_run_on_made_rows(tmp_path, monkeypatch):
  monkeypatch.setattr(report, 'plot_loss', lambda *args: None)  # slow
  monkeypatch.setattr(measure, 'FILES', {'rasbt': 'pairs.jsonl'})
  monkeypatch.setenv('LLM_DATA', str(tmp_path))
  rows = [_instruction(i) for i in range(24)]
  rows += [_dialogue(i) for i in range(12)]
  rows[3]['rejected'] = rows[3]['chosen']
  (tmp_path / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  config = config_args.load_config(f'{FOLDER}/config.py:smoke')
  config.vocab_size, config.max_length = 320, 128
  config.rasbt.rm.steps, config.rasbt.rm.lr = 30, 1e-2
  measure.run(config, str(tmp_path / 'run'))
  found = json.loads((tmp_path / 'run' / 'result.json').read_text())['rasbt']
  counts = [found[part] for part in ('train', 'held_out')]
  wanted = {'rows': 36, 'pairs': 35, 'equal': 1, 'empty': 0, 'emptied': 0}
  for name, number in wanted.items():
    assert sum(count[name] for count in counts) == number
  assert found['dpo']['eval_reward_margin'] == pytest.approx(
    found['dpo']['eval_chosen_reward'] - found['dpo']['eval_rejected_reward'],
    abs=1e-5,
  )
  assert found['reward']['eval_reward_accuracy'] == 1.0
  assert found['control']['eval_reward_accuracy'] != 1.0


def _row(data, run, shares, pairs):
  return [
    {
      f'{data}.{run}.eval_reward_accuracy': share,
      f'{data}.held_out.pairs': n,
    }
    for share, n in zip(shares, pairs)
  ]


def test_the_interval_is_over_all_held_out_pairs():
  rows = _row('rasbt', 'reward', (0.5, 0.75), (100, 300))
  share, low, high, count = analyze.pooled(rows, 'rasbt', 'reward')
  assert (share, count) == (0.6875, 400)
  # z² / 400 = 0.0096037: the middle is (0.6875 + 0.0048018) / 1.0096037.
  np.testing.assert_allclose((low, high), (0.640474, 0.730958), atol=1e-6)


def test_the_better_ruler_is_the_one_to_beat():
  rows = [{'rasbt.held_out.longer': 0.3, 'rasbt.held_out.pairs': 100}]
  name, (share, low, high, count) = analyze.ruler(rows, 'rasbt')
  assert name.startswith('the shorter') and (share, count) == (0.7, 100)
  assert low == pytest.approx(0.604152, abs=1e-6) and low < 0.7 < high
  rows[0]['rasbt.held_out.longer'] = 0.5
  assert analyze.ruler(rows, 'rasbt')[0].startswith('the longer')


def test_the_readme_has_the_goals():
  text = ' '.join((FOLDER / 'README.md').read_text(encoding='utf-8').split())
  assert f'above {100 * analyze.GOALS["rasbt"]:.0f}% on `rasbt_pref' in text
  assert f'above {100 * analyze.GOALS["harmless"]:.0f}% (chance)' in text
  config = config_args.load_config(f'{FOLDER}/config.py')
  assert f'Rows above {config.max_length} tokens' in text
  assert f'β {measure.BETA}' in text


def test_what_is_missing_is_named(tmp_path, monkeypatch):
  config = config_args.load_config(f'{FOLDER}/config.py')
  monkeypatch.delenv('LLM_DATA', raising=False)
  with pytest.raises(UserError, match='LLM_DATA is not set'):
    measure.run(config, str(tmp_path))
  with pytest.raises(UserError, match='no --workdir'):
    measure.run(config, None)
