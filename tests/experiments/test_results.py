"""READMEs say what the csv says, and the csv is judged as documented."""

import importlib
import pathlib

import numpy as np
import pytest

from experiments import readme
from experiments.inference_speed import analyze as speed
from experiments.inference_speed import measure as speed_measure
from experiments.inference_speed import opponents
from experiments.kv_cache import analyze as kv_cache
from experiments.kv_cache import measure as kv_measure
from experiments.real_text import analyze as real_text
from experiments.real_text import measure as real_measure
from experiments.real_text import ngrams
from llm import config_args
from llm.errors import UserError
from llm.sweeps import report, sweep

ROOT = pathlib.Path(__file__).parents[2] / 'experiments'
FOLDERS = sorted(path.parent for path in ROOT.glob('*/analyze.py'))


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda path: path.name)
def test_the_readme_has_the_numbers_of_the_csv(folder):
  module = importlib.import_module(f'experiments.{folder.name}.analyze')
  rows = report.read_csv(str(folder / 'results' / 'results.csv'))
  assert readme.read_section(str(folder)) == module.section(rows)
  assert readme.read_section(str(folder), 'HISTORY.md') == module.details(rows)


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda path: path.name)
def test_the_readme_has_the_command_and_the_figure(folder):
  text = (folder / 'README.md').read_text(encoding='utf-8')
  assert f'launch.py --sweep=experiments/{folder.name}/sweep.py' in text
  for word in ('**Claim.**', 'before the first run', '**Control', '](results/'):
    assert word in text
  assert ' minutes in all, each on ' in text


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda path: path.name)
def test_the_readme_has_one_table_of_at_most_six_rows(folder):
  text = (folder / 'README.md').read_text(encoding='utf-8')
  blocks = [
    [line for line in block.splitlines() if line.startswith('|')]
    for block in text.split('\n\n')
  ]
  [table] = [lines for lines in blocks if lines]
  assert 1 <= len(table) - 2 <= 6


@pytest.mark.parametrize(
  'name, count',
  [
    ('exact_frontier', 100),
    ('grpo_arithmetic', 8),
    ('inference_speed', 6),
    ('kv_cache', 46),
    ('real_preferences', 3),
    ('real_text', 12),
    ('training_speed', 3),
  ],
)
def test_every_run_is_accepted(name, count, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT.parent)
  module = config_args.load_module(str(ROOT / name / 'sweep.py'), '--sweep')
  assert len(sweep.plan(module, str(tmp_path), 'launch.py')) == count


def test_results_elsewhere_leave_the_readme_alone(tmp_path):
  folder, own, other = tmp_path, tmp_path / 'results', tmp_path / 'other'
  own.mkdir(), other.mkdir()
  path = folder / 'README.md'
  path.write_text(f'a\n{readme.BEGIN}\nold\n{readme.END}\nb\n')
  readme.write_section(str(folder), str(other), 'new\n')
  assert readme.read_section(str(folder)) == 'old\n'
  assert (other / 'summary.md').read_text() == 'new\n'
  readme.write_section(str(folder), str(own), 'new\n')
  assert path.read_text() == f'a\n{readme.BEGIN}\nnew\n{readme.END}\nb\n'


def test_details_go_to_the_history(tmp_path):
  own, other = tmp_path / 'results', tmp_path / 'other'
  own.mkdir(), other.mkdir()
  for name in ('README.md', 'HISTORY.md'):
    (tmp_path / name).write_text(f'{name}\n{readme.BEGIN}\nold\n{readme.END}\n')
  readme.write_section(str(tmp_path), str(other), 'new\n', 'more\n')
  assert (other / 'summary.md').read_text() == 'new\n\nmore\n'
  assert readme.read_section(str(tmp_path), 'HISTORY.md') == 'old\n'
  readme.write_section(str(tmp_path), str(own), 'new\n', 'more\n')
  assert readme.read_section(str(tmp_path)) == 'new\n'
  assert readme.read_section(str(tmp_path), 'HISTORY.md') == 'more\n'


