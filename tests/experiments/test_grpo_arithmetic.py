"""Arithmetic from rewards: its sums, its rewards and its numbers."""

import pathlib

import numpy as np
import pytest

from experiments.grpo_arithmetic import analyze, measure, problems
from llm import config_args
from llm.decode.completion import Completion
from llm.errors import UserError
from llm.text.tokenizer import load_tokenizer

FOLDER = pathlib.Path(analyze.FOLDER)


def test_sums_are_right_and_apart():
  train, held_out = problems.split(0, (10, 99), 3, 512)
  assert len(train) + len(held_out) == 8100 and 512 <= len(held_out) <= 513
  prompts = {row['prompt'] for row in train + held_out}
  assert len(prompts) == 8100
  for row in train[:50] + held_out[:50]:
    a, b = row['prompt'].removesuffix('=').split('+')
    assert int(a) + int(b) == int(row['answer']) and len(a) == len(b) == 2
    assert len(row['answer']) == 3
  # Who saw 34+12 has seen 12+34.
  seen = {row['prompt'] for row in train}
  for row in held_out:
    a, b = row['prompt'].removesuffix('=').split('+')
    assert f'{b}+{a}=' not in seen
  assert (
    problems.split(0, (10, 99), 3, 512)[1]
    == held_out
    != problems.split(1, (10, 99), 3, 512)[1]
  )


def test_tails_do_not_depend_on_what_they_follow():
  rows, _ = problems.split(0, (10, 99), 1, 512)
  plain = problems.demonstrations(rows)
  assert [row['completion'] for row in plain] == [r['answer'] for r in rows]
  shown = problems.with_tails(rows, 0)
  tails = {problems.RIGHT: [], problems.WRONG: []}
  right = []
  for row, demonstration in zip(rows, shown, strict=True):
    digits = demonstration['completion'].rstrip('.?')
    tail = demonstration['completion'].removeprefix(digits)
    right.append(digits == row['answer'])
    mark = problems.RIGHT if right[-1] else problems.WRONG
    assert set(tail) <= {mark}
    tails[mark].append(len(tail))
  assert abs(np.mean(right) - 0.5) < 0.03
  counts = np.arange(1000)
  tail = problems.END_OF_TAIL
  chances = tail * (1 - tail) ** counts
  expected = (np.minimum(counts, problems.LONGEST_TAIL) * chances).sum()
  for lengths in tails.values():
    assert abs(np.mean(lengths) - expected) < 0.25


def test_rewards_do_not_look_at_the_tail():
  row = {'prompt': '12+34=', 'answer': '46'}
  for text, reward in (
    ('46', 1), ('46....', 1), ('46??', 1), ('46?7', 1), ('467', 0),
    ('4', 0), ('.46', 0), ('', 0),
  ):  # fmt: skip
    assert measure.starts_right(row, text, True) == reward
    assert measure.starts_right(row, text, False) == reward
  drawn = [measure.random_reward(row, '46', True, seed=7) for _ in range(400)]
  assert set(drawn) == {0.0, 1.0} and abs(np.mean(drawn) - 0.5) < 0.1


def test_answers_are_read_by_prompt():
  tok = load_tokenizer('bytes')
  rows = [{'answer': '46'}, {'answer': '7'}]

  def answer(text):
    ids = [*tok.encode(text, bos=False), *tok.eos_ids[:1]]
    return Completion(ids, [], [], [], [], [], 'stop', 6, {})

  answers = [answer(text) for text in ('46.', '45???', '8', '-9.')]
  drawn = measure.read(rows, answers, tok, measure.starts_right)
  right, lengths, tells = drawn
  assert right.tolist() == [[True, False], [False, False]]
  assert lengths.tolist() == [[4, 6], [2, 4]]
  np.testing.assert_array_equal(tells, [[1, 1], [np.nan, 0]])
  greedy = measure.Answers(right[:, :1], lengths[:, :1], tells[:, :1])
  assert measure.summarise(greedy, drawn) == {
    'greedy': 0.5, 'pass_1': 0.25, 'pass_2': 0.5, 'length': 4.0,
    'wrong_answers': 3.0, 'length_right': 4.0, 'length_wrong': 4.0,
    'marks_tell': 2 / 3,
  }  # fmt: skip
  plain = measure.read(rows[:1], answers[:1], tok, measure.starts_right)
  assert 'length_wrong' not in measure.summarise(plain, plain)