def test_goals_in_one_row_keep_their_order_and_what_differs():
  goals = [
    readme.Goal('a', '≥ 1', '2', True),
    readme.Goal('b', '≥ 1', '0', False),
  ]
  both = readme.join('a; b', goals)
  assert both == ('a; b', '≥ 1', '2; 0', (True, False))
  same = readme.join('c; d', [goals[0], goals[0]._replace(goal='≥ 2')])
  assert readme.goal_table([both, same, goals[1]]).splitlines()[2:] == [
    '| a; b | ≥ 1 | 2; 0 | yes; no |',
    '| c; d | ≥ 1; ≥ 2 | 2; 2 | yes |',
    '| b | ≥ 1 | 0 | no |',
  ]


def test_the_cost_says_how_many_cores_each_run_had():
  row = {'machine.load': 0.5, 'machine.cpu': 'any', 'wall_s': 60.0}
  one, two = (row | {'machine.cores': cores} for cores in (1, 2))
  assert '1 run, 1.0 minutes in all, each on 1 core of' in readme.cost_line(
    [one]
  )
  assert 'each on 1 or 2 cores of' in readme.cost_line([two, one, two])


def test_prices_are_those_of_the_arithmetic():
  prices = kv_measure.price(None)
  # keys and values x layers x heads x components x 2 bytes
  assert prices['llama_2_7b']['token'] == 2 * 32 * 32 * 128 * 2
  assert prices['llama_3_8b']['128k'] == 2 * 32 * 8 * 128 * 2 * 131_072
  assert prices['qwen3_8b']['4k'] == 2 * 36 * 8 * 128 * 2 * 4096
  # 8 of the 48 layers are global; the others keep 1024 tokens
  per_layer = 2 * 8 * 256 * 2
  gemma = prices['gemma_3_12b']
  assert gemma['token'] == 8 * per_layer
  assert gemma['windows'] == 40 * 1024 * per_layer
  assert gemma['4k'] == (8 * 4096 + 40 * 1024) * per_layer
  assert gemma['128k_all_global'] == 48 * 131_072 * per_layer


def test_exponents_and_lines_are_recovered():
  rows = [
    {
      'config.seed': seed,
      'config.tokens': n,
      'cached_s': (1 + seed) * n**1.7,
      'token_ms': 2.0 + 0.5 * n,
    }
    for seed in range(3)
    for n in (64, 128, 512)
  ]
  np.testing.assert_allclose(kv_cache.exponents(rows, 'cached_s'), 1.7)
  np.testing.assert_allclose(kv_cache.line(rows), (2.0, 0.5, 1.0))


def test_with_and_without_a_cache_the_same_tokens():
  config = config_args.load_config(f'{ROOT}/kv_cache/config.py:smoke')
  config.tokens = 40
  config.repetitions = 1
  result = kv_measure.answer(config)
  assert result['equal']
  assert result['distinct'] > 1
  assert result['speedup'] == result['uncached_s'] / result['cached_s']


def _answer(prefill_s, decode_s, *rows):
  return {'prefill_s': prefill_s, 'decode_s': decode_s, 'tokens': list(rows)}


def test_ratios_are_paired_and_to_the_faster_cache():
  turns = {
    'ours': [_answer(1.0, 2.0), _answer(1.0, 4.0), _answer(1.0, 1.0)],
    'transformers_dynamic': [_answer(3.0, 9.0)] * 3,
    'transformers_static': [_answer(2.0, 8.0), *[_answer(9.0, 12.0)] * 2],
  }
  ratios = speed_measure._ratios(turns)
  assert ratios == {
    'prefill_vs_transformers': 3.0,
    'prefill_vs_transformers_least': 2.0,
    'prefill_vs_transformers_most': 3.0,
    'decode_vs_transformers': 4.0,
    'decode_vs_transformers_least': 2.25,
    'decode_vs_transformers_most': 9.0,
  }


def test_the_first_different_token_counts():
  turns = {
    'ours': [_answer(1, 1, [5, 6, 7, 7], [1, 2, 3, 4])],
    'llama_cpp': [_answer(1, 1, [5, 6, 7, 7], [1, 2, 9, 4])],
  }
  found = speed_measure._compare(turns, 4)
  assert found == {'equal': 2, 'of': 4, 'distinct': 3}


def test_goals_are_those_of_the_readme():
  text = (ROOT / 'inference_speed' / 'README.md').read_text(encoding='utf-8')
  assert 'at least 2.0 × `transformers` and 0.9 × llama.cpp; eight' in (
    ' '.join(text.split())
  )
  assert speed.GOALS == (
    (1, 'decode', 'transformers', 2.0),
    (1, 'decode', 'llama_cpp', 0.9),
    (8, 'decode', 'transformers', 2.0),
    (1, 'prefill', 'transformers', 1.0),
  )


def test_llama_cpp_gets_rotated_pairs_side_by_side():
  # Two heads of four rows: (0, 2) and (1, 3) of each are rotated together.
  rows = np.arange(8)[:, None]
  moved = opponents._interleave(rows, 2)
  assert moved[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_n_grams_mix_with_shorter_ones_as_by_hand():
  train = np.frombuffer(b'ababac', np.uint8)
  held_out = np.frombuffer(b'ab', np.uint8)
  # One byte: 6 seen, 3 kinds. p(a) = (3 + 3/256) / 9, p(b) = (2 + 3/256) / 9.
  a, b = (3 + 3 / 256) / 9, (2 + 3 / 256) / 9
  # After c nothing was seen, so a stays; after a: b twice, c once, 2 kinds.
  after = (2 + 2 * b) / (3 + 2)
  np.testing.assert_allclose(
    ngrams.held_out_losses(train, held_out, 2),
    [-np.log([a, b]).mean(), -np.log([a, after]).mean()],
  )
  np.testing.assert_allclose(ngrams.entropy(held_out), np.log(2))


def test_n_grams_find_an_order_that_is_there():
  text = np.tile(np.arange(50, 60, dtype=np.uint8), 40)
  losses = ngrams.held_out_losses(text[:300], text[300:], 3)
  assert abs(losses[0] - np.log(10)) < 0.1 and losses[1] < 0.1
  assert losses[2] < losses[1]


def test_a_rise_within_the_first_epoch_is_found():
  falling = {'steps_per_epoch': 20, 'pretrained.curve.0': 3.0}
  falling |= {'pretrained.curve.10': 2.0, 'pretrained.curve.20': 1.9}
  # Later ones may rise; columns are in no order.
  falling |= {'pretrained.curve.100': 3.0, 'pretrained.curve.30': 2.5}
  assert real_text.largest_rise(falling) == pytest.approx(-0.1)
  assert real_text.largest_rise(falling | {'pretrained.curve.5': 1.0}) == 1.0


def test_the_readme_has_the_goals_and_the_points_of_an_epoch():
  text = (ROOT / 'real_text' / 'README.md').read_text(encoding='utf-8')
  text = ' '.join(text.split())
  assert f'at most {real_text.LOSS_GOAL} nats per byte' in text
  assert f'at least {100 * real_text.EOS_GOAL:.0f}% of the completions' in text
  steps = 990 // real_measure.BATCH
  assert steps % real_measure.EVAL_EVERY == 0
  assert 1 + steps // real_measure.EVAL_EVERY == 7 and 'each of seven' in text


def test_real_text_says_what_it_needs(tmp_path, monkeypatch):
  config = config_args.load_config(f'{ROOT}/real_text/config.py')
  monkeypatch.delenv('LLM_DATA', raising=False)
  with pytest.raises(UserError, match='LLM_DATA is not set'):
    real_measure.run(config, str(tmp_path))
  config.part = 'letters'
  with pytest.raises(UserError, match="part='letters': use one of bytes, inst"):
    real_measure.run(config, str(tmp_path))