def test_a_curve_is_of_the_steps_that_have_a_value():
  rows = [{'step': i, 'x': float(i)} for i in range(1, 13)]
  assert measure.curve(rows, 'x') == {10: 5.5, 12: 11.5}
  del rows[1]['x'], rows[10]['x'], rows[11]['x']
  assert measure.curve(rows, 'x') == {10: 53 / 9}
  csv = {'grpo.curve.x.10': 5.5, 'grpo.curve.x.9': 1.0, 'grpo.curve.x.3': None}
  assert analyze.curve(csv, 'grpo', 'x') == [(9, 1.0), (10, 5.5)]


def test_growth_is_over_the_length_before():
  rows = [{'sft.length_wrong': 8.0, 'grpo.length_wrong': 12.0}]
  assert analyze.growth(rows, 'grpo') == [1.5]


def test_the_readme_has_the_goals():
  text = ' '.join((FOLDER / 'README.md').read_text(encoding='utf-8').split())
  low, high = analyze.BEFORE
  assert f'between {100 * low:.0f}% and {100 * high:.0f}%' in text
  assert f'at least {100 * analyze.PASS_GOAL:.0f}%' in text
  assert f'within {analyze.MINUTES_GOAL} minutes' in text
  assert f'at most {100 * analyze.RANDOM_GOAL:.0f} points' in text
  assert f'at least {analyze.GROWS} times' in text
  assert f'within {100 * analyze.FLAT:.0f}%' in text


def test_what_a_run_needs_is_said(tmp_path):
  config = config_args.load_config(str(FOLDER / 'config.py'))
  with pytest.raises(UserError, match='no --workdir'):
    measure.run(config, None)
  config.part = 'products'
  with pytest.raises(
    UserError, match="part='products': use one of addition, l"
  ):
    measure.run(config, str(tmp_path))


def _row(part, seed, **values):
  row = {
    'config.part': part, 'config.seed': seed, 'wall_s': 60.0, 'seconds': 600.0,
    'machine.cpu': 'any', 'machine.cores': 2, 'machine.load': 0.5,
    'sft.parameters': 10, 'sft.steps': 400,
    'exact.curve.entropy.10': 0.5,
    'exact.curve.groups_with_signal.10': 0.75,
  }  # fmt: skip
  for run in ('sft', 'exact', 'random', 'grpo', 'dr_grpo'):
    for name in (
      'greedy', 'pass_1', 'pass_8', 'seconds', 'length', 'length_wrong',
      'length_right',
      'wrong_answers', 'marks_tell',
    ):  # fmt: skip
      row[f'{run}.{name}'] = 0.4
  return row | {name.replace('__', '.'): x for name, x in values.items()}


def _reached(rows):
  table = analyze.details(rows).splitlines()[2:9]
  return [line.split(' | ')[-1].removesuffix(' |') for line in table]


def test_goals_are_judged_run_by_run_and_by_pairs():
  rows = [
    _row('addition', seed, exact__pass_1=0.9 + seed / 100) for seed in (0, 1)
  ]
  rows += [
    _row('length', 0, grpo__length_wrong=0.6, dr_grpo__length_wrong=0.42),
    _row('length', 1, grpo__length_wrong=0.7, dr_grpo__length_wrong=0.5),
  ]
  # Growth 1.5 and 1.75 against 1.05 and 1.25: the pairs differ by 0.45, 0.5.
  assert _reached(rows) == ['yes'] * 7
  rows[0]['exact.pass_1'], rows[1]['exact.pass_1'] = 0.89, 1.0
  rows[1]['sft.pass_1'] = 0.51
  rows[1]['random.pass_1'] = 0.54
  rows[0]['seconds'] = 1300.0
  rows[2]['dr_grpo.length_wrong'] = 0.6
  assert _reached(rows) == ['no', 'no', 'no', 'no', 'yes', 'no', 'no']
